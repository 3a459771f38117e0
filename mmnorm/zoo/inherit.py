"""``_base_ = 'mmnorm::sn/NAME.py'``: configs of the zoo as parents of other people's."""
import functools

from mmengine.config import Config

from .rows import HOME

PREFIX = 'mmnorm::'


def install():
    """Have mmengine find ``mmnorm::`` in the folder of our configs; called once, by ``import mmnorm``.

    mmengine's own way looks into an installed distribution, and marks what it finds with the scope mmnorm, in which
    nothing of the config would be found: our configs are of the scope of mmdet or mmseg, as their children.
    """
    find = Config._get_cfg_path

    @functools.wraps(find)
    def get_cfg_path(cfg_path, filename):
        if not cfg_path.startswith(PREFIX):
            return find(cfg_path, filename)
        path = HOME / 'configs' / cfg_path.removeprefix(PREFIX)
        if not path.is_file():
            raise FileNotFoundError(f'{filename} inherits {cfg_path}, but {HOME / "configs"} has no such file: '
                                    'tools/zoo.py list shows the configs')
        return str(path), None

    Config._get_cfg_path = staticmethod(get_cfg_path)
