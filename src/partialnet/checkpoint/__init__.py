"""Networks as files: checkpoints of classifiers, others' files, and where weights come from."""

from .classifier import Checkpoint, create_checkpoint, load

__all__ = ["Checkpoint", "create_checkpoint", "load"]
