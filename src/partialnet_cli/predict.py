"""``partialnet predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from partialnet.errors import UserError
from partialnet.images import find_images
from partialnet.text_width import in_one_line

from .failures import fail
from .options import IntRange, device_option
from .results import Results, result_options

if TYPE_CHECKING:
    from partialnet.prediction import Prediction


@click.command()
@click.argument("source")
@click.argument("images", nargs=-1, required=True)
@click.option("-k", "--topk", type=IntRange(min=1), default=5, help="Classes to print.")
@click.option("-b", "--batch-size", type=IntRange(min=1), default=16, help="Images at a time.")
@device_option
@result_options(json="one object a line for each image")
def predict(
    source: str,
    images: tuple[str, ...],
    topk: int,
    batch_size: int,
    device: str | None,
    results: Results,
) -> None:
    """Classify IMAGES with SOURCE.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, or an
    exported .onnx, .xml or .tflite file. IMAGES are files, folders (searched recursively) and quoted glob patterns.
    Images that cannot be read, or to which the network answers NaN, are reported at the end, and the exit code is then
    2; all others are classified.

    Example: partialnet predict runs/demo photos/ "more/*.png" --topk 3
    """
    from partialnet.prediction import Classifier
    from partialnet.sources import device_for, open_source

    paths = find_images(images)
    results.spare(source, *paths)
    classifier = Classifier(open_source(source, trained=True), device_for(source, device))
    failures: list[UserError] = []
    # results that scroll by on a terminal are progress enough; a bar is for output that goes elsewhere
    hide_bar = True if sys.stdout.isatty() else None
    predictions = classifier.predict(paths, topk, batch_size)
    for path, result in tqdm(predictions, total=len(paths), desc="predicting", unit="image", delay=2, disable=hide_bar):
        if isinstance(result, UserError):
            failures.append(result)
            continue
        classes = [{"class": name, "probability": probability} for name, probability in result.classes]
        results.add_line({"image": str(path), "classes": classes})
        results.say(_as_text(path, result))
    results.write_lines()
    results.finish()
    if failures:
        fail([*failures, f"{len(failures)} of {len(paths)} images could not be classified."])


def _as_text(path: Path, result: Prediction) -> str:
    best = "   ".join(f"{name} {probability:.1%}" for name, probability in result.classes)
    return f"{in_one_line(str(path))}   {best}"
