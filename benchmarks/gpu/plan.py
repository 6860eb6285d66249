"""What the suite measures, the most important comparisons first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RUNTIMES = ("eager", "cudagraph", "compile")
PRECISIONS = ("bf16", "tf32", "fp32")
SIZES = ("t0", "t1", "t2", "s", "m", "l")
#: Other networks beside the PartialNet whose accuracy is nearest, which comes first.
PEER_GROUPS = (
    ("partialnet_t0", "mobilenetv2_100", "efficientnet_b0", "mobilenetv4_conv_small", "shvit_s2"),
    ("partialnet_t2", "repvit_m1_1", "shvit_s4", "efficientvit_b1", "levit_192", "mobilenetv4_conv_medium"),
    ("partialnet_s", "resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224"),
)
QUICK_PEERS = (("partialnet_t0", "mobilenetv4_conv_small"),)


@dataclass(frozen=True)
class Job:
    """Networks timed in turn under one setting; the ratios are to the first.

    Attributes:
        names: timm's model names.
        task: "inference" or "training", which is a whole step with optimiser.
        runtime: One of ``RUNTIMES``. "cudagraph" replays eager PyTorch's kernels; "compile" in inference is replayed
            the same way.
        precision: One of ``PRECISIONS``; in training bf16 means autocast.
        batch_size: Images at a time.
        img_size: Height and width in pixels.
        channels_last: Memory layout of images and weights.
    """

    names: tuple[str, ...]
    task: str = "inference"
    runtime: str = "eager"
    precision: str = "bf16"
    batch_size: int = 256
    img_size: int = 224
    channels_last: bool = True

    @property
    def label(self) -> str:
        """The setting in words, for progress and lists of what was skipped."""
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.task} {self.runtime} {self.precision} {layout} batch {self.batch_size}: {', '.join(self.names)}"


def pair(size: str) -> tuple[str, str]:
    """FasterNet and PartialNet of one size."""
    return f"fasternet_{size}", f"partialnet_{size}"


def full_plan() -> list[Job]:
    """Everything, in the order in which it is worth knowing.

    Cheap comparisons against FasterNet come before what has to be compiled, which takes most of the time. What only
    completes the table comes last, the cheap first: a job that does not fit into the time is skipped for a later one.
    """
    jobs: list[Job] = []
    jobs += [Job(pair(size)) for size in SIZES]
    jobs += [Job(pair(size), runtime="cudagraph", batch_size=1) for size in SIZES]
    jobs += [Job(pair("t0"), runtime="compile", batch_size=batch) for batch in (256, 1)]
    jobs += [Job(pair(size), "training") for size in SIZES[:-1]]
    jobs += [Job(group) for group in PEER_GROUPS]
    jobs += [Job(group, runtime="cudagraph", batch_size=1) for group in PEER_GROUPS]
    jobs += [Job(pair("t2"), runtime="compile", batch_size=batch) for batch in (256, 1)]
    jobs += [Job(pair(size), runtime="compile", batch_size=batch) for batch in (256, 1) for size in ("s", "m")]
    jobs += [Job(pair("t0"), "training", "compile")]
    for precision in ("tf32", "fp32"):
        jobs += [Job(pair(size), precision=precision) for size in SIZES]
        jobs += [Job(pair(size), runtime="cudagraph", precision=precision, batch_size=1) for size in SIZES]
    jobs += [Job(pair(size), batch_size=1) for size in SIZES]
    jobs += [Job(pair(size), channels_last=False) for size in SIZES]
    jobs += [Job(pair(size), runtime="cudagraph", batch_size=1, channels_last=False) for size in SIZES]
    jobs += [Job(pair(size), "training", "compile") for size in ("t1", "t2", "s", "m")]
    jobs += [Job(pair(size), runtime="compile", batch_size=batch) for size in ("t1", "l") for batch in (256, 1)]
    jobs += [Job(group, precision="tf32") for group in PEER_GROUPS]
    jobs += [Job(group, runtime="cudagraph", precision="tf32", batch_size=1) for group in PEER_GROUPS]
    jobs += [Job(group, runtime="compile", batch_size=batch) for group in PEER_GROUPS for batch in (256, 1)]
    jobs += [Job(group, channels_last=False) for group in PEER_GROUPS]
    jobs += [Job(group, runtime="cudagraph", batch_size=1, channels_last=False) for group in PEER_GROUPS]
    jobs += [Job(group, precision="fp32") for group in PEER_GROUPS]
    jobs += [Job(group, runtime="cudagraph", precision="fp32", batch_size=1) for group in PEER_GROUPS]
    for networks in ([pair(size) for size in SIZES], PEER_GROUPS):
        jobs += [
            Job(names, runtime="compile", precision=precision, batch_size=batch)
            for precision in ("tf32", "fp32")
            for names in networks
            for batch in (256, 1)
        ]
    return jobs


def quick_plan(img_size: int = 64, batch_size: int = 2) -> list[Job]:
    """Every kind of job once, with the smallest networks, small images and a small batch."""
    t0 = pair("t0")
    size = {"img_size": img_size}
    return [
        Job(t0, batch_size=batch_size, **size),
        Job(t0, runtime="cudagraph", batch_size=1, **size),
        Job(t0, "training", batch_size=batch_size, **size),
        *(Job(group, batch_size=batch_size, **size) for group in QUICK_PEERS),
        *(Job(t0, precision=precision, batch_size=batch_size, **size) for precision in ("tf32", "fp32")),
        Job(t0, batch_size=1, channels_last=False, **size),
        Job(t0, runtime="compile", batch_size=1, **size),
        Job(t0, "training", "compile", batch_size=batch_size, **size),
    ]


def possible(jobs: Sequence[Job], device_type: str, runtimes: Sequence[str]) -> Iterator[Job]:
    """The jobs that this kind of device can do, under the runtimes asked for."""
    for job in jobs:
        only_cuda = job.runtime == "cudagraph" or job.precision == "tf32"
        if job.runtime in runtimes and (device_type == "cuda" or not only_cuda):
            yield job
