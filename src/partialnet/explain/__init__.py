"""Seeing what a network sees: class activation maps, gates and attention, and how faithful the maps are."""

from .boxes import PointingGame, play_pointing_game, read_boxes
from .cam import METHODS, ClassMap, Explainer
from .gates import Gates, read_gates
from .layers import TargetLayer, target_layers
from .scores import Scores, deletion_and_insertion

__all__ = [
    "METHODS",
    "ClassMap",
    "Explainer",
    "Gates",
    "PointingGame",
    "Scores",
    "TargetLayer",
    "deletion_and_insertion",
    "play_pointing_game",
    "read_boxes",
    "read_gates",
    "target_layers",
]
