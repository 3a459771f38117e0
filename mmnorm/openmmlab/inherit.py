"""``_base_ = 'mmnorm::sn/NAME.py'``: configs of the zoo as parents of other people's."""

import functools
from importlib.util import find_spec

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from mmnorm.terminal import command
from mmnorm.zoo.rows import HOME

PREFIX = 'mmnorm::'


def install():
    """Have mmengine find ``mmnorm::`` in the folder of our configs; called once, by ``import mmnorm``.

    mmengine's own way looks into an installed distribution, and marks what it finds with the scope mmnorm, in which
    nothing of the config would be found: our configs are of the scope of mmdet or mmseg, as their children.
    """
    MODULE2PACKAGE.setdefault('mmnorm', 'mmnorm')  # for mmengine.hub.get_config
    # `_base_ = 'mmseg::...'` looks for a distribution that the onedl set does not carry; the module's own name does
    if find_spec('mmseg') is not None and not is_installed(MODULE2PACKAGE['mmseg']):
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    find = Config._get_cfg_path

    @functools.cache  # mmengine reads all metafiles of the package each time, which is most of what a config takes
    def find_in_package(cfg_path):
        return find(cfg_path, '')

    @functools.wraps(find)
    def get_cfg_path(cfg_path, filename):
        if not cfg_path.startswith(PREFIX):
            return find_in_package(cfg_path) if '::' in cfg_path else find(cfg_path, filename)
        path = HOME / 'configs' / cfg_path.removeprefix(PREFIX)
        if not path.is_file():
            raise FileNotFoundError(
                f'{filename} inherits {cfg_path}, but {HOME / "configs"} has no such file: '
                f'{command("zoo")} list shows the configs'
            )
        return str(path), None

    Config._get_cfg_path = staticmethod(get_cfg_path)
