"""An import location of mmdet's registry: our models are registered when this is imported, after mmdet's own."""

from .registry import register_host

register_host('mmdet')
