"""What the suite measures, the most important comparisons first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

#: How networks run, and the compiler's mode of those that are compiled; without its own CUDA graphs, which come from
#: ``capture``.
RUNTIMES = {"eager": None, "cudagraph": None, "compile": "default", "autotune": "max-autotune-no-cudagraphs"}
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
        runtime: One of ``RUNTIMES``. "cudagraph" replays eager PyTorch's kernels; what is compiled is replayed the same
            way in inference.
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
    def compile_mode(self) -> str | None:
        """The compiler's mode; None if nothing is compiled."""
        return RUNTIMES[self.runtime]

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

    What is cheap comes before what has to be compiled, which takes most of the time; what only completes the table
    comes after. A job that does not fit into the time is skipped for a later one.
    """
    pairs = [pair(size) for size in SIZES]
    batches = (256, 1)
    jobs: list[Job] = []
    jobs += [Job(names) for names in pairs]
    jobs += [Job(names, runtime="cudagraph", batch_size=1) for names in pairs]
    jobs += [Job(names, "training") for names in pairs[:-1]]
    jobs += [Job(names) for names in PEER_GROUPS]
    jobs += [Job(names, runtime="cudagraph", batch_size=1) for names in PEER_GROUPS]
    jobs += [Job(pairs[0], runtime="compile", batch_size=batch) for batch in batches]
    jobs += [Job(names, precision="tf32") for names in pairs]
    jobs += [Job(names, runtime="cudagraph", precision="tf32", batch_size=1) for names in pairs]
    jobs += [Job(names, runtime="compile", batch_size=batch) for names in pairs[1:] for batch in batches]
    jobs += [Job(names, precision="fp32") for names in pairs]
    jobs += [Job(names, runtime="cudagraph", precision="fp32", batch_size=1) for names in pairs]
    jobs += [Job(names, batch_size=1) for names in pairs]
    jobs += [Job(names, channels_last=False) for names in pairs]
    jobs += [Job(names, runtime="cudagraph", batch_size=1, channels_last=False) for names in pairs]
    jobs += [Job(names, "training", "compile") for names in pairs[:-1]]
    jobs += [Job(names, runtime="compile", batch_size=batch) for names in PEER_GROUPS for batch in batches]
    for precision in ("tf32", "fp32"):
        jobs += [Job(names, precision=precision) for names in PEER_GROUPS]
        jobs += [Job(names, runtime="cudagraph", precision=precision, batch_size=1) for names in PEER_GROUPS]
    jobs += [Job(names, channels_last=False) for names in PEER_GROUPS]
    jobs += [Job(names, runtime="cudagraph", batch_size=1, channels_last=False) for names in PEER_GROUPS]
    # what is autotuned comes last: where it is ended, the compiler's processes still work off what they were given
    for precision, runtime in (("tf32", "compile"), ("fp32", "compile"), ("bf16", "autotune")):
        jobs += [
            Job(names, runtime=runtime, precision=precision, batch_size=batch)
            for names in (*pairs, *PEER_GROUPS)
            for batch in batches
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
        Job(t0, runtime="autotune", batch_size=1, **size),
    ]


def possible(jobs: Sequence[Job], device_type: str, runtimes: Collection[str]) -> Iterator[Job]:
    """The jobs that this kind of device can do, under the runtimes asked for."""
    for job in jobs:
        only_cuda = job.runtime in ("cudagraph", "autotune") or job.precision == "tf32"
        if job.runtime in runtimes and (device_type == "cuda" or not only_cuda):
            yield job
