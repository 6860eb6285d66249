"""The picture of a few networks' times: a bar for each, a panel for each runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from partialnet.plots import BLUE, clip, save

from .environment import place
from .report import Row


def speed_bars(path: Path, rows: Sequence[Row]) -> None:
    """Median time of each network, with quartiles, a panel for each runtime; the reference is grey."""
    runtimes = list(dict.fromkeys(row.setting.runtime for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    names = [clip(model, 40) for model in models]
    width = 3.6 * len(runtimes) + 0.1 * max(map(len, names))
    figure = Figure(figsize=(max(7.0, width), 1.3 + 0.5 * len(models)), layout="constrained")
    panels = figure.subplots(1, len(runtimes), squeeze=False, sharey=True)[0]
    for axes, runtime in zip(panels, runtimes, strict=True):
        shown = [row for row in rows if row.setting.runtime == runtime]
        medians = [row.timing.median_ms for row in shown]
        spread = [
            [row.timing.median_ms - row.timing.q1_ms for row in shown],
            [row.timing.q3_ms - row.timing.median_ms for row in shown],
        ]
        colors = ["#999999" if row.model == row.against else BLUE for row in shown]
        heights = [models.index(row.model) for row in shown]  # a runtime may lack some
        axes.barh(heights, medians, xerr=spread, color=colors, capsize=3)
        for height, row in zip(heights, shown, strict=True):
            text = f" {row.timing.median_ms:.3g} ms" + (
                "" if row.model == row.against else f", {row.timing.ratio:.2f}×"
            )
            axes.text(row.timing.q3_ms, height, text, va="center", fontsize=11)
        axes.set(title=runtime, xlabel="ms for one batch", xlim=(0, 1.75 * max(row.timing.q3_ms for row in shown)))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(models)), names, parse_math=False)
    panels[0].invert_yaxis()
    setting = rows[0].setting
    figure.suptitle(
        f"Inference, batch {setting.batch_size}, {setting.precision}, {place(setting.device, setting.threads)}; "
        f"× is the ratio to {clip(rows[0].against, 40)}",
        fontsize=12,
        parse_math=False,
    )
    save(figure, path)
