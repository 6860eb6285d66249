"""Networks; importing this package registers PartialNet's variants with timm."""

from .partialnet import PartialNet

__all__ = ["PartialNet"]
