"""Recipes for training detectors, as YAML files; see ``partialnet.training.recipes``."""
