"""What may be wrong with files of annotations, counted and described in sentences.

Each fault is mended or left out, so that whatever comes out can be learnt from.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: What may be wrong, each as (of one, of several), with what was done about it.
FAULTS = {
    "annotation file": (
        "annotation file is missing or cannot be read and is left out with its image",
        "annotation files are missing or cannot be read and are left out with their images",
    ),
    "image entry": (
        "entry of the image list lacks a whole number as its id or a file name and is left out",
        "entries of the image list lack a whole number as their id or a file name and are left out",
    ),
    "duplicate image": (
        "image has the id of an earlier one and is left out",
        "images have the id of an earlier one and are left out",
    ),
    "missing image": ("listed image is missing and left out", "listed images are missing and left out"),
    "shared file": (
        "entry of the image list shares its file with others, as their folders are not there, and is left out",
        "entries of the image list lead to one file with others, as their folders are not there, and are left out",
    ),
    "repeated file": (
        "entry of the image list has the file of an earlier one; both are kept, each with its own objects",
        "entries of the image list have the files of earlier ones; all are kept, each with its own objects",
    ),
    "unreadable image": (
        "image whose size is not given cannot be read and is left out",
        "images whose sizes are not given cannot be read and are left out",
    ),
    "annotation entry": (
        "entry of the annotations is no annotation and is left out",
        "entries of the annotations are no annotations and are left out",
    ),
    "pixels": (
        "object has numbers as large as pixels, not shares of its image's width and height, and is left out",
        "objects have numbers as large as pixels, not shares of their images' widths and heights, and are left out",
    ),
    "unknown image": (
        "annotation belongs to an image that is not listed and is left out",
        "annotations belong to images that are not listed and are left out",
    ),
    "unknown category": (
        "annotation has an unknown category and is left out",
        "annotations have an unknown category and are left out",
    ),
    "duplicate annotation": (
        "annotation has the id of an earlier one; it is kept",
        "annotations have the id of an earlier one; they are kept",
    ),
    "box numbers": (
        "box is not four usable numbers and is left out",
        "boxes are not four usable numbers and are left out",
    ),
    "empty box": ("box has no area and is left out", "boxes have no area and are left out"),
    "box outside": (
        "box lies outside its image and is left out",
        "boxes lie outside their images and are left out",
    ),
    "box cut": (
        "box reaches outside its image and is cut at the edge for training",
        "boxes reach outside their images and are cut at the edge for training",
    ),
    "polygon": (
        "object has polygons of fewer than three points or without usable numbers, which are left out",
        "objects have polygons of fewer than three points or without usable numbers, which are left out",
    ),
    "run lengths": (
        "object has run lengths that do not fit its image and are left out",
        "objects have run lengths that do not fit their images and are left out",
    ),
    "no outline": (
        "object has no usable outline; its box stands in for its mask",
        "objects have no usable outline; their boxes stand in for their masks",
    ),
    "crowd": (
        "crowd or difficult object is not learnt; evaluation counts it neither as found nor as missed",
        "crowds or difficult objects are not learnt; evaluation counts them neither as found nor as missed",
    ),
}
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Fault:
    """One kind of fault of a data set.

    Attributes:
        kind: A key of ``FAULTS``.
        count: How often it was found.
        examples: Names of some of the images.
    """

    kind: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.count:,} {FAULTS[self.kind][self.count > 1]}"
        return f"{text} ({', '.join(self.examples)}{', …' if self.count > len(self.examples) else ''})."


class FaultCounter:
    """Counts faults while a file is read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def add(self, kind: str, example: object) -> None:
        """Count one fault, a key of ``FAULTS``, of the image or entry ``example``."""
        self.counts[kind] += 1
        if len(self.examples[kind]) < _NUM_EXAMPLES:
            self.examples[kind][shortened(example)] = None

    def forget(self, kind: str) -> None:
        """Take back what was counted of a kind, as it is no fault after all."""
        del self.counts[kind]

    def faults(self) -> tuple[Fault, ...]:
        """In the order of ``FAULTS``."""
        return tuple(Fault(kind, self.counts[kind], tuple(self.examples[kind])) for kind in FAULTS if self.counts[kind])


def faults_as_json(faults: Sequence[Fault]) -> dict[str, dict[str, Any]]:
    """Number and examples of each kind of fault."""
    return {fault.kind: {"count": fault.count, "examples": list(fault.examples)} for fault in faults}


def shortened(value: object) -> str:
    """A value of the file as it may stand in a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 60 else f"{text[:59]}…"
