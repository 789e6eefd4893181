"""tools/setup_env.sh, with a pip, a torch and a compiler that only pretend."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason='the pinned packages need Python 3.11'
)

# Records what it is asked, and does what setup_env.sh then relies on. $FAKE_PIP names an argument
# and what happens when it is met: "mmdet:fail", "torch:hang", "FORCE_CUDA=1:fail".
FAKE_PIP = """
import os, pathlib, sys, time
args = sys.argv[1:] + [f'{name}={os.environ.get(name)}' for name in ('FORCE_CUDA', 'CFLAGS')]
site = pathlib.Path(__file__).parents[1]
with open(os.environ['FAKE_PIP_LOG'], 'a') as log:
    print(*args, file=log)
name, _, event = os.environ.get('FAKE_PIP', ':').partition(':')
if name in args:
    if event == 'hang':
        (site / 'half-1.dist-info').mkdir()
        time.sleep(60)
    sys.exit('no matching distribution')
if 'wheel' in args and '-w' in args:
    folder = pathlib.Path(args[args.index('-w') + 1])
    folder.mkdir(parents=True)
    (folder / 'mmcv-2.1.0-py3-none-any.whl').write_text('')
for module in ('cv2', 'mmcv', 'mmcv/ops', 'mmdet', 'mmseg', 'timm', 'sn_mm'):
    (site / module).mkdir(exist_ok=True)
"""
FAKE_TORCH = """
import os
__version__ = '{version}'
class version:
    cuda = os.environ.get('FAKE_CUDA')
class cuda:
    device_count = lambda: 1
    get_device_capability = lambda index: (9, 0)
"""
FAKE_EXTENSION = """
import os
CUDA_HOME = os.environ.get('FAKE_CUDA_HOME')
def include_paths(): return ['/torch/include']
"""
FAKE_CXX = """#!/bin/sh
case "$*" in
    --version) echo "c++ (Pretender) 12.3.4"; exit ;;
    *c++-header*) exit ${FAKE_CXX_STATUS:-0} ;;
esac
"""


class Checkout:
    """A copy of what the set-up reads, and environments with the pretenders."""

    def __init__(self, folder):
        self.folder = folder
        self.tools = folder / 'checkout' / 'tools'
        self.tools.mkdir(parents=True)
        (self.tools / 'misc').mkdir()
        for name in ('setup_env.sh', 'misc/mend_packages.py'):
            shutil.copy(ROOT / 'tools' / name, self.tools / name)
        for name in ('constraints.txt', 'pyproject.toml', 'setup.py'):
            shutil.copy(ROOT / name, self.tools.parent)
        self.cxx = folder / 'c++'
        self.cxx.write_text(FAKE_CXX)
        self.cxx.chmod(0o755)
        self.cache = folder / 'cache' / 'sn_mm'
        self.pip_log = folder / 'pip.log'

    def make_env(self, name, torch='2.13.0'):
        env = self.folder / name
        subprocess.run([sys.executable, '-m', 'venv', '--without-pip', env], check=True)
        site = site_packages(env)
        for path, text in {
            'pip/__main__.py': FAKE_PIP,
            'torch/__init__.py': FAKE_TORCH.format(version=torch),
            'torch/utils/cpp_extension.py': FAKE_EXTENSION,
        }.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        return env

    def start(self, python, **variables):
        return subprocess.Popen(
            ['bash', self.tools / 'setup_env.sh'],
            env={
                **os.environ,
                'PYTHONPATH': '',  # the pretenders, not what is on it
                'SN_MM_PYTHON': str(python),
                'XDG_CACHE_HOME': str(self.cache.parent),
                'CXX': str(self.cxx),
                'FAKE_PIP_LOG': str(self.pip_log),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Where the tests run in the background, SIGINT is ignored, and so inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, env, **variables):
        """Exit code, stdout, stderr and the pip commands of one set-up."""
        self.pip_log.write_text('')
        process = self.start(env / 'bin' / 'python', **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err, self.pip_log.read_text().splitlines()

    def start_and_hang(self, env, package):
        """A set-up in the midst of installing or building ``package``, and what is half there."""
        process = self.start(env / 'bin' / 'python', FAKE_PIP=f'{package}:hang')
        half_installed = site_packages(env) / 'half-1.dist-info'
        while not half_installed.exists():
            assert process.poll() is None
            time.sleep(0.02)
        return process, half_installed


def site_packages(env):
    (folder,) = env.glob('lib/python*/site-packages')
    return folder


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.fixture
def env(checkout):
    return checkout.make_env('env')


def built(commands):
    return [command for command in commands if '--no-input wheel ' in command]


def test_prints_the_python_alone_on_stdout(checkout, env):
    code, out, err, _ = checkout.run(env)
    assert code == 0, err
    assert out == f'{env}/bin/python\n'
    assert err.splitlines()[-1].endswith(
        f'ready; to have it as python in this shell: source {env}/bin/activate'
    )


def test_second_run_does_nothing_and_takes_no_time(checkout, env):
    checkout.run(env)
    begin = time.monotonic()
    code, out, err, commands = checkout.run(env)
    assert time.monotonic() - begin < 5
    assert (code, out, err, commands) == (0, f'{env}/bin/python\n', '', [])


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'constraints.txt',
        'pyproject.toml',
        'setup.py',
        'tools/setup_env.sh',
        'tools/misc/mend_packages.py',
    ],
)
def test_a_change_sets_up_again_and_keeps_the_wheel(checkout, env, name):
    checkout.run(env)
    with open(checkout.tools.parent / name, 'a') as file:
        file.write('# changed\n')
    code, _, err, commands = checkout.run(env)
    assert code == 0, err
    assert commands and not built(commands)


@pytest.mark.slow
def test_second_environment_takes_the_cached_wheel(checkout, env):
    assert len(built(checkout.run(env)[3])) == 1
    code, _, err, commands = checkout.run(checkout.make_env('other'))
    assert code == 0, err
    assert commands and not built(commands)


@pytest.mark.slow
def test_wheel_is_kept_by_versions_and_compiler(checkout, env):
    checkout.run(env)
    (kept,) = checkout.cache.iterdir()
    python = 'cpython-{}{}'.format(*sys.version_info[:2])
    for part in ('mmcv-2.1.0', 'torch-2.13.0', python, os.uname().machine, 'cpu', '12.3.4'):
        assert part in kept.name

    assert built(checkout.run(checkout.make_env('other', torch='2.14.0'))[3])
    checkout.cxx.write_text(FAKE_CXX.replace('12.3.4', '13.0.0'))
    assert built(checkout.run(checkout.make_env('third'))[3])
    assert len(list(checkout.cache.iterdir())) == 3


def test_wheel_is_built_with_the_precompiled_header(checkout, env):
    (command,) = built(checkout.run(env)[3])
    assert '-include' in command and '-Werror=invalid-pch' in command


def test_another_compiler_falls_back_to_the_plain_build_and_says_so(checkout, env):
    code, _, err, commands = checkout.run(env, FAKE_CXX_STATUS='1')
    assert code == 0, err
    assert 'plain build' in err
    (command,) = built(commands)
    assert '-include' not in command


@pytest.fixture
def cuda(tmp_path):
    nvcc = tmp_path / 'cuda' / 'bin' / 'nvcc'
    nvcc.parent.mkdir(parents=True)
    nvcc.touch(0o755)
    return {'FAKE_CUDA': '13.0', 'FAKE_CUDA_HOME': str(tmp_path / 'cuda')}


def test_cuda_torch_with_nvcc_builds_the_cuda_operators(checkout, env, cuda):
    code, _, err, commands = checkout.run(env, **cuda)
    assert code == 0, err
    (command,) = built(commands)
    assert 'FORCE_CUDA=1' in command
    (kept,) = checkout.cache.iterdir()
    assert 'cuda13.0-90' in kept.name


def test_cuda_torch_without_nvcc_builds_the_cpu_operators(checkout, env):
    (command,) = built(checkout.run(env, FAKE_CUDA='13.0')[3])
    assert 'FORCE_CUDA=0' in command


def test_cuda_operators_that_do_not_compile_are_replaced_and_said_so(checkout, env, cuda):
    code, _, err, commands = checkout.run(env, FAKE_PIP='FORCE_CUDA=1:fail', **cuda)
    assert code == 0, err
    assert 'CUDA operators did not compile' in err
    (kept,) = checkout.cache.iterdir()
    assert 'cpu' in kept.name


def test_opencv_without_libgl_gives_way_to_the_headless_one(checkout, env):
    opencv = site_packages(env) / 'cv2' / '__init__.py'
    opencv.parent.mkdir()
    opencv.write_text("raise ImportError('libGL.so.1')")
    code, _, err, commands = checkout.run(env)
    assert code == 0, err
    assert 'headless' in err
    assert any('opencv-python-headless' in command for command in commands)


@pytest.mark.slow
@pytest.mark.parametrize('package', ['torch', 'mmdet', 'mmcv'])
def test_failure_is_reported_and_repaired(checkout, env, package):
    code, out, err, _ = checkout.run(env, FAKE_PIP=f'{package}:fail')
    assert code != 0 and out == ''
    assert f'{env}/sn_mm-setup.log' in err
    assert 'no matching distribution' in err
    code, _, err, _ = checkout.run(env)
    assert code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize('package', ['torch', 'mmcv', '.[det,seg]'])
def test_killed_run_is_continued(checkout, env, package):
    process, half_installed = checkout.start_and_hang(env, package)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    code, _, err, commands = checkout.run(env)
    assert code == 0, err
    assert commands and not half_installed.exists()
    assert not (checkout.cache / 'building').exists()


@pytest.mark.parametrize('package', ['torch', 'mmdet', 'mmcv'])
def test_interrupt_ends_everything_in_one_line(checkout, env, package):
    process, _ = checkout.start_and_hang(env, package)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and out == ''
    assert 'run it again to continue' in err.splitlines()[-1]
    # The lock goes with the last process that has it.
    assert subprocess.run(['flock', '-w', '5', env, 'true']).returncode == 0


@pytest.mark.slow
def test_runs_at_the_same_time_build_once(checkout, env):
    checkout.pip_log.write_text('')
    processes = [checkout.start(env / 'bin' / 'python') for _ in range(3)]
    processes.append(checkout.start(checkout.make_env('other') / 'bin' / 'python'))
    assert [process.wait(60) for process in processes] == [0] * 4
    for process in processes:
        process.communicate()
    assert len(built(checkout.pip_log.read_text().splitlines())) == 1


def test_python_that_does_not_exist_is_one_line(checkout):
    process = checkout.start(checkout.folder / 'nowhere' / 'python')
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and out == ''
    assert len(err.splitlines()) == 1 and 'nowhere/python is not a python' in err


def test_python_too_old_is_one_line(checkout):
    old = checkout.folder / 'old'
    old.write_text(f"""#!/bin/sh
case "$2" in
    *exit*) exit 1 ;;
    *) printf '3.9.18\\n{checkout.folder}\\n{old}\\n' ;;
esac
""")
    old.chmod(0o755)
    process = checkout.start(old)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and out == ''
    assert len(err.splitlines()) == 1 and '3.9.18' in err and '3.11' in err


def test_missing_compiler_is_one_line(checkout, env):
    code, out, err, commands = checkout.run(env, CXX='no-such-compiler')
    assert code != 0 and out == '' and not commands
    assert len(err.splitlines()) == 1 and 'no-such-compiler' in err
