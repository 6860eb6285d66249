"""PATConv in other networks: instead of their convolutions, or before the expansion of their blocks."""

from .convolutions import Surgery, convert, replace_convs

__all__ = ["Surgery", "convert", "replace_convs"]
