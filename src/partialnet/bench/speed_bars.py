"""The picture of a few networks' times: a bar for each, a panel for each runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from partialnet.plots import BLUE, save

from .report import Row


def speed_bars(path: Path, rows: Sequence[Row]) -> None:
    """Median time of each network, with quartiles, a panel for each runtime; the reference is grey."""
    runtimes = list(dict.fromkeys(row.setting.runtime for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    height = 1.3 + 0.5 * len(models)
    figure = Figure(figsize=(max(7.0, 4.6 * len(runtimes)), height), layout="constrained")
    panels = figure.subplots(1, len(runtimes), squeeze=False, sharey=True)[0]
    for axes, runtime in zip(panels, runtimes, strict=True):
        shown = [row for row in rows if row.setting.runtime == runtime]
        medians = [row.timing.median_ms for row in shown]
        spread = [
            [row.timing.median_ms - row.timing.q1_ms for row in shown],
            [row.timing.q3_ms - row.timing.median_ms for row in shown],
        ]
        colors = ["#999999" if row.model == row.against else BLUE for row in shown]
        axes.barh([row.model for row in shown], medians, xerr=spread, color=colors, capsize=3)
        for index, row in enumerate(shown):
            text = f" {row.timing.median_ms:.3g} ms" + (
                "" if row.model == row.against else f", {row.timing.ratio:.2f}×"
            )
            axes.text(row.timing.q3_ms, index, text, va="center", fontsize=11)
        axes.set(title=runtime, xlabel="ms for one batch", xlim=(0, 1.45 * max(medians)))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    setting = rows[0].setting
    figure.suptitle(
        f"Inference, batch {setting.batch_size}, {setting.precision}, {setting.threads} CPU thread(s); "
        f"× is the ratio to {rows[0].against}",
        fontsize=12,
    )
    save(figure, path)
