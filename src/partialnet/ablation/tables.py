"""The rows of the paper's ablation tables as configurations of the one network, with the figures that it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm

from partialnet.errors import UserError
from partialnet.models import PartialNet
from partialnet.training.settings import plain

#: The network of all four tables.
PAPER_MODEL = "partialnet_t2"
#: Throughput and latency of the full PartialNet-T2 agree with its rows for these machines in Tables 10 and 13.
PAPER_MACHINES = "throughput on an AMD MI250, latency on one core of an AMD EPYC 73F3, top-1 on ImageNet-1k"


@dataclass(frozen=True)
class PaperFigures:
    """What the paper prints for a row.

    Attributes:
        params_m: Parameters in millions, training form.
        macs_g: Its "FLOPs": multiply–adds in billions at 224², folded.
        images_per_second: Throughput on a GPU.
        latency_ms: Latency of one image on a CPU.
        top1: Accuracy on ImageNet-1k in percent.
    """

    params_m: float
    macs_g: float
    images_per_second: int
    latency_ms: float
    top1: float


@dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
        name: What the paper calls it.
        model_args: Arguments of ``timm.create_model`` that make it of the full network.
        paper: The printed figures.
        note: Why ours differs from what is printed, or what had to be chosen; empty where nothing is to be said.
        width: Factor of the network's width.
    """

    name: str
    model_args: Mapping[str, Any]
    paper: PaperFigures
    note: str = ""
    width: float = 1.0

    def arguments(self, model: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Arguments of ``timm.create_model`` for this row of a variant.

        Args:
            model: Name of a PartialNet.
            given: The user's own arguments, such as ``{"patch_size": 2}``.

        Raises:
            UserError: ``model`` is no PartialNet, or ``given`` sets what the row varies.
        """
        arguments = {name: plain(value) for name, value in self.model_args.items()}
        network = _variant(model)
        if self.width != 1:
            # self-attention's four heads share three quarters of 8 times the width
            arguments["embed_dim"] = 2 * round(self.width * network.feature_info[0]["num_chs"] / 2)
        if clash := sorted(set(arguments) & set(given or {})):
            raise UserError(f"Row {self.name!r} sets {clash[0]} itself; leave it out of --model-args.")
        return {**(given or {}), **arguments}


@dataclass(frozen=True)
class AblationTable:
    """One of the paper's tables.

    Attributes:
        number: Its number in the paper.
        title: What it compares.
        rows: In the paper's order.
        reference: Name of the full network's row, which speed is compared with.
    """

    number: int
    title: str
    rows: Sequence[Row] = field(repr=False)
    reference: str

    @property
    def source(self) -> str:
        """Where the printed figures stand."""
        return f"paper, Table {self.number}"

    def select(self, names: Sequence[str]) -> list[Row]:
        """The rows of these names, in the table's order; all without any.

        Raises:
            UserError: A name belongs to no row.
        """
        known = {row.name.casefold() for row in self.rows}
        wanted = {name.casefold() for name in names}
        if unknown := [name for name in names if name.casefold() not in known]:
            rows = ", ".join(repr(row.name) for row in self.rows)
            raise UserError(f"Table {self.number} has no row {unknown[0]!r}. Its rows: {rows}.")
        return [row for row in self.rows if not wanted or row.name.casefold() in wanted]


def _variant(model: str) -> PartialNet:
    network = timm.create_model(model, device="meta") if timm.is_model(model) else None
    if not isinstance(network, PartialNet):
        raise UserError(f"The ablations change PartialNet; {model!r} is not one. Choose partialnet_t0 to partialnet_l.")
    return network


def _pat_ch(**arguments: Any) -> dict[str, Any]:
    return {"name": "pat_ch", **arguments}


_FULL = PaperFigures(12.6, 1.03, 4761, 35.2, 80.2)

TABLE_3 = AblationTable(
    3,
    "Partial against full attention",
    (
        Row("P-P-P", {}, _FULL),
        Row(
            "F-P-P",
            {"mixers": (_pat_ch(attention_scope="full"),) * 3 + ("pat_sf",)},
            PaperFigures(13.0, 1.04, 4662, 36.5, 80.1),
        ),
        Row(
            "P-F-P",
            {"mlp_attention": {"attention_scope": "full"}},
            PaperFigures(12.6, 1.04, 4688, 35.6, 79.9),
        ),
        Row(
            "P-P-F",
            {"mixers": ("pat_ch",) * 3 + ({"name": "pat_sf", "attention_scope": "full"},)},
            PaperFigures(14.5, 1.12, 4600, 38.6, 80.2),
        ),
    ),
    "P-P-P",
)

TABLE_4 = AblationTable(
    4,
    "What each of the three blocks adds",
    (
        Row(
            "none",
            {"mixers": (_pat_ch(attention=None),) * 4, "mlp_attention": False},
            PaperFigures(11.1, 0.92, 6405, 25.7, 76.0),
            "The paper prints 11.1 M for this row and the next alike. Without any attention there are no gates: the "
            "network that gives the other rows' figures has 9.4 M here.",
        ),
        Row(
            "ch",
            {"mixers": ("pat_ch",) * 4, "mlp_attention": False},
            PaperFigures(11.1, 0.92, 5440, 30.9, 77.4),
        ),
        Row("ch + sp", {"mixers": ("pat_ch",) * 4}, PaperFigures(11.5, 0.92, 5157, 31.7, 78.9)),
        Row("ch + sp + sf", {}, _FULL),
    ),
    "ch + sp + sf",
)

TABLE_6 = AblationTable(
    6,
    "PAT_ch against other convolutions in stages 1 to 3",
    (
        Row("PAT_ch", {}, _FULL),
        Row("Conv", {"mixers": ("conv",) * 3 + ("pat_sf",)}, PaperFigures(15.8, 2.12, 4190, 49.9, 79.9)),
        Row(
            "DWConv, widened",
            {"mixers": ("dwconv",) * 3 + ("pat_sf",)},
            PaperFigures(15.8, 1.28, 4017, 35.4, 79.6),
            "The paper widens this network but does not say by how much. No width gives both printed figures: 74 "
            "channels instead of 64 come nearest to its multiply–adds (1.29 G) with 15.4 M parameters, 76 have 16.1 M "
            "and 1.36 G. The printed 15.8 M is also what the row above has.",
            width=74 / 64,
        ),
    ),
    "PAT_ch",
)

TABLE_12 = AblationTable(
    12,
    "Gaussian-SE against classic channel attentions",
    (
        Row(
            "SRM",
            {"mixers": (_pat_ch(attention="srm"),) * 3 + ("pat_sf",)},
            PaperFigures(12.2, 1.03, 4751, 35.2, 79.6),
        ),
        Row(
            "SE",
            {"mixers": (_pat_ch(attention={"name": "se", "rd_ratio": 1 / 4}),) * 3 + ("pat_sf",)},
            PaperFigures(12.3, 1.04, 4910, 32.3, 79.8),
        ),
        Row("Gaussian-SE", {}, _FULL),
    ),
    "Gaussian-SE",
)

TABLES = {table.number: table for table in (TABLE_3, TABLE_4, TABLE_6, TABLE_12)}
