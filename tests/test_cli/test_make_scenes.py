"""Scenes are exact, real, disjoint between splits, and load through the ready-made datasets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from sn_mm.cli import make_scenes
from sn_mm.errors import InputError
from sn_mm.scenes import compose, layouts, sources
from sn_mm_cli import PROGRAM
from sn_mm_cli.main import main

pytest.importorskip('mlxtend')
pytest.importorskip('skimage')

SIZE = (96, 128)
TRAIN, VAL = 10, 4
BASE = ['--train', str(TRAIN), '--val', str(VAL), '--size', *map(str, SIZE)]


def make(root: Path, *args: str) -> Path:
    main(['make-scenes', str(root), *BASE, *args])
    return root


def refuse(args: list[str], status: int = 2) -> None:
    with pytest.raises(SystemExit) as stop:
        main(['make-scenes', *args])
    assert stop.value.code == status


def files(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three layouts, with categories named after the digits."""
    return make(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def coco_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The COCO layout with COCO's categories."""
    return make(tmp_path_factory.mktemp('coco'), '--layout', 'coco', '--categories', 'coco')


@pytest.fixture(scope='module')
def scenes() -> dict[str, list[compose.Scene]]:
    """The scenes that `data` holds, made once more."""
    options = compose.SceneOptions(size=SIZE)
    made = {}
    for split, count in zip(sources.SPLITS, (TRAIN, VAL)):
        pixels = sources.Sources(split)
        made[split] = [compose.make_scene(pixels, options, 0, split, i) for i in range(count)]
    return made


# --- sources --------------------------------------------------------------------------------------


def test_train_and_val_share_no_digit():
    train, val = ({image.tobytes() for image in sources.read_digits(s)[0]} for s in sources.SPLITS)
    assert len(train) == 4000 and len(val) == 1000
    assert not train & val
    for split, count in zip(sources.SPLITS, (400, 100)):
        assert np.bincount(sources.read_digits(split)[1]).tolist() == [count] * 10


@pytest.mark.parametrize('split', sources.SPLITS)
def test_no_split_sees_the_other_half_of_a_photograph(split, monkeypatch):
    def read_half(file: str) -> np.ndarray:
        photograph = read_photograph(file)
        middle = photograph.shape[1] // 2
        other = slice(middle, None) if split == 'train' else slice(middle)
        photograph[:, other] = np.random.default_rng(0).integers(256)
        return photograph

    read_photograph = sources.read_photograph
    whole = sources.Sources(split)
    monkeypatch.setattr(sources, 'read_photograph', read_half)
    half = sources.Sources(split)
    for name in sources.GROUNDS:
        np.testing.assert_array_equal(whole.grounds[name], half.grounds[name])
    for clutter, same_clutter in zip(whole.clutter, half.clutter):
        np.testing.assert_array_equal(clutter, same_clutter)


def test_no_photograph_serves_twice():
    names = [ground.file for ground in (*sources.GROUNDS.values(), *sources.CLUTTER)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('package', ['mlxtend', 'skimage'])
def test_missing_package_is_one_line(package, tmp_path, monkeypatch, capsys):
    find_spec = sources.importlib.util.find_spec
    monkeypatch.setattr(
        sources.importlib.util,
        'find_spec',
        lambda name: None if name == package else find_spec(name),
    )
    sources._read_digit_table.cache_clear()
    refuse([str(tmp_path), *BASE])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f'sn-mm make-scenes: error: the package {package} is needed for its data, and is not '
        "installed; the extra 'demo' of sn_mm brings it: pip install '.[demo]'"
    )
    assert not list(tmp_path.iterdir())


def test_missing_photograph_is_named(monkeypatch):
    monkeypatch.setattr(sources, 'CLUTTER', (sources.Ground('unheard_of.png'),))
    with pytest.raises(InputError, match='skimage does not ship data/unheard_of.png'):
        sources.Sources('train')


# --- scenes ---------------------------------------------------------------------------------------


def test_same_seed_same_bytes(data, tmp_path):
    assert files(make(tmp_path)) == files(data)


def test_counts_do_not_change_earlier_scenes(data, tmp_path):
    make(tmp_path, '--train', '3', '--val', '2', '--layout', 'cityscapes')
    few, many = files(tmp_path / 'cityscapes'), files(data / 'cityscapes')
    del few[make_scenes.RECORD]
    assert len(few) == 5 * 3
    assert few.items() <= many.items()


def test_another_seed_is_another_set(data, tmp_path):
    make(tmp_path, '--seed', '1', '--layout', 'cityscapes')
    one, other = files(tmp_path / 'cityscapes'), files(data / 'cityscapes')
    assert not any(one[name] == other[name] for name in one)


def test_every_kind_of_ground_appears(scenes):
    seen = np.unique([scene.semantic for scene in scenes['train']])
    assert set(range(1, len(compose.SEMANTIC_NAMES))) <= set(seen.tolist())


def test_each_digit_stands_out(scenes):
    for scene in scenes['train'] + scenes['val']:
        lab = cv2.cvtColor(scene.image.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
        for number in range(1, len(scene.classes) + 1):
            mask = scene.instance == number
            ring = (cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) > 0) & ~mask
            core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) > 0
            inside = lab[core if core.any() else mask].mean(axis=0)
            for label in np.unique(scene.semantic[ring & (scene.instance == 0)]):
                around = lab[ring & (scene.semantic == label)]
                if len(around) >= 20:
                    assert np.linalg.norm(inside - around.mean(axis=0)) > 20


def test_smallest_digits_are_visible():
    images, _ = sources.read_digits('val')
    for image in images:
        cover = compose._draw_digit(image, compose.MIN_DIGIT_LENGTH, compose.MAX_ANGLE)
        assert (cover >= 0.5).sum() >= compose.MIN_VISIBLE_PIXELS


def test_crowded_scenes_keep_digits_visible():
    pixels = sources.Sources('val')
    options = compose.SceneOptions(size=(64, 64), digits=(20, 20), digit_size=(0.3, 0.7))
    scene = compose.make_scene(pixels, options, 0, 'val', 0)
    assert 1 < len(scene.classes) < 20
    areas = np.bincount(scene.instance.ravel(), minlength=len(scene.classes) + 1)
    assert areas[1:].min() >= compose.MIN_VISIBLE_PIXELS


# --- COCO -----------------------------------------------------------------------------------------


def test_polygons_draw_exactly_the_mask():
    coco_mask = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = (int(side) for side in rng.integers(2, 40, 2))
        knots = rng.random((height // rng.integers(1, 5) + 1, width // rng.integers(1, 5) + 1))
        mask = cv2.resize(knots, (width, height)) > rng.uniform(0.2, 0.8)
        mask[height // 2, width // 2] = True
        drawn = coco_mask.merge(coco_mask.frPyObjects(layouts.polygons(mask), height, width))
        np.testing.assert_array_equal(coco_mask.decode(drawn), mask)


@pytest.mark.parametrize('split', sources.SPLITS)
def test_pycocotools_reads_the_exact_instances(data, scenes, split):
    coco_api = pytest.importorskip('pycocotools.coco')
    coco = coco_api.COCO(str(data / f'coco/annotations/instances_{split}2017.json'))
    assert coco.getCatIds() == list(range(1, 11))
    assert {'info', 'licenses'} <= set(coco.dataset)
    assert len(coco.getImgIds()) == len(scenes[split])
    for image, scene in zip(coco.loadImgs(sorted(coco.getImgIds())), scenes[split]):
        assert (image['height'], image['width']) == SIZE
        assert cv2.imread(str(data / f'coco/{split}2017' / image['file_name'])).shape == (*SIZE, 3)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert [int(coco.cats[a['category_id']]['name']) for a in annotations] == [*scene.classes]
        for number, annotation in enumerate(annotations, start=1):
            mask = scene.instance == number
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation['area'] == mask.sum() and annotation['iscrowd'] == 0
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert (x, x + width) == (columns.min(), columns.max() + 1)
            assert (y, y + height) == (rows.min(), rows.max() + 1)


def test_coco_categories_are_cocos_own():
    names = pytest.importorskip('mmdet.datasets').CocoDataset.METAINFO['classes']
    categories = layouts.coco_categories('coco')
    assert tuple(category['name'] for category in categories) == names
    ids = {category['name']: category['id'] for category in categories}
    assert len(set(ids.values())) == 80
    # Landmarks on both sides of every gap in COCO's numbering.
    known = {'fire hydrant': 11, 'stop sign': 13, 'cow': 21, 'backpack': 27, 'umbrella': 28}
    known |= {'handbag': 31, 'bottle': 44, 'wine glass': 46, 'bed': 65, 'dining table': 67}
    known |= {'toilet': 70, 'tv': 72, 'refrigerator': 82, 'book': 84, 'toothbrush': 90}
    assert known.items() <= ids.items()


@pytest.mark.parametrize(
    ('categories', 'as_polygons'),
    [
        ('digits', False),
        pytest.param('digits', True, marks=pytest.mark.slow),
        pytest.param('coco', False, marks=pytest.mark.slow),
        ('coco', True),
    ],
)
def test_mmdet_reads_coco_through_ready_made_configs(
    data, coco_data, scenes, categories, as_polygons
):
    mmdet = pytest.importorskip('mmdet.datasets')
    base = (
        'common/ms-poly_3x_coco-instance.py' if as_polygons else '_base_/datasets/coco_instance.py'
    )
    root = coco_data if categories == 'coco' else data
    metainfo = {} if categories == 'coco' else {'metainfo': {'classes': tuple('0123456789')}}
    for split, dataset in ready_made('mmdet', base, root / 'coco', **metainfo):
        assert isinstance(dataset, mmdet.CocoDataset)
        assert len(dataset) == len(scenes[split])
        for index, scene in enumerate(scenes[split]):
            instances = dataset[index]['data_samples'].gt_instances
            assert instances.labels.tolist() == [*scene.classes]
            assert len(instances.masks) == len(scene.classes)
            assert instances.masks.to_ndarray().any(axis=(1, 2)).all()


# --- semantics ------------------------------------------------------------------------------------


def test_classes_are_those_of_the_ready_made_datasets():
    mmseg = pytest.importorskip('mmseg.datasets')
    names = mmseg.CityscapesDataset.METAINFO['classes']
    for label, (name, train_id, _) in layouts.CITYSCAPES_CLASSES.items():
        assert label == 'unlabelled' or names[train_id] == name
    names = mmseg.ADE20KDataset.METAINFO['classes']
    for label, (name, value) in layouts.ADE20K_CLASSES.items():
        assert label == 'unlabelled' or names[value - 1] == name
    assert set(layouts.CITYSCAPES_CLASSES) == set(layouts.ADE20K_CLASSES)
    assert set(layouts.ADE20K_CLASSES) == set(compose.SEMANTIC_NAMES)


@pytest.mark.parametrize('split', sources.SPLITS)
def test_all_layouts_hold_the_same_labels(data, scenes, split):
    long = {'train': 'training', 'val': 'validation'}[split]
    for index, scene in enumerate(scenes[split]):
        city = f'gtFine/{split}/digits/digits_{index:06d}_000000_gtFine'
        ade = f'ADEChallengeData2016/annotations/{long}/ADE_{split}_{index + 1:08d}.png'
        maps = {
            f'cityscapes/{city}_labelTrainIds.png': (layouts.CITYSCAPES_CLASSES, 1),
            f'cityscapes/{city}_labelIds.png': (layouts.CITYSCAPES_CLASSES, 2),
            f'ade/{ade}': (layouts.ADE20K_CLASSES, 1),
        }
        for name, (classes, column) in maps.items():
            labels = cv2.imread(str(data / name), cv2.IMREAD_UNCHANGED)
            assert labels.shape == SIZE and labels.dtype == np.uint8
            for label, entry in classes.items():
                here = scene.semantic == compose.SEMANTIC_NAMES.index(label)
                np.testing.assert_array_equal(labels == entry[column], here)
            digit = labels == classes['digit'][column]
            np.testing.assert_array_equal(digit, scene.instance > 0)


@pytest.mark.parametrize(
    ('base', 'folder'),
    [('cityscapes.py', 'cityscapes'), ('ade20k.py', 'ade/ADEChallengeData2016')],
)
def test_mmseg_reads_semantics_through_ready_made_configs(data, scenes, base, folder):
    pytest.importorskip('mmseg.datasets')
    np.random.seed(0)  # the ready-made configs crop at random
    for split, dataset in ready_made('mmseg', f'_base_/datasets/{base}', data / folder):
        assert len(dataset) == len(scenes[split])
        names = dataset.metainfo['classes']
        seen = set()
        for index in range(len(dataset)):
            labels = np.unique(dataset[index]['data_samples'].gt_sem_seg.data)
            seen |= {names[label] for label in labels if label != 255}
        table = layouts.CITYSCAPES_CLASSES if 'city' in base else layouts.ADE20K_CLASSES
        wanted = {table[label][0] for label in compose.SEMANTIC_NAMES[1:]}
        assert seen <= wanted and table['digit'][0] in seen
        if split == 'train':
            assert seen == wanted


def ready_made(toolbox: str, base: str, data_root: Path, **changes):
    """Yields the splits and the datasets of a config that the toolbox ships, at another root."""
    from importlib import import_module

    from mmengine.config import Config
    from mmengine.registry import DATASETS, DefaultScope

    package = Path(import_module(toolbox).__file__).parent
    config = Config.fromfile(package / '.mim' / 'configs' / base)
    with DefaultScope.overwrite_default_scope(toolbox):
        import_module(f'{toolbox}.datasets')
        for split in sources.SPLITS:
            dataset = config[f'{split}_dataloader'].dataset
            while dataset.type in ('RepeatDataset', 'ClassBalancedDataset'):
                dataset = dataset.dataset
            dataset.update(data_root=str(data_root), **changes)
            yield split, DATASETS.build(dataset)


# --- the command ----------------------------------------------------------------------------------


def test_files_are_where_the_ready_made_configs_look(data):
    names = set(files(data))
    assert {
        'coco/train2017/000000000001.jpg',
        'coco/val2017/000000000004.jpg',
        'coco/annotations/instances_val2017.json',
        'cityscapes/leftImg8bit/train/digits/digits_000000_000000_leftImg8bit.png',
        'cityscapes/gtFine/val/digits/digits_000003_000000_gtFine_labelTrainIds.png',
        'ade/ADEChallengeData2016/images/training/ADE_train_00000001.jpg',
        'ade/ADEChallengeData2016/annotations/validation/ADE_val_00000004.png',
    } <= names
    assert len(names) == (TRAIN + VAL) * (1 + 3 + 2) + 2 + 3


def test_a_set_that_is_there_is_kept(tmp_path, capsys):
    make(tmp_path, '--layout', 'coco')
    before = (tmp_path / 'coco').stat()
    make(tmp_path, '--layout', 'coco', '--categories', 'digits')
    assert 'already there' in capsys.readouterr().out
    assert (tmp_path / 'coco').stat() == before


def test_only_force_replaces_another_set(tmp_path, capsys):
    make(tmp_path, '--layout', 'ade20k')
    before = files(tmp_path)
    other = [str(tmp_path), *BASE, '--layout', 'ade20k', '--seed', '7']
    refuse(other)
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'seed 0 instead of 7' in error and '--force' in error
    assert files(tmp_path) == before
    main(['make-scenes', *other, '--force'])
    assert files(tmp_path).keys() == before.keys() and files(tmp_path) != before


def test_a_foreign_folder_is_never_replaced(tmp_path, capsys):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco' / 'precious').touch()
    refuse([str(tmp_path), *BASE, '--force'])
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'was not made by this command' in error
    assert list(files(tmp_path)) == ['coco/precious']


def test_a_killed_run_leaves_no_set_and_the_next_run_cleans_up(tmp_path):
    command = [*PROGRAM, 'make-scenes', str(tmp_path), *BASE]
    process = subprocess.Popen([*command, '--train', '9000'], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob('*.jpg')) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert left and all(path.name.startswith('.') for path in left)
    make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['ade', 'cityscapes', 'coco']


@pytest.mark.parametrize(
    ('failure', 'status'), [(KeyboardInterrupt(), 130), (OSError(28, 'No space left on device'), 2)]
)
def test_a_failing_run_leaves_nothing(failure, status, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(layouts.Coco, 'finish', fail)
    refuse([str(tmp_path), *BASE], status)
    assert capsys.readouterr().err.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_a_failing_replacement_keeps_the_set(tmp_path, monkeypatch):
    make(tmp_path, '--layout', 'coco')
    before = files(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(layouts.Coco, 'finish', fail)
    other = [str(tmp_path), *BASE, '--layout', 'coco', '--seed', '9', '--force']
    refuse(other)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--layout', 'voc'], "'voc' (choose from"),
        (['--categories', 'voc'], "'voc' (choose from"),
        (['--train', '0'], "a whole number of at least 1 is allowed, got '0'"),
        (['--val', '-3'], "a whole number of at least 1 is allowed, got '-3'"),
        (['--val', 'many'], "a whole number of at least 1 is allowed, got 'many'"),
        (['--seed', '-1'], "a whole number of at least 0 is allowed, got '-1'"),
        (['--size', '63'], 'size 63: 64 to 2048 pixels are allowed'),
        (['--size', '160', '4096'], 'size 4096: 64 to 2048 pixels are allowed'),
        (['--size', '1', '2', '3'], '--size: one or two numbers are allowed, got 3'),
        (['--digits', '5', '2'], 'digits 5 2: 1 <= low <= high <= 20 is allowed'),
        (['--digit-size', '0.1', '0.9'], 'digit size 0.1 0.9: 0 < low <= high <= 0.7 is allowed'),
        (['--digit-size', '0.01', '0.2'], 'a digit is at least 12 pixels long'),
        (['--digit-size', 'nan', '0.2'], 'digit size nan 0.2: 0 < low <= high <= 0.7 is allowed'),
    ],
)
def test_a_bad_argument_is_one_line(args, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(['make-scenes', str(tmp_path / 'new'), *args])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and message in error
    assert not (tmp_path / 'new').exists()


def test_an_unusable_root_is_one_line(tmp_path, capsys):
    (tmp_path / 'file').touch()
    for root in (tmp_path / 'file', tmp_path / 'file' / 'below', Path('/proc/nowhere')):
        refuse([str(root), *BASE])
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and f'cannot write into {root}: ' in error


def test_the_record_holds_the_settings(data):
    record = json.loads((data / 'coco' / make_scenes.RECORD).read_text())
    assert (record['train'], record['val'], record['size']) == (TRAIN, VAL, [*SIZE])
    assert 'categories' not in json.loads((data / 'ade' / make_scenes.RECORD).read_text())


# --- variety --------------------------------------------------------------------------------------


def test_scenes_of_high_variety_differ_more_than_those_of_low():
    pixels = sources.Sources('train')

    def spread(variety: str) -> tuple[float, float]:
        options = compose.SceneOptions(size=SIZE, variety=variety)
        images = [compose.make_scene(pixels, options, 0, 'train', i).image for i in range(TRAIN)]
        return np.std([image.mean() for image in images]), np.std([i.std() for i in images])

    low, high = spread('low'), spread('high')
    assert high[0] > 2 * low[0] and high[1] > 2 * low[1]


def test_set_from_before_there_was_a_variety_is_of_medium_variety(tmp_path, capsys):
    root = make(tmp_path, '--layout', 'coco')
    record = root / 'coco/scenes.json'
    settings = json.loads(record.read_text())
    assert settings.pop('variety') == 'medium'
    record.write_text(json.dumps(settings))
    make(root, '--layout', 'coco')
    assert 'already there' in capsys.readouterr().out
    arguments = [str(root), *BASE, '--layout', 'coco', '--variety', 'low']
    refuse(arguments)
    assert 'variety medium instead of low' in capsys.readouterr().err
