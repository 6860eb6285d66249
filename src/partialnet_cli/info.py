"""``partialnet info``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from partialnet.checkpoint import Checkpoint, create_checkpoint, load
from partialnet.complexity import PAPER, Complexity, measure
from partialnet.search import load_plan

from .next_command import next_command
from .options import IntRange
from .results import Results, result_options


@click.command()
@click.argument("source", required=False)
@click.option(
    "--plan", "plan_source", metavar="PLAN", help="Show the network of a search instead: its plan.json or run folder."
)
@click.option(
    "--img-size",
    type=IntRange(min=32),
    help="Height and width of the image to count for.  [default: the network's own]",
)
@result_options(json="structure and cost")
def info(source: str | None, plan_source: str | None, img_size: int | None, results: Results) -> None:
    """Show the structure and cost of SOURCE, in training form and folded for inference.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, or a model
    name (partialnet_t0 … partialnet_l, any of timm's, torchvision:NAME). The paper's figures are shown with our
    deviations from them.

    \b
    Examples: partialnet info partialnet_t2
              partialnet info --plan runs/searched/plan.json
    """
    if (source is None) == (plan_source is None):
        raise click.UsageError("Give either a SOURCE or a --plan.")
    checkpoint = _open(source, plan_source).resized(img_size)
    channels, height, width = checkpoint.input_config["input_size"]
    size = (channels, height, width)
    complexity = measure(checkpoint.model, size)
    paper = _paper(checkpoint, size)
    results.write_json(_as_dict(checkpoint, complexity, paper))
    results.say(_as_text(checkpoint, complexity, paper))
    if source is None:
        size_option = ["--img-size", str(height)] if height == width else []  # train's recipe may have another
        results.finish(next_command("train", "DATA", "--plan", plan_source, *size_option))
    elif not Path(source).exists():
        results.finish("partialnet demo   (trains a network that partialnet predict can use)")
    else:
        results.finish(next_command("predict", source, "IMAGES") if checkpoint.num_classes else None)


def _open(source: str | None, plan_source: str | None) -> Checkpoint:
    """The network of that name or file, or the one that a plan describes."""
    if source is not None:
        return load(source)
    assert plan_source is not None
    plan = load_plan(plan_source)
    classes = {"num_classes": len(plan.class_names)} if plan.class_names else {}
    checkpoint = create_checkpoint(plan.model, plan.class_names, **{**classes, **plan.model_args})
    checkpoint.input_config["input_size"] = plan.input_size
    checkpoint.report = (
        f"Planned by a search with θ = {plan.theta:g}: ζ/κ = {plan.zeta / plan.kappa:.3f}, mean split ratio "
        f"{plan.mean_ratio:.4g}."
    )
    return checkpoint


def _paper(checkpoint: Checkpoint, size: tuple[int, int, int]) -> tuple[float, float] | None:
    """The paper's parameters (M) and multiply–adds (G), where they are of this very network and image size."""
    unchanged = set(checkpoint.model_args) <= {"num_classes"} and checkpoint.num_classes == 1000
    return PAPER.get(checkpoint.architecture) if unchanged and size == (3, 224, 224) else None


def _as_dict(checkpoint: Checkpoint, complexity: Complexity, paper: tuple[float, float] | None) -> dict[str, Any]:
    figures = None
    if paper is not None:
        figures = {
            "params_m": paper[0],
            "params_deviation": complexity.training.params_m / paper[0] - 1,
            "macs_g": paper[1],
            "macs_deviation": complexity.folded.macs_g / paper[1] - 1,
        }
    return {
        "architecture": checkpoint.architecture,
        "model_args": checkpoint.model_args,
        "class_names": list(checkpoint.class_names),
        "input_config": checkpoint.input_config,
        "report": checkpoint.report,
        "complexity": complexity.as_dict(),
        "paper": figures,
    }


def _as_text(checkpoint: Checkpoint, complexity: Complexity, paper: tuple[float, float] | None) -> str:
    channels, height, width = complexity.input_size
    lines = [f"{checkpoint.architecture}, {_classes(checkpoint)}, for {height}×{width} images of {channels} channels"]
    if checkpoint.report:
        lines.append(f"  {checkpoint.report}")
    if checkpoint.folded:
        sizes = "any size"
        if isinstance(checkpoint.folded, tuple):
            sizes = f"{checkpoint.folded[0]}×{checkpoint.folded[1]} pixels only"
        lines.append(f"  folded for inference, for images of {sizes}")
    lines += [f"  {key} = {value}" for key, value in checkpoint.model_args.items() if key != "num_classes"]
    header = f"{'':10}{'output':>12}{'blocks':>8}  {'kind':<26}{'params M':>10}{'folded':>9}{'MACs G':>10}{'folded':>9}"
    lines += ["", header]
    for part in complexity.parts:
        output = f"{part.channels}×{part.resolution[0]}×{part.resolution[1]}"
        lines.append(
            f"{part.name:10}{output:>12}{part.blocks or '':>8}  {part.kind:<26}"
            f"{part.training.params_m:>10.3f}{part.folded.params_m:>9.3f}"
            f"{part.training.macs_g:>10.4f}{part.folded.macs_g:>9.4f}"
        )
    training, folded = complexity.training, complexity.folded
    lines.append(
        f"{'total':10}{'':>12}{'':>8}  {'':<26}"
        f"{training.params_m:>10.3f}{folded.params_m:>9.3f}{training.macs_g:>10.4f}{folded.macs_g:>9.4f}"
    )
    if paper is not None:
        lines.append(f"{'paper':10}{'':>12}{'':>8}  {'Table 9':<26}{paper[0]:>10.1f}{'':>9}{'':>10}{paper[1]:>9.2f}")
        lines.append(
            f"{'deviation':10}{'':>12}{'':>8}  {'':<26}{training.params_m / paper[0] - 1:>+10.1%}{'':>9}{'':>10}"
            f"{folded.macs_g / paper[1] - 1:>+9.1%}"
        )
    lines.append("\nMACs: multiply–adds of convolutions, dense layers and attention products for one image.")
    return "\n".join(lines)


def _classes(checkpoint: Checkpoint) -> str:
    names = checkpoint.class_names
    if not names:
        return f"{checkpoint.num_classes} classes" if checkpoint.num_classes else "no classifier"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"{checkpoint.num_classes} classes ({shown})"
