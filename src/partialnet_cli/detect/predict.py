"""``partialnet detect predict``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import click
from tqdm import tqdm

from partialnet.errors import UserError
from partialnet.files import distinct_files, refuse_read_only
from partialnet.images import find_images, write_png
from partialnet.text_width import in_one_line

from ..failures import fail
from ..options import FloatRange, IntRange, device_option, output_folder
from ..results import Results, make_folder, result_options


@click.command()
@click.argument("source")
@click.argument("images", nargs=-1, required=True)
@click.option("--min-score", type=FloatRange(0, 1), default=0.5, help="Leave out objects that score lower.")
@click.option(
    "--nms",
    type=FloatRange(0, 1),
    metavar="IOU",
    help="Of two boxes of one category that overlap more, leave out the less sure one.  [default: the detector's, 0.5]",
)
@click.option(
    "--max-objects", type=IntRange(min=1), help="Objects on an image at most.  [default: the detector's, 100]"
)
@device_option
@output_folder("Folder for the pictures.", default="detections")
@result_options(json="one object a line for each image")
def predict(
    source: str,
    images: tuple[str, ...],
    min_score: float,
    nms: float | None,
    max_objects: int | None,
    device: str | None,
    output: Path,
    results: Results,
) -> None:
    """Find the objects in IMAGES and draw them: boxes, masks, names and scores.

    SOURCE is a detector's run folder, its model.safetensors, or an exported .onnx or .xml file. IMAGES are files,
    folders (searched recursively) and quoted glob patterns. Images that cannot be read are reported at the end, and the
    exit code is then 2; all others are drawn.

    Example: partialnet detect predict runs/boxes photos/ -o drawn
    """
    from partialnet.detection.prediction import detect
    from partialnet.detection.sources import open_detector
    from partialnet.sources import device_for, is_exported

    paths = find_images(images)
    results.spare(source, *paths)
    pictures = distinct_files(output, [path.stem for path in paths], ".png")
    # unlike Path.resolve, which refuses links in a circle; those are reported with the other images that cannot be read
    if overwritten := set(map(os.path.realpath, paths)) & set(map(os.path.realpath, pictures)):
        raise UserError(f"The pictures would replace {min(overwritten)!r}; name another folder with -o.")
    refuse_read_only(*pictures)
    where = device_for(source, device)
    exported = is_exported(source)
    if exported and (nms is not None or max_objects is not None):
        raise UserError(
            f"{source!r} is an exported file, whose choice of boxes is a part of it; give the run it came from to use "
            "--nms or --max-objects."
        )
    detector = open_detector(source)
    if not exported:
        detector.choose(min_score, nms, max_objects)
    elif min_score < detector.score_thresh:
        click.echo(
            f"Warning: {source} gives no objects with scores below {detector.score_thresh:g}, a limit within the file; "
            "give the run it came from to see them.",
            err=True,
        )
    if not detector.folded:
        detector = detector.fold()
    make_folder(output)
    unreadable: list[UserError] = []
    detections = detect(detector, paths, min_score, where)
    for path, picture, result in tqdm(
        zip(paths, pictures, detections, strict=True),
        total=len(paths),
        desc="detecting",
        unit="image",
        delay=2,
        disable=None,
    ):
        if isinstance(result, UserError):
            unreadable.append(result)
            continue
        write_png(picture, result.draw())
        objects = [found.as_json() for found in result.objects]
        results.add_line({"image": str(path), "picture": str(picture), "objects": objects})
        counts = Counter(found.category for found in result.objects)
        named = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
        results.say(f"{in_one_line(str(path))}   {named}   → {in_one_line(str(picture))}")
    num_drawn = len(paths) - len(unreadable)
    results.add_pictures(num_drawn, output)
    results.write_lines()
    results.finish("add --min-score 0.3 to see more objects, less sure." if num_drawn and min_score > 0.3 else None)
    if unreadable:
        fail([*unreadable, f"{len(unreadable)} of {len(paths)} images could not be read."])
