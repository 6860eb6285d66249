"""Data sets: labelled images, wherever they come from."""

from .folders import FolderImages
from .labelled_images import ImageData, LabelledImages, Subset, spread

__all__ = ["FolderImages", "ImageData", "LabelledImages", "Subset", "spread"]
