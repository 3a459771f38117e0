"""An import location of mmpretrain's registry: our models are registered when this is imported, after mmpretrain's."""

from .registry import register_host

register_host('mmpretrain')
