"""What int8 costs in accuracy: trained networks exported in fp32 and int8, on test images that calibration never saw.

    python benchmarks/int8_accuracy.py [--digits RUN] [--cifar FOLDER --cifar-run RUN]

Without --digits the demo's network is trained first, which takes about two minutes. FOLDER holds CIFAR-10 as
train/<class>/ and test/<class>/, RUN is a run folder trained on its train part. int8 is calibrated with 300 training
images. Writes benchmarks/results/int8_accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from partialnet.data.digits import digits

from partialnet.bench import environment
from partialnet.checkpoint import Checkpoint, load
from partialnet.data import FolderImages, LabelledImages, spread
from partialnet.demo import run_demo
from partialnet.deploy.export import SUFFIXES, export
from partialnet.deploy.photos import CALIBRATION_IMAGES
from partialnet.deploy.runtimes import load_exported
from partialnet.deploy.verify import compare_accuracy
from partialnet.evaluation import evaluate


def measure(checkpoint: Checkpoint, train: FolderImages, test: LabelledImages) -> list[dict]:
    numbers = spread(np.arange(len(train)), CALIBRATION_IMAGES)
    calibration = [train.root / train.name(number) for number in numbers.tolist()]
    original = evaluate(checkpoint, test, progress=True)
    rows = []
    for format in ("onnx", "openvino"):
        for precision in ("fp32", "int8"):
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / f"network{SUFFIXES[format]}"
                exported = export(checkpoint, output, format, precision, calibration=calibration)
                evaluation = evaluate(load_exported(output), test, progress=True)
            accuracy = compare_accuracy(original, evaluation, held_out=True)
            rows.append({"format": format, "precision": precision, "size_mb": exported.size_mb, **asdict(accuracy)})
            print(
                f"{format:9} {precision}  {exported.size_mb:5.1f} MB  accuracy {accuracy.exported:.2%} "
                f"({accuracy.difference * 100:+.2f} points)  same class {accuracy.agreement:.2%}",
                flush=True,
            )
    return rows


def write_digits(folder: Path) -> None:
    """The demo's training and test images as folders of classes."""
    split = digits()
    for part, dataset in (("train", split.train), ("test", split.test)):
        for number, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            place = folder / part / split.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:04d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, metavar="RUN", help="run folder of `partialnet demo`")
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="CIFAR-10 as train/<class>/ and test/<class>/")
    parser.add_argument("--cifar-run", type=Path, metavar="RUN", help="run folder trained on its train part")
    arguments = parser.parse_args()
    if (arguments.cifar is None) != (arguments.cifar_run is None):
        parser.error("--cifar and --cifar-run are given together")
    results = {}
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace)
        write_digits(folder / "digits")
        run = arguments.digits or run_demo(folder / "run").folder
        tasks = {"digits": (load(run), folder / "digits")}
        if arguments.cifar is not None:
            tasks["cifar10"] = (load(arguments.cifar_run), arguments.cifar)
        for name, (checkpoint, data) in tasks.items():
            print(f"{name}, {checkpoint.architecture} at {checkpoint.input_config['input_size'][1:]}", flush=True)
            results[name] = {
                "architecture": checkpoint.architecture,
                "input_size": list(checkpoint.input_config["input_size"]),
                "calibration_images": CALIBRATION_IMAGES,
                "rows": measure(checkpoint, FolderImages(data / "train"), FolderImages(data / "test")),
            }
    path = Path(__file__).parent / "results" / "int8_accuracy.json"
    path.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
