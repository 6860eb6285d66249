"""Rows of a measurement, and the table that is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from partialnet.text_width import left_aligned, text_width

from .contestants import Setting
from .timing import Timing


@dataclass(frozen=True)
class Row:
    """One network under one setting.

    Attributes:
        model: The network, as it was named.
        against: The network that its times are compared with.
        setting: Runtime, precision, threads, batch size, device.
        input_size: Of one image, (C, H, W).
        timing: Times of one batch.
        folded_params_m: Parameters in millions, folded.
        macs_g: Multiply–adds of one image in billions, folded.
    """

    model: str
    against: str
    setting: Setting
    input_size: tuple[int, int, int]
    timing: Timing
    folded_params_m: float
    macs_g: float

    @property
    def images_per_second(self) -> float:
        """Batch size ÷ median time of a batch."""
        return 1e3 * self.setting.batch_size / self.timing.median_ms

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "network": self.model,
            **{name: value for name, value in asdict(self.setting).items() if name != "img_size"},
            "input_size": list(self.input_size),
            "folded_params_m": round(self.folded_params_m, 4),
            "macs_g": round(self.macs_g, 5),
            "images_per_second": round(self.images_per_second, 2),
            "against": self.against,
            **{name: round(value, 5) for name, value in asdict(self.timing).items()},
        }


def as_table(rows: Sequence[Row]) -> str:
    """A table for a terminal, fastest first within each runtime."""
    width = max(text_width(text) for text in ("network", *(row.model for row in rows)))
    lines = [
        f"{'runtime':12}{'network':{width + 2}}{'folded params M':>15}{'MACs G':>9}{'ms':>10}{'quartiles':>18}"
        f"{'images/s':>11}{'ratio':>8}{'quartiles':>14}"
    ]
    for row in sorted(rows, key=lambda row: (row.setting.runtime, row.timing.median_ms)):
        timing = row.timing
        lines.append(
            f"{row.setting.runtime:12}{left_aligned(row.model, width + 2)}"
            f"{row.folded_params_m:>15.2f}{row.macs_g:>9.3f}{timing.median_ms:>10.2f}{f'{timing.q1_ms:.2f}–{timing.q3_ms:.2f}':>18}"
            f"{row.images_per_second:>11.1f}"
            f"{timing.ratio:>8.2f}{f'{timing.ratio_q1:.2f}–{timing.ratio_q3:.2f}':>14}"
        )
    return "\n".join(lines)
