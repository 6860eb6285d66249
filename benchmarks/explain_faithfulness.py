"""How faithful class maps are: deletion and insertion on labelled images, and the pointing game on COCO boxes.

    python benchmarks/explain_faithfulness.py runs/partialnet_t0 runs/fasternet_t0 --images imagenette/val \\
        --boxes coco/instances_val.json=coco/val --category "English springer=dog"

writes benchmarks/results/explain_faithfulness.json. Every run is measured by Grad-CAM and LayerCAM at its last and its
second last stage. Deletion and insertion are of the class that the network predicts, on images taken evenly over the
folder, the same for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_file import result_file, result_parser
from tqdm import tqdm

from partialnet.bench import environment
from partialnet.checkpoint import load
from partialnet.explain import Explainer, deletion_and_insertion, play_pointing_game, read_boxes
from partialnet.explain.boxes import match_categories
from partialnet.files import write_json
from partialnet.images import find_images, read_image

SETTINGS = (("gradcam", 0), ("layercam", 0), ("gradcam", -1), ("layercam", -1))


def mean_areas(explainer: Explainer, paths: list[Path], method: str, stage: int) -> dict[str, float]:
    """Mean over the images, and the standard error of the difference to the order from the middle."""
    areas = []
    for path in tqdm(paths, desc=f"{explainer.checkpoint.architecture}, {method} {stage}", delay=2):
        image = read_image(path)
        found = explainer.class_map(image, method=method, stage=stage)
        areas.append(deletion_and_insertion(explainer, image, found).areas())
    columns = {name: np.array([area[name] for area in areas]) for name in areas[0]}
    result = {name: float(values.mean()) for name, values in columns.items()}
    for name in ("deletion", "insertion"):
        difference = columns[name] - columns[f"{name}_center"]
        result[f"{name}_difference_error"] = float(difference.std(ddof=1) / len(difference) ** 0.5)
    return result


def point(
    explainer: Explainer, games: list[tuple[Path, Path]], given: dict[str, str], method: str, stage: int
) -> list[dict[str, Any]]:
    """Each round of the game on each set of boxes, without the paths."""
    rounds = []
    for file, folder in games:
        boxes = read_boxes(file)
        classes = match_categories(explainer, boxes, list(given.items()))
        game = play_pointing_game(explainer, find_images([str(folder)]), boxes, classes, method, stage)
        rounds += [
            {
                "image": entry.path.name,
                "category": entry.category,
                "hit": entry.hit,
                "center_hit": entry.center_hit,
                "area": entry.area,
            }
            for entry in game.points
        ]
    return rounds


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--images", required=True, help="folder of images for deletion and insertion")
    parser.add_argument("--num-images", type=int, default=100)
    parser.add_argument("--boxes", nargs="*", default=[], metavar="JSON=FOLDER", help="boxes and their images")
    parser.add_argument("--category", nargs="*", default=[], metavar="CLASS=CATEGORY")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    path = result_file(options, "explain_faithfulness.json")
    torch.set_num_threads(options.threads)

    paths = find_images([options.images])
    paths = [paths[index] for index in np.linspace(0, len(paths) - 1, options.num_images).round().astype(int)]
    games = [(Path(file), Path(folder)) for file, _, folder in (entry.partition("=") for entry in options.boxes)]
    given = dict(entry.partition("=")[::2] for entry in options.category)
    results = []
    for run in options.runs:
        checkpoint = load(run)
        explainer = Explainer(checkpoint)
        for method, offset in SETTINGS:
            stage = max(explainer.layers) + offset
            rounds = point(explainer, games, given, method, stage) if games else []
            results.append(
                {
                    "network": checkpoint.architecture,
                    "training": checkpoint.training,
                    "input_size": list(checkpoint.input_config["input_size"]),
                    "method": method,
                    "stage": stage,
                    "num_images": len(paths),
                    "areas": mean_areas(explainer, paths, method, stage),
                    "pointing": {
                        "rounds": len(rounds),
                        "hits": sum(entry["hit"] for entry in rounds),
                        "center_hits": sum(entry["center_hit"] for entry in rounds),
                        "chance": float(np.mean([entry["area"] for entry in rounds])) if rounds else None,
                    },
                    "pointing_rounds": rounds,
                }
            )
    content = {"results": results, "environment": environment()}
    write_json(path, content)
    for row in results:
        areas, game = row["areas"], row["pointing"]
        print(
            f"{row['network']:14} {row['method']:9} stage {row['stage']}  deletion {areas['deletion']:.3f} "
            f"({areas['deletion_center']:.3f})  insertion {areas['insertion']:.3f} ({areas['insertion_center']:.3f})  "
            f"pointing {game['hits']}/{game['rounds']} (middle {game['center_hits']})"
        )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
