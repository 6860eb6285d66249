"""An ablation as text, JSON, CSV and Markdown: ours beside the paper's figures, with the deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from partialnet.bench.contestants import RUNTIMES
from partialnet.markdown import markdown_table

from .accuracy import TrainedRow
from .measure import Conditions, Cost, Speed
from .tables import PAPER_MACHINES, PAPER_MODEL, AblationTable, Row

#: Deviation of the parameters beyond which a note must say why.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Ablation:
    """What was found for one table.

    Attributes:
        table: The paper's table.
        rows: The rows that were looked at.
        model: Name of the variant.
        costs: Size of each row's network, by the row's name.
        against: Name of the row that speeds are compared with.
        conditions: How rows were timed.
        speeds: For each runtime the speed of each row, by name.
        training: Data and configuration of the trainings; empty without.
        trained: Accuracies of each row, by name; empty without data.
    """

    table: AblationTable
    rows: Sequence[Row]
    model: str
    costs: Mapping[str, Cost]
    against: str
    conditions: Conditions = field(default_factory=Conditions)
    speeds: Mapping[str, Mapping[str, Speed]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, TrainedRow] = field(default_factory=dict)

    @property
    def as_printed(self) -> bool:
        """Whether the networks are those of the paper, so that sizes can be compared: T2, 1000 classes, 224²."""
        first = self.rows[0]
        cost = self.costs[first.name]
        return (
            self.model == PAPER_MODEL
            and (cost.input_size, cost.num_classes) == ((3, 224, 224), 1000)
            and cost.model_args == first.arguments(self.model)
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        records = {
            "table": self.table.number,
            "title": self.table.title,
            "source": self.table.source,
            "model": self.model,
            "as_printed": self.as_printed,
            "against": self.against,
            "threads": self.conditions.threads,
            "device": self.conditions.device,
            "clock": "processor time" if self.conditions.processor_time else "wall time",
            "rows": [self._record(row) for row in self.rows],
        }
        return {**records, "training": dict(self.training)} if self.training else records

    def _record(self, row: Row) -> dict[str, Any]:
        cost = self.costs[row.name]
        record: dict[str, Any] = {
            "name": row.name,
            **asdict(cost),
            "paper": asdict(row.paper),
            "note": row.note,
        }
        if self.as_printed:
            record["deviation"] = {
                "params": cost.params_m / row.paper.params_m - 1,
                "macs": cost.macs_g / row.paper.macs_g - 1,
            }
        reference = self._row(self.against).paper
        record["paper_latency_ratio"] = row.paper.latency_ms / reference.latency_ms
        record["paper_throughput_ratio"] = row.paper.images_per_second / reference.images_per_second
        if self.speeds:
            record["speed"] = {
                runtime: {**asdict(rows[row.name]), "images_per_second": rows[row.name].images_per_second}
                for runtime, rows in self.speeds.items()
            }
        if row.name in self.trained:
            found = self.trained[row.name]
            record["accuracy"] = {
                "mean": found.mean,
                "stdev": found.spread,
                "seeds": list(found.seeds),
                "values": list(found.accuracies),
                "runs": [path.name for path in found.folders],
            }
        return record

    def _row(self, name: str) -> Row:
        return next(row for row in self.table.rows if row.name == name)


def csv_records(ablation: Ablation) -> list[dict[str, Any]]:
    """One record for each row and runtime; one for each row where nothing was timed."""
    content = ablation.as_dict()
    records = []
    for row in content["rows"]:
        paper, accuracy = row["paper"], row.get("accuracy", {})
        for runtime, speed in row.get("speed", {"": None}).items():
            record = {
                "table": content["table"],
                "row": row["name"],
                "model": content["model"],
                "input_size": "×".join(map(str, row["input_size"])),
                "num_classes": row["num_classes"],
                "params_m": round(row["params_m"], 4),
                "params_m_paper": paper["params_m"],
                "macs_g": round(row["macs_g"], 5),
                "macs_g_paper": paper["macs_g"],
                "runtime": runtime,
                "threads": content["threads"],
                "latency_ms": "",
                "latency_ratio": "",
                "latency_ratio_q1": "",
                "latency_ratio_q3": "",
                "latency_ms_paper": paper["latency_ms"],
                "latency_ratio_paper": round(row["paper_latency_ratio"], 4),
                "batch_size": "",
                "images_per_second": "",
                "throughput_ratio": "",
                "throughput_ratio_q1": "",
                "throughput_ratio_q3": "",
                "images_per_second_paper": paper["images_per_second"],
                "throughput_ratio_paper": round(row["paper_throughput_ratio"], 4),
                "top1": accuracy.get("mean", ""),
                "top1_stdev": accuracy.get("stdev") or "",
                "seeds": len(accuracy.get("seeds", ())),
                "top1_percent_paper": paper["top1"],
            }
            if speed is not None:
                latency, throughput = speed["latency"], speed["throughput"]
                record |= {
                    "latency_ms": round(latency["median_ms"], 4),
                    "latency_ratio": round(latency["ratio"], 4),
                    "latency_ratio_q1": round(latency["ratio_q1"], 4),
                    "latency_ratio_q3": round(latency["ratio_q3"], 4),
                    "batch_size": speed["batch_size"],
                    "images_per_second": round(speed["images_per_second"], 2),
                    "throughput_ratio": round(1 / throughput["ratio"], 4),
                    "throughput_ratio_q1": round(1 / throughput["ratio_q3"], 4),
                    "throughput_ratio_q3": round(1 / throughput["ratio_q1"], 4),
                }
            records.append(record)
    return records


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        heading: What is above its table.
        header: Headings of the table's columns; that of the first, which holds names, is empty.
        rows: The table, row by row, with a text for each column.
    """

    heading: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(content: Mapping[str, Any]) -> list[Section]:
    """The tables of an ablation as ``Ablation.as_dict`` or its result file has it: sizes, speeds, accuracies."""
    rows = content["rows"]
    found = [_sizes(content)]
    found += [_speeds(content, runtime) for runtime in rows[0].get("speed", ())]
    if "accuracy" in rows[0]:
        found.append(_accuracies(content))
    return found


def _sizes(content: Mapping[str, Any]) -> Section:
    rows, printed = content["rows"], content["as_printed"]
    _, height, width = rows[0]["input_size"]
    header = ["", "params M", "paper", "dev.", "MACs G", "paper", "dev."]
    lines = []
    for row in rows:
        deviation, paper = row.get("deviation", {}), row["paper"]
        lines.append(
            (
                row["name"],
                f"{row['params_m']:.2f}",
                f"{paper['params_m']:.1f}",
                f"{100 * deviation['params']:+.1f} %" if printed else "",
                f"{row['macs_g']:.3f}",
                f"{paper['macs_g']:.2f}",
                f"{100 * deviation['macs']:+.1f} %" if printed else "",
            )
        )
    what = f"{content['model']}, {height}×{width}, {rows[0]['num_classes']} classes"
    if not printed:
        keep = [0, 1, 4]
        return Section(what, tuple(header[i] for i in keep), tuple(tuple(line[i] for i in keep) for line in lines))
    return Section(what, tuple(header), tuple(lines))


def _speeds(content: Mapping[str, Any], runtime: str) -> Section:
    against = content["against"]
    threads = "1 thread" if content["threads"] == 1 else f"{content['threads']} threads"
    where = threads if content["device"] == "cpu" else "GPU"
    batch = content["rows"][0]["speed"][runtime]["batch_size"]
    header = ("", "latency ms", f"÷ {against}", "paper", "dev.", f"images/s, batch {batch}", f"÷ {against}", "paper")
    lines = []
    for row in content["rows"]:
        speed = row["speed"][runtime]
        latency, throughput = speed["latency"], speed["throughput"]
        ratio, inverse = latency["ratio"], 1 / throughput["ratio"]
        lines.append(
            (
                row["name"],
                f"{latency['median_ms']:.2f}",
                f"{ratio:.2f} ({latency['ratio_q1']:.2f}–{latency['ratio_q3']:.2f})",
                f"{row['paper_latency_ratio']:.2f} ({row['paper']['latency_ms']} ms)",
                f"{100 * (ratio / row['paper_latency_ratio'] - 1):+.0f} %",
                f"{speed['images_per_second']:.1f}",
                f"{inverse:.2f} ({1 / throughput['ratio_q3']:.2f}–{1 / throughput['ratio_q1']:.2f})",
                f"{row['paper_throughput_ratio']:.2f} ({row['paper']['images_per_second']}/s)",
                f"{100 * (inverse / row['paper_throughput_ratio'] - 1):+.0f} %",
            )
        )
    if content["clock"] != "wall time":
        where += f", {content['clock']}"
    return Section(f"{RUNTIMES[runtime]}, fp32, {where}", (*header, "dev."), tuple(lines))


def _accuracies(content: Mapping[str, Any]) -> Section:
    training, rows = content["training"], content["rows"]
    reference = next(row for row in rows if row["name"] == content["against"])
    header = ("", "accuracy %", f"− {content['against']}", "seeds", "paper, T2, ImageNet %", f"− {content['against']}")
    lines = []
    for row in rows:
        accuracy, top1 = row["accuracy"], row["paper"]["top1"]
        spread = "" if accuracy["stdev"] is None else f" ± {100 * accuracy['stdev']:.2f}"
        lines.append(
            (
                row["name"],
                f"{100 * accuracy['mean']:.2f}{spread}",
                f"{100 * (accuracy['mean'] - reference['accuracy']['mean']):+.2f}",
                f"{len(accuracy['values'])}",
                f"{top1:.1f}",
                f"{top1 - reference['paper']['top1']:+.1f}",
            )
        )
    epochs = training["config"]["epochs"]
    heading = f"{training['data']}, {epochs} epoch{'' if epochs == 1 else 's'}, recipe {training['recipe']}"
    return Section(heading, header, tuple(lines))


def notes(content: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know, one entry each."""
    lines = [f"{row['name']}: {row['note']}" for row in content["rows"] if row["note"]]
    if content["as_printed"]:
        lines += [
            f"{row['name']}: parameters deviate by more than {TOLERANCE:.0%}, without a known reason."
            for row in content["rows"]
            if abs(row["deviation"]["params"]) > TOLERANCE and not row["note"]
        ]
        lines.append("Parameters in training form; MACs: multiply–adds after folding, the paper's “FLOPs”.")
    else:
        lines.append(
            f"The paper's networks are {PAPER_MODEL} at 224×224 with 1000 classes; sizes are not compared with others."
        )
    if "speed" in content["rows"][0]:
        lines.append(
            f"Ratios to {content['against']}: round by round in one run, median (quartiles). The paper's figures: "
            f"{PAPER_MACHINES}."
        )
    if "accuracy" in content["rows"][0]:
        lines.append("Accuracy: held-out images, last epoch; mean ± standard deviation over the seeds.")
    return lines


def as_text(content: Mapping[str, Any]) -> str:
    """Tables for a terminal."""
    lines = [f"Table {content['table']}: {content['title']}"]
    for section in sections(content):
        table = [section.header, *section.rows]
        widths = [max(len(line[column]) for line in table) for column in range(len(section.header))]
        lines += ["", section.heading]
        for line in table:
            cells = [f"{line[0]:{widths[0]}}"]
            cells += [f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "", *notes(content)])


def as_markdown(content: Mapping[str, Any], level: int = 1) -> str:
    """The same as Markdown.

    Args:
        content: ``Ablation.as_dict`` or a result file.
        level: Level of the heading.
    """
    lines = [f"{'#' * level} Table {content['table']}: {content['title']}"]
    for section in sections(content):
        lines += ["", f"{section.heading}:", "", *markdown_table(section.header, section.rows)]
    lines += ["", *(f"- {note}" for note in notes(content))]
    return "\n".join(lines) + "\n"
