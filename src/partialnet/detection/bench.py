"""Detectors measured beside one another: parameters, multiply–adds, time of one image, with the paper's Table 11.

All do the same work behind the backbone: the proposals' head sees every position, 1000 proposals go through the boxes'
head and 100 detections through the masks', as in the paper's framework; a trained detector has its own numbers of both.
With untrained weights a detector finds nothing or 80,000 objects, so the score threshold of each is set to what 300 of
its candidates exceed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from partialnet.bench import Timing, interleave
from partialnet.bench.contestants import Setting, fastest_form
from partialnet.bench.timing import synchronizer
from partialnet.bench.torch_settings import torch_settings
from partialnet.errors import UserError
from partialnet.files import write_csv
from partialnet.folding import fold
from partialnet.layers.inference import Runtime

from .checkpoint import load_detector
from .model import PYRAMID_CHANNELS, Detector, count_parameters, create_mask_rcnn
from .resizing import DetectorTransform

#: Height and width of the image, in pixels: what the paper counts and measures at.
SIZE = (800, 1280)
NUM_CATEGORIES = 80
PROPOSALS, DETECTIONS = 1000, 100
#: Boxes above the score threshold in the network that is timed.
_CANDIDATES = 300
#: Height and width at which the faster memory layout is looked for.
_LAYOUT_SIZE = (320, 512)
MODELS = (
    "partialnet_s",
    "partialnet_m",
    "partialnet_l",
    "resnet50",
    "poolformer_s24",
    "pvt_v2_b2",
    "fasternet_s",
)


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 11.

    Attributes:
        params_m: Parameters in millions.
        macs_g: Its "FLOPs": multiply–adds of one image in billions.
        images_per_second: Throughput on a GPU.
        box_ap: AP of boxes, in percent.
        mask_ap: AP of masks, in percent.
    """

    params_m: float
    macs_g: float
    images_per_second: float
    box_ap: float
    mask_ap: float


PAPER = {
    "resnet50": PaperRow(44.2, 253, 121, 38.0, 34.4),
    "poolformer_s24": PaperRow(41.0, 233, 68, 40.1, 37.0),
    "fasternet_s": PaperRow(49.0, 258, 121, 39.9, 36.9),
    "fasternet_m": PaperRow(71.2, 344, 62, 43.0, 39.1),
    "fasternet_l": PaperRow(110.9, 484, 35, 44.0, 39.9),
    "partialnet_s": PaperRow(46.9, 216, 122, 42.7, 39.3),
    "partialnet_m": PaperRow(78.2, 295, 65, 44.3, 40.6),
    "partialnet_l": PaperRow(122.0, 397, 39, 44.7, 41.0),
    "resnet101": PaperRow(63.2, 329, 62, 40.4, 36.4),
    "resnext101_32x4d": PaperRow(62.8, 333, 51, 41.9, 37.5),
    "resnext101_64x4d": PaperRow(101.9, 487, 29, 42.8, 38.4),
    "poolformer_s36": PaperRow(50.5, 266, 44, 41.0, 37.8),
}


@dataclass(frozen=True)
class DetectorRow:
    """One detector.

    Attributes:
        model: Its backbone, or the run folder or file that it was read from.
        pyramid_channels: Channels of its pyramid, the width of its heads.
        params_m: Parameters of each part in millions, in training form.
        macs_g: Multiply–adds of each part in 10⁹ for one image, folded.
        timing: Times of one image; None if only counted.
        layout: Memory layout that it ran in, the faster of two.
        paper: Its row in the paper, for images of the paper's size and heads of the paper's width.
    """

    model: str
    pyramid_channels: int
    params_m: dict[str, float]
    macs_g: dict[str, float]
    timing: Timing | None = None
    layout: str | None = None
    paper: PaperRow | None = None

    @property
    def total_params_m(self) -> float:
        """Parameters of the whole detector in millions."""
        return sum(self.params_m.values())

    @property
    def total_macs_g(self) -> float:
        """Multiply–adds of the whole detector in 10⁹."""
        return sum(self.macs_g.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        timing = None if self.timing is None else {k: round(v, 4) for k, v in asdict(self.timing).items()}
        return {
            "backbone": self.model,
            "pyramid_channels": self.pyramid_channels,
            "params_m": round(self.total_params_m, 4),
            "params_m_by_part": {name: round(value, 4) for name, value in self.params_m.items()},
            "macs_g": round(self.total_macs_g, 5),
            "macs_g_by_part": {name: round(value, 5) for name, value in self.macs_g.items()},
            "images_per_second": None if self.timing is None else round(1e3 / self.timing.median_ms, 4),
            "timing": timing,
            "layout": self.layout,
            "paper": None if self.paper is None else asdict(self.paper),
        }


def count_detector(
    name: str, size: tuple[int, int] = SIZE, pyramid_channels: int = PYRAMID_CHANNELS, masks: bool = True
) -> DetectorRow:
    """Parameters and multiply–adds of a detector, part by part, without running it.

    A multiply–add is one multiplication with its addition in a convolution, a dense layer or an attention product;
    element-wise work, pooling of regions and the choice of boxes are not counted.

    Args:
        name: Backbone, or the run folder or checkpoint of a trained detector.
        size: Height and width of the image, multiples of 32.
        pyramid_channels: Channels of the pyramid, the width of the heads; a trained detector has its own.
        masks: Whether it has a head for masks; a trained detector has its own.
    """
    detector: Any = _build(name, pyramid_channels, size, masks)
    pyramid_channels, masks = detector.backbone.out_channels, detector.roi_heads.has_mask()
    params = {part: number / 1e6 for part, number in count_parameters(detector).items()}
    params["backbone"] += params.pop("output norms")
    folded: Any = copy.deepcopy(fold(detector)).to("meta")
    image = torch.empty(1, 3, *size, device="meta")
    macs: dict[str, float] = {}

    def counted(part: str, run: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = run()
        macs[part] = counter.get_total_flops() / 2e9
        return result

    maps = counted("backbone", lambda: folded.backbone.normalised_maps(image))
    named = {str(level): item for level, item in enumerate(maps)}
    levels = counted("pyramid", lambda: folded.backbone.fpn(named))
    counted("proposals", lambda: folded.rpn.head(list(levels.values())))
    heads = folded.roi_heads
    boxes = torch.empty(folded.rpn.post_nms_top_n(), pyramid_channels, 7, 7, device="meta")
    counted("boxes", lambda: heads.box_predictor(heads.box_head(boxes)))
    if masks:
        regions = torch.empty(heads.detections_per_img, pyramid_channels, 14, 14, device="meta")
        counted("masks", lambda: heads.mask_predictor(heads.mask_head(regions)))
    as_in_paper = masks and (tuple(size), pyramid_channels) == (SIZE, PYRAMID_CHANNELS)
    return DetectorRow(name, pyramid_channels, params, macs, paper=PAPER.get(name) if as_in_paper else None)


def _is_trained(name: str) -> bool:
    return Path(name).exists()


def _build(name: str, pyramid_channels: int, size: tuple[int, int], masks: bool) -> Detector:
    """A trained detector of this path, else an untrained one on this backbone, for images of ``size`` as they are."""
    sides = (min(size), max(size))
    if not _is_trained(name):
        return create_mask_rcnn(name, NUM_CATEGORIES, img_size=sides, pyramid_channels=pyramid_channels, masks=masks)
    checkpoint = load_detector(name)
    if checkpoint.folded:
        raise UserError(f"The detector of {name!r} is folded already; give the run it came from.")
    model: Any = checkpoint.model
    model.transform = DetectorTransform(sides, checkpoint.mean, checkpoint.std, model.transform.size_divisible)
    return model


class _Contestant:
    """A whole detector with one image, as a user calls it."""

    def __init__(self, name: str, pyramid_channels: int, size: tuple[int, int], device: str, masks: bool) -> None:
        detector: Any = _build(name, pyramid_channels, size, masks)
        form: Runtime | None = "torch" if device == "cpu" else None
        image = torch.rand(1, 3, *_LAYOUT_SIZE)
        self.layout = fastest_form([fold(detector.backbone, runtime=form)], image, Setting(device=device)).layout
        folded: Any = fold(detector)
        folded.backbone = fold(detector.backbone, size, form)
        self.model = folded.to(device, memory_format=self.layout)
        self.image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)).to(device)
        self.model.roi_heads.score_thresh = self._threshold()

    def _threshold(self) -> float:
        """The score that ``_CANDIDATES`` boxes reach."""
        seen: list[Tensor] = []
        heads = self.model.roi_heads
        hook = heads.box_predictor.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
        heads.score_thresh = 1.0
        self()
        hook.remove()
        scores = seen[0].softmax(-1)[:, 1:].flatten()
        return float(scores.topk(min(_CANDIDATES, len(scores))).values[-1])

    def __call__(self) -> list[dict[str, Tensor]]:
        with torch.inference_mode():
            found: list[dict[str, Tensor]] = self.model([self.image])
        return found


def count_detectors(
    models: Sequence[str],
    size: tuple[int, int] = SIZE,
    pyramid_channels: Sequence[int] = (PYRAMID_CHANNELS,),
    masks: bool = True,
    progress: bool = True,
) -> dict[tuple[str, int], DetectorRow]:
    """Parameters and multiply–adds of detectors, by model and channels; arguments as of ``bench_detectors``.

    Raises:
        UserError: A backbone does not exist or cannot carry a detector, or the size does not fit.
    """
    if any(side % 32 for side in size):
        raise UserError(f"The image's sides {size[0]}×{size[1]} must be multiples of 32.")
    # a trained detector has its own number of channels, whatever it is asked for
    kinds = [(name, channels) for name in models for channels in pyramid_channels[: 1 if _is_trained(name) else None]]
    shown = _with_bar(kinds, "counting", progress)
    rows = [count_detector(name, size, channels, masks) for name, channels in shown]
    return {(row.model, row.pyramid_channels): row for row in rows}


def bench_detectors(
    models: Sequence[str],
    against: str,
    *,
    size: tuple[int, int] = SIZE,
    pyramid_channels: Sequence[int] = (PYRAMID_CHANNELS,),
    masks: bool = True,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 0.0,
    min_rounds: int = 3,
    progress: bool = True,
) -> list[DetectorRow]:
    """Count and time detectors, in turn, one image at a time, folded, in float32.

    Args:
        models: Backbones, and run folders or checkpoints of trained detectors, which have their own pyramid and heads.
        against: One of them, that the ratios refer to; of several widths the first.
        size: Height and width of the image, multiples of 32.
        pyramid_channels: Channels of the pyramid, the width of the heads; each backbone is measured with each.
        masks: Whether they have a head for masks.
        device: "cpu" or "cuda".
        threads: CPU threads.
        seconds: Time to spend on measuring.
        min_rounds: Rounds at least.
        progress: Show a bar.

    Raises:
        UserError: A backbone does not exist or cannot carry a detector, or the size does not fit.
    """
    if against not in models:
        raise UserError(f"{against!r} is not among the networks to measure: {', '.join(models)}.")
    # counting comes first, as it finds the names that cannot be built
    counts = count_detectors(models, size, pyramid_channels, masks, progress)
    with torch_settings(threads):
        to_prepare = _with_bar(counts, "preparing", progress)
        contestants = {_label(kind): _Contestant(*kind, size, device, masks) for kind in to_prepare}
        reference = _label(next(kind for kind in counts if kind[0] == against))
        timings = interleave(
            contestants,
            reference,
            seconds,
            min_rounds=min_rounds,
            warmup=1,
            synchronize=synchronizer(torch.device(device)),
            progress=progress,
        )
    layouts = {
        name: "channels_last" if contestant.layout is torch.channels_last else "contiguous"
        for name, contestant in contestants.items()
    }
    return [replace(row, timing=timings[_label(kind)], layout=layouts[_label(kind)]) for kind, row in counts.items()]


def _with_bar(kinds: Collection[tuple[str, int]], task: str, progress: bool) -> Iterable[tuple[str, int]]:
    return tqdm(kinds, desc=task, unit="detector", delay=2, disable=None if progress else True)


def _label(kind: tuple[str, int]) -> str:
    return f"{kind[0]}, {kind[1]} channels"


def as_table(rows: Sequence[DetectorRow]) -> str:
    """For a terminal; the paper's figures in brackets."""
    width = max(len("backbone"), *(len(row.model) for row in rows)) + 2
    lines = [f"{'backbone':{width}}{'channels':>9}{'params M':>10}{'(paper)':>9}{'MACs G':>9}{'(paper)':>9}"]
    timed = any(row.timing is not None for row in rows)
    if timed:
        lines[0] += f"{'ms':>9}{'quartiles':>15}{'ratio':>7}{'images/s':>10}{'(paper, GPU)':>14}"
    if any(row.paper is not None for row in rows):
        lines[0] += f"{'(AP boxes, masks)':>19}"
    for row in rows:
        paper = row.paper
        line = f"{row.model:{width}}{row.pyramid_channels:>9}"
        line += f"{row.total_params_m:>10.2f}{f'({paper.params_m})' if paper else '':>9}"
        line += f"{row.total_macs_g:>9.4f}{f'({paper.macs_g:.0f})' if paper else '':>9}"
        if row.timing is not None:
            quartiles = f"{row.timing.q1_ms:.1f}–{row.timing.q3_ms:.1f}"
            line += f"{row.timing.median_ms:>9.1f}{quartiles:>15}{row.timing.ratio:>7.2f}"
            line += f"{1e3 / row.timing.median_ms:>10.3f}"
            line += f"{f'({paper.images_per_second:.0f})' if paper else '':>14}"
        line += f"{f'({paper.box_ap}, {paper.mask_ap})' if paper else '':>19}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def write_detector_csv(path: Path, rows: Sequence[DetectorRow]) -> None:
    """One line for each detector."""
    records = []
    for row in rows:
        record = row.as_dict()
        timing = record.pop("timing") or {}
        paper = {f"paper_{name}": value for name, value in (record.pop("paper") or {}).items()}
        parts = {f"params_m_{name}": value for name, value in record.pop("params_m_by_part").items()}
        parts |= {f"macs_g_{name}": value for name, value in record.pop("macs_g_by_part").items()}
        records.append({**record, **timing, **parts, **paper})
    write_csv(path, records, list(dict.fromkeys(name for record in records for name in record)))
