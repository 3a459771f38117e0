"""An import location of mmseg's registry: our models are registered when this is imported, after mmseg's own."""

from .registry import register_host

register_host('mmseg')
