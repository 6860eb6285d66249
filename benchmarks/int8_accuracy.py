"""What int8 costs in accuracy: trained networks exported in fp32 and int8, on test images that calibration never saw.

    python benchmarks/int8_accuracy.py [--digits RUN] [--task NAME FOLDER RUN]…

Without --digits the demo trains its network first, in about a minute. FOLDER holds images as train/<class>/ and
val/<class>/ or test/<class>/, RUN is a run folder trained on its train part. int8 is calibrated with 300 training
images. Writes benchmarks/results/int8_accuracy.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from result_file import result_file, result_parser

from partialnet.bench import environment
from partialnet.checkpoint import Checkpoint, load
from partialnet.data import FolderImages, LabelledImages, spread
from partialnet.data.evaluation_parts import evaluation_folder
from partialnet.data.handwritten_digits import open_digits
from partialnet.demo import run_demo
from partialnet.deploy.export import export
from partialnet.deploy.exported_files import SUFFIXES
from partialnet.deploy.photos import CALIBRATION_IMAGES
from partialnet.deploy.runtimes import load_exported
from partialnet.deploy.verify import compare_accuracy
from partialnet.evaluation import evaluate
from partialnet.files import write_json


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
    data = open_digits()
    for part, images in (("train", data.train), ("test", data.validation)):
        for number, label in enumerate(images.labels):
            place = folder / part / images.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            images.read(number).save(place / f"{number:04d}.png")


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--digits", type=Path, metavar="RUN", help="run folder of `partialnet demo`")
    parser.add_argument(
        "--task", nargs=3, action="append", default=[], metavar=("NAME", "FOLDER", "RUN"), help="images and their run"
    )
    arguments = parser.parse_args()
    path = result_file(arguments, "int8_accuracy.json")
    results = {}
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace)
        write_digits(folder / "digits")
        run = arguments.digits or run_demo(folder / "run").folder
        tasks = {"digits": (load(run), folder / "digits")}
        tasks |= {name: (load(run), Path(data)) for name, data, run in arguments.task}
        for name, (checkpoint, data) in tasks.items():
            print(f"{name}, {checkpoint.architecture} at {checkpoint.input_config['input_size'][1:]}", flush=True)
            results[name] = {
                "architecture": checkpoint.architecture,
                "input_size": list(checkpoint.input_config["input_size"]),
                "calibration_images": CALIBRATION_IMAGES,
                "rows": measure(checkpoint, FolderImages(data / "train"), FolderImages(evaluation_folder(data))),
            }
    write_json(path, {"environment": environment(), "results": results})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
