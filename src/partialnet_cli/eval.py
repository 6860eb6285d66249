"""``partialnet eval``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from partialnet.data import FolderImages, LabelledImages, Subset, spread
from partialnet.files import write_csv
from partialnet.text_width import left_aligned, text_width

from .failures import tell_left_out
from .next_command import same_command
from .options import IntRange, device_option
from .results import Results, result_options

if TYPE_CHECKING:
    from partialnet.evaluation import Evaluation
    from partialnet.prediction import Classifier

#: More classes than this are summed up by the worst of them.
_ALL_CLASSES = 30
_WORST_CLASSES = 10
_COLUMNS = ("path", "label", "predicted", "probability")


@click.command("eval")
@click.argument("source")
@click.argument("data")
@click.option("--split", metavar="NAME", help="Part of DATA, such as test.  [default: val or test, where there is one]")
@click.option("-b", "--batch-size", type=IntRange(min=1), default=32, help="Images at a time.")
@click.option("-w", "--workers", type=IntRange(min=0), help="Data-loading workers.  [default: by images and cores]")
@device_option
@click.option("--limit", type=IntRange(min=1), metavar="N", help="Take N images only, evenly over the data.")
@result_options(json="all figures", csv="one row for each image as CSV", confusion="the confusion matrix as PNG")
def evaluate(
    source: str,
    data: str,
    split: str | None,
    batch_size: int,
    workers: int | None,
    device: str | None,
    limit: int | None,
    results: Results,
) -> None:
    """Measure the accuracy of SOURCE on the labelled images of DATA.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, or an
    exported .onnx, .xml or .tflite file. DATA is a folder with one folder of images for each class, named like the
    network's classes, in any order; a folder that contains such folders as val or test; or any other DATA of
    `partialnet train`, of which the held-out part is taken. Images that cannot be read are left out and reported.

    Example: partialnet eval runs/flowers flowers/val --csv answers.csv
    """
    from partialnet.bench.environment import environment
    from partialnet.data.evaluation_parts import evaluation_folder, evaluation_part, num_learnt
    from partialnet.data.sources import is_folder
    from partialnet.evaluation import evaluate as run_evaluation
    from partialnet.evaluation import match_classes
    from partialnet.prediction import Classifier
    from partialnet.sources import device_for, open_source

    results.spare(source, data)
    images: LabelledImages
    if is_folder(data):
        folder = evaluation_folder(data, split)
        images, evaluated = FolderImages(folder), str(folder)
        checkpoint = open_source(source, trained=True)
        notes = []
        if folder != Path(data):
            notes.append(f"Evaluating {folder}, a part of {data}; --split takes another.")
        elif learnt := num_learnt(data, checkpoint.training):
            notes.append(f"Warning: the network learnt from {learnt} of these {len(images)} images.")
    else:
        checkpoint = open_source(source, trained=True)
        images, evaluated = evaluation_part(data, split, checkpoint.training)
        notes = [f"Evaluating {evaluated}."]
    classifier = Classifier(checkpoint, device_for(source, device))
    match_classes(images, classifier)
    notes += _notes(images.class_names, classifier)
    if limit is not None and limit < len(images):
        notes.append(f"{limit} of {len(images)} images are taken, evenly over the data.")
        images = Subset(images, spread(np.arange(len(images)), limit))
    for note in notes:
        click.echo(note, err=True)
    workers = _default_workers(len(images)) if workers is None else workers
    result = run_evaluation(classifier, images, batch_size, workers, progress=True)
    results.say(_as_text(result))
    _warn(result)
    results.write_json({"network": source, "data": evaluated, **result.as_dict(), "environment": environment()})
    results.write("csv", lambda path: write_csv(path, result.rows(images), _COLUMNS))
    if np.any(result.predicted >= 0):
        results.write("confusion", lambda path: _draw_confusion(path, result))
    elif results.files["confusion"] is not None:
        click.echo("Warning: no answer is a number, so there are no confusions to draw.", err=True)
    every_answer = same_command("--csv", "answers.csv", "--confusion", "confusion.png")
    results.finish(None if results.written else f"{every_answer}   (shows every answer)")


def _notes(found: tuple[str, ...], classifier: Classifier) -> list[str]:
    """What was decided for the user about the classes."""
    notes = []
    if not classifier.names_known:
        notes.append(
            "The network does not name its classes: they are taken for those of the data in the order of their names."
        )
    elif len(found) < len(classifier.class_names):
        notes.append(f"The data has {len(found)} of the network's {len(classifier.class_names)} classes.")
    return notes


def _default_workers(num_images: int) -> int:
    """None for few images, which are read before processes have started; else a process for each core but one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if num_images < 500 else min(cores - 1, 8)


def _as_text(result: Evaluation) -> str:
    lines = [f"{result.top1:7.2%}  right, top 1: {result.num_right} of {result.num_images} images"]
    if result.top5 is not None:
        lines.append(f"{result.top5:7.2%}  right, top 5")
    lines.append(f"{result.calibration_error:7.2%}  expected calibration error")
    lines.append(f"{result.images_per_second:7.0f}  images/s, with reading them ({result.seconds:.1f} s)")
    classes = result.classes
    shown = classes
    if len(classes) > _ALL_CLASSES:
        shown = tuple(sorted(classes, key=lambda item: item.accuracy)[:_WORST_CLASSES])
        lines.append(f"\nThe {_WORST_CLASSES} worst of {len(classes)} classes:")
    width = max(5, *(text_width(item.name) for item in shown))
    lines.append(f"\n{'class':{width}}  images  accuracy  most often taken for")
    for item in shown:
        taken = f"{item.confused_with} ({item.num_confused})" if item.confused_with is not None else ""
        lines.append(f"{left_aligned(item.name, width)}  {item.num_images:6}  {item.accuracy:8.1%}  {taken}".rstrip())
    return "\n".join(lines)


def _warn(result: Evaluation) -> None:
    if result.num_not_finite:
        click.echo(f"Warning: {result.num_not_finite} answers are not numbers (NaN); they count as wrong.", err=True)
    tell_left_out(result.unreadable.values())


def _draw_confusion(path: Path, result: Evaluation) -> None:
    from partialnet.plots import confusion_matrix

    answered = result.predicted >= 0
    labels, predicted = result.labels[answered], result.predicted[answered]
    # classes that neither occur nor are predicted would be empty rows and columns
    shown = np.union1d(labels, predicted)
    names = [result.class_names[index] for index in shown]
    rows, columns = (np.searchsorted(shown, part).tolist() for part in (labels, predicted))
    title = f"{result.num_right} of {result.num_images} images right ({result.top1:.1%})"
    confusion_matrix(path, rows, columns, names, title)
