from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version: dict = {}
exec((here / 'sn_mm' / 'version.py').read_text(encoding='utf-8'), version)

# mmdet and mmsegmentation do not declare mmcv, and refuse 2.2.
openmmlab = ['mmengine>=0.10', 'mmcv>=2.0.0,<2.2']

setup(
    name='sn_mm',
    version=version['__version__'],
    description='Switchable Normalization for MMEngine, MMDetection and MMSegmentation',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    keywords='switchable normalization, pytorch, mmdetection, mmsegmentation',
    packages=find_packages(include=['sn_mm', 'sn_mm.*']),
    package_data={'sn_mm': ['py.typed', 'ops/cpu/kernels.c']},
    python_requires='>=3.9',
    install_requires=['torch>=2.1'],
    extras_require={
        'det': [*openmmlab, 'mmdet>=3.3'],
        # mmsegmentation's models import ftfy and regex without declaring them.
        'seg': [*openmmlab, 'mmsegmentation>=1.2', 'ftfy', 'regex'],
        'cls': [*openmmlab, 'mmpretrain>=1.2'],
        'video': [*openmmlab, 'mmaction2>=1.2'],
        'demo': ['mmengine>=0.10', 'mlxtend', 'scikit-image'],
        'export': ['onnx', 'onnxruntime'],
        # onnxscript: torch's newer ONNX exporter. triton: the kernels for CUDA, without a GPU.
        'test': [
            'pytest',
            'pytest-timeout',
            'hypothesis',
            'ruff',
            'mypy',
            'onnxscript',
            'psutil',
            'triton; platform_system == "Linux"',
        ],
    },
    zip_safe=False,
)
