"""Exact folding for inference: of layers that can fold themselves, and of every BatchNorm of any network."""

from .fold import fold

__all__ = ["fold"]
