"""Measuring: contestants timed in turn in one process, with the environment that the figures hold for."""

from .environment import environment
from .timing import Timing, interleave

__all__ = ["Timing", "environment", "interleave"]
