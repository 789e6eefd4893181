"""Every command that the pages show.

A command is run as it stands on its page, in a folder of small data sets under the names that the
pages use, with CONFIG, CHECKPOINT and the like replaced by files of that folder and with options
that make it short.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
from argparse import SUPPRESS
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from mmdet.datasets import CocoDataset
from small_runs import DETECTION, LIMIT, ROOT, write_split

from sn_mm_cli.parsers import COMMANDS as PARSERS
from sn_mm_cli.parsers import make_parser

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
SAMPLE = ('configs.md',)
"""The pages of an ordinary run of the tests; `pytest -m every_command` has the others."""

COMMANDS = 'python|bash|sn-mm|mim|pip|source'

ELSEWHERE = {
    r'pip install|CFLAGS=.* pip install|mim install': 'installs packages',
    r'source \.venv/bin/activate|export ': 'sets the shell',
    r'python -m pytest': 'these tests',
    r'bash (\.ci/run|tools/(setup_env|run_tests|demo)\.sh)': '.ci/run is or calls it',
    r'python -m sphinx': 'tests/test_site.py',
    r'python tools/misc/mend_packages\.py': 'tests/test_tools/test_mend_packages.py',
    r'.*convert[-_]checkpoint': 'tests/test_cli/test_convert_checkpoint.py, on files of theirs',
    r'mim ': 'openmim wants an environment of its own: docs/records/runs.md',
    r'(sn-mm|sn-mm help NAME|sn-mm [a-z-]+)$': 'the name of a command',
    r'python tools/(train|test)\.py$': 'the name of a script',
    r'bash tools/(dist|slurm)_': 'tests/test_cli/test_train.py',
    r'bash tools/check_gpu\.sh': 'tests/checks/test_gpu.py',
    r'(DATA=\S+ )?(sn-mm |\$)(compare|plot-norms)': 'test_compare_norms.py',
    r'sn-mm make-nuclei': 'tests/test_cli/test_make_nuclei.py',
    r'python tests/test_bad_input/page\.py': 'tests/test_bad_input, which compares the page',
}
"""Commands that are not run here, and why."""


SCALE = "train_dataloader.dataset.pipeline.2.scale='(64,64)'"
TEST_SCALE = ' '.join(f"{s}_dataloader.dataset.pipeline.1.scale='(64,64)'" for s in ('val', 'test'))
DETECTOR = f'model.backbone.init_cfg=None train_cfg.max_epochs=1 {SCALE} {TEST_SCALE}'
SEGMENTOR = (
    'model.pretrained=None train_cfg.max_iters=1 train_cfg.val_interval=1 '
    "model.data_preprocessor.size='(64,64)' default_hooks.checkpoint.interval=1 "
    f"train_dataloader.dataset.pipeline.3.crop_size='(64,64)' {TEST_SCALE}"
)
SMALL = [
    (r'\bsn_mm::fcn\S+', 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'),
    (r'(benchmark-model) CONFIG', r'\1 mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py'),
    (r'\bCONFIG\b', 'det.py'),
    (r'\$config CHECKPOINT', '$config work_dirs/atss_r18-sn_fpn_1xb4-3e_scenes/epoch_1.pth'),
    (r'\b(CHECKPOINT|CKPT)( \[?(CKPT )?\.\.\.\]?)?', 'work_dirs/det/epoch_1.pth'),
    (r'\bIN OUT\b', 'work_dirs/det/epoch_1.pth out.pth'),
    (r'\bOUT\b', 'out.pth'),
    (r'\bDIR\b', 'figures'),
    (r'--processes 8', '--processes 2'),
    (r'--num-iters 200', '--num-iters 1'),
    (r'epoch_12\.pth', 'epoch_1.pth'),
    (r'iter_20000\.pth', 'iter_1.pth'),
    (r'--train \d+ --val \d+', '--train 4 --val 2'),
    (r'(make-scenes out)\.pth', r'\1 --train 2 --val 2'),
    (r'(\S*my_config\.py)$', rf'\1 --cfg-options {DETECTOR}'),
    (r'(train\S* mmdet::(mask_rcnn|atss)\S+.*)', rf'\1 --cfg-options {DETECTOR}'),
    (r'(train\S* mmdet::faster_rcnn.*)', r'\1 model.backbone.init_cfg=None'),
    (r'(train\S* mmseg::\S+.*)', rf'\1 --cfg-options {SEGMENTOR}'),
    (r'(train my_mask_rcnn\.py.*)', rf'\1 --cfg-options {DETECTOR}'),
    (r'(train my_deeplab\.py.*)', rf'\1 --cfg-options {SEGMENTOR}'),
    (r'(train pretrain\.py)', r'\1 --cfg-options train_cfg.max_iters=2 '
     r'train_cfg.val_interval=2 default_hooks.checkpoint.interval=2'),
    (r'(train finetune\.py)', r'\1 --cfg-options train_cfg.max_iters=2 '
     r'load_from=work_dirs/pretrain/iter_2.pth'),
    (r'(train \$config)$', r'\1 --cfg-options'),
    (r'(train \$config.*)', r'\1 train_cfg.max_epochs=1'),
    (r'(benchmark-layer).*', r'\1 --repeats 1 --filter tiny --out layers.json'),
    (r'(benchmark-model \S+( --onnx)?).*', r'\1 --size 64 --repeats 1'),
    (r'(benchmark_hook\.py \S+)', r'\1 --iters 2'),
]  # fmt: skip
"""Replacements that make a command run here, and soon."""


def commands(page: Path) -> Iterator[str]:
    """The lines of the shell blocks of a page, and the commands in its text, in their order."""
    pattern = rf'```shell\n(?P<block>.*?)```|`(?P<code>(?:{COMMANDS}) [^`\n]+)`'
    for match in re.finditer(pattern, page.read_text(), re.S):
        text = match['block'] or match['code']
        for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
            line = re.sub(r'\s+# .*', '', line).strip()
            if line:
                yield line


def files(page: Path) -> dict[str, str]:
    """The files that a page shows: blocks that begin with their name, or follow it."""
    text = page.read_text()
    shown = {}
    for before, block in re.findall(r'([^\n]*)\n\n```python\n(.*?)```', text, re.S):
        parts = re.split(r'^# (\w+\.py)\n', block, flags=re.M)
        shown.update(zip(parts[1::2], parts[2::2]))
        named = re.search(r'`(\w+\.py)`', before)
        if named and len(parts) == 1:
            shown[named[1]] = block
    return shown


def elsewhere(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in ELSEWHERE)


def shortened(command: str) -> str:
    for pattern, replacement in SMALL:
        command = re.sub(pattern, replacement, command)
    return command


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's commands and configs beside the data that the pages name."""
    folder = tmp_path_factory.mktemp('docs')
    for name in ('tools', 'configs', 'sn_mm', 'sn_mm_cli'):
        (folder / name).symlink_to(ROOT / name)
    for split, count in (('train', 4), ('val', 2)):
        write_split(folder / 'data', split, count)
        of_ones_own(folder, split)
    whole_coco(folder / 'data/coco/annotations')
    (folder / 'det.py').write_text(DETECTION)
    return folder


def train_once(folder: Path) -> None:
    """Makes the checkpoint that stands in for those that a page names."""
    if not (folder / 'work_dirs/det/epoch_1.pth').exists():
        run(folder, 'sn-mm train det.py')


def of_ones_own(folder: Path, split: str) -> None:
    """The split in the layouts of the tutorials."""
    images, cityscapes = folder / 'my_data/images', folder / 'data/cityscapes'
    annotations = json.loads(
        (folder / f'data/coco/annotations/instances_{split}2017.json').read_text()
    )
    for kind, name in zip(annotations['categories'], ('even', 'odd')):
        kind['name'] = name
    for image in annotations['images']:
        number, image['file_name'] = image['id'], f'{split}_{image["file_name"]}'
        scene = cv2.imread(str(folder / f'data/coco/{split}2017/{number}.png'))
        label = cv2.imread(
            str(cityscapes / f'gtFine/{split}/a/{number}_gtFine_labelTrainIds.png'), 0
        )
        for path in (images / split, folder / 'my_data/masks' / split):
            path.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / image['file_name']), scene)
        cv2.imwrite(str(images / split / f'{number}.jpg'), scene)
        cv2.imwrite(
            str(folder / f'my_data/masks/{split}/{number}.png'), (label > 0).astype('uint8')
        )
    (folder / f'my_data/{split}.json').write_text(json.dumps(annotations))


def whole_coco(annotations: Path) -> None:
    """COCO's 80 categories, which ready-made configs ask for."""
    names = CocoDataset.METAINFO['classes']
    for file in annotations.iterdir():
        content = json.loads(file.read_text())
        content['categories'] = [{'id': i, 'name': name} for i, name in enumerate(names)]
        file.write_text(json.dumps(content))


def run(folder: Path, command: str, **variables: str) -> None:
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = {**os.environ, 'PATH': path, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
    process = subprocess.Popen(
        ['bash', '-c', command], cwd=folder, env={**env, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f'{command}\n{output[-3000:]}'


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize(
    'page',
    [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=() if page.name in SAMPLE else pytest.mark.every_command,
        )
        for page in PAGES
        if page.name != 'bad_input.md'  # tests/test_bad_input runs that one's
    ],
)
def test_the_commands_of_a_page_run(page: Path, folder: Path) -> None:
    for name, text in files(page).items():
        (folder / name).write_text(text)
    setting = re.compile(r'(?:export )?(\w+)=(?:"([^"]*)"|\'([^\']*)\'|(\S*))$')
    variables: dict[str, str] = {}
    for command in commands(page):
        if match := setting.match(command):
            variables[match[1]] = next((v for v in match.groups()[1:] if v is not None), '')
        elif not elsewhere(command):
            command = shortened(command)
            if 'work_dirs/det/' in command or '--resume' in command:
                train_once(folder)
            run(folder, command, **variables)


@pytest.mark.every_command
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(
    'page, word', [('quick_start.md', 'DetInferencer'), ('configs.md', 'get_config')]
)
def test_a_program_of_a_page_runs(page: str, word: str, folder: Path) -> None:
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/start' / page).read_text(), re.S)
    (program,) = (block for block in blocks if word in block)
    program = program.replace('NAME', 'det').replace('epoch_12', 'epoch_1')
    program = program.replace('picture.jpg', 'data/coco/val2017/0.png')
    (folder / 'program.py').write_text(program)
    train_once(folder)
    run(folder, 'python program.py')


def test_the_page_of_commands_has_all_commands_and_their_options() -> None:
    page = (ROOT / 'docs/reference/commands.md').read_text('utf-8')
    sections = dict(re.findall(r'^## `([\w-]+)`\n(.*?)(?=^## )', page, re.M | re.S))
    assert set(sections) == set(PARSERS)
    for name, section in sections.items():
        actions = make_parser(name)._actions
        options = {o for a in actions if a.help != SUPPRESS for o in a.option_strings}
        assert set(re.findall(r'--[a-z][\w-]*', section)) == options - {'-h', '--help'}, name


def test_links_outside_the_site_lead_to_files() -> None:
    """Those inside are the site's to check."""
    pages = [*ROOT.glob('*.md'), *(ROOT / 'configs').rglob('*.md')]
    links = [
        (page, link) for page in pages for link in re.findall(r'\]\(([^)#]+)', page.read_text())
    ]
    broken = [
        f'{page.relative_to(ROOT)}: {link}'
        for page, link in links
        if '://' not in link and not (page.parent / link).exists()
    ]
    assert len(links) > 20
    assert not broken


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_compiles_and_its_names_are_there(page: Path) -> None:
    """In quotes, as in type='sn_mm.SN', a name is one of MMEngine's registries."""
    text = page.read_text()
    for block in re.findall(r'```python\n(.*?)```', text, re.S):
        compile(block, str(page), 'exec')
    for name in re.findall(r"(?<!')\bsn_mm(?:\.[A-Za-z_]\w*)+", text):
        pkgutil.resolve_name(name)
