"""Measuring: contestants timed in turn in one process, with the environment in which the figures hold."""

from .environment import environment
from .timing import Timing, interleave

__all__ = ["Timing", "environment", "interleave"]
