"""One network under one setting, as something to call."""

from __future__ import annotations

import copy
import gc
import io
import signal
import threading
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import timm
import torch
from torch import nn
from torch._functorch import config as functorch_config
from training_step import training_step

from partialnet.layers.inference import Runtime

from .networks import inference_network
from .plan import Job
from .timing import Run, Stopwatch


class CompileTimeout(BaseException):
    """Compiling took longer than allowed.

    No ``Exception``, because the compiler takes those for candidates that failed and goes on with the next.
    """


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise CompileTimeout in the main thread when the block takes longer."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: types.FrameType | None) -> None:
        raise CompileTimeout(f"compiling took more than {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, expire)
    # again every 5 s, in case a library swallows the first
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


#: Seconds for which two forms of a network are tried.
TRIAL_SECONDS = 0.05


@dataclass(frozen=True)
class Prepared:
    """One network under one setting.

    Attributes:
        run: Runs it once.
        form: What it is folded for, as ``fold`` calls it; None is the plain form.
        seconds: How long making it took.
        peak_memory_mb: The memory it needs at most; None on the CPU.
        errors: What kept other forms from being tried.
    """

    run: Run
    form: Runtime | None
    seconds: float
    peak_memory_mb: float | None
    errors: tuple[Exception, ...] = field(default=())


@dataclass(frozen=True)
class Replay:
    """A captured CUDA graph, with the call that it was captured from, whose tensors must stay alive."""

    graph: torch.cuda.CUDAGraph
    captured: Run

    def __call__(self) -> None:
        """Run the graph's kernels again on the same memory."""
        self.graph.replay()


def set_precision(precision: str) -> None:
    """Let float32 products and convolutions use TF32, or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of PyTorch would like other names
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def forms(job: Job) -> tuple[Runtime | None, ...]:
    """What networks are folded for, of which the fastest counts.

    Matrix products save the kernels that add a convolution's bias, but mergings of patches take a copy more. They see
    maps in the channels_last layout; compilers get the plain form, to merge what they like.
    """
    eager = job.task == "inference" and job.compile_mode is None and job.channels_last
    return (None, "torch") if eager else (None,)


def prepare(name: str, job: Job, device: torch.device, compile_seconds: float) -> Prepared:
    """Build, place, compile and warm up one network, in the fastest of its forms.

    Raises:
        CompileTimeout: Compiling took more than ``compile_seconds``.
        Exception: Whatever no form of the network can be run for.
    """
    found: list[Prepared] = []
    errors: list[Exception] = []
    for form in forms(job):
        try:
            found.append(_prepare(name, form, job, device, compile_seconds))
        except Exception as error:
            errors.append(error.with_traceback(None))  # whose frames would keep tensors on the device
        if errors:
            free(device)
    if not found:
        raise errors[0]
    fastest = found[0] if len(found) == 1 else min(found, key=lambda prepared: _trial(prepared.run, device))
    return replace(fastest, errors=tuple(errors))


def _trial(run: Run, device: torch.device) -> float:
    """The least of a few times, in milliseconds."""
    stopwatch, end = Stopwatch(device), time.perf_counter() + TRIAL_SECONDS
    best = stopwatch(run)
    while time.perf_counter() < end:
        best = min(best, stopwatch(run))
    return best


def _prepare(name: str, form: Runtime | None, job: Job, device: torch.device, compile_seconds: float) -> Prepared:
    begin = time.perf_counter()
    set_precision(job.precision)
    memory = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    model = _model(name, form, job, device)
    if job.compile_mode is not None:
        # dynamic=False: a second batch size is another kernel, not a general one
        model.compile(mode=job.compile_mode, dynamic=False)
    run = (_training_run if job.task == "training" else _inference_run)(model, job, device)
    with nullcontext() if job.compile_mode is None else _compiling(compile_seconds):
        # twice, as the first training step still lacks the optimiser's state
        for _ in range(2):
            run()
        _synchronize(device)
    peak = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        peak = (torch.cuda.max_memory_allocated(device) - memory) / 1e6
        if job.task == "inference" and job.runtime != "eager":
            run = capture(run)
    return Prepared(run, form, time.perf_counter() - begin, peak)


def capture(run: Run) -> Replay:
    """Record the kernels of one call in a CUDA graph; two calls on the capturing stream come before.

    Raises:
        Exception: What the call raised, rather than what ending a broken recording then raises.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    gc.disable()  # what is collected would give back memory and graphs in the middle of the recording
    try:
        # the stream in use comes back even where ending the recording raises
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=stream):
            run()
    except Exception as error:
        raise error.__context__ if isinstance(error.__context__, Exception) else error from None
    finally:
        gc.enable()
    return Replay(graph, run)


def release(device: torch.device) -> None:
    """Give back what the last job held, and forget what was compiled: PyTorch limits variants of one function."""
    with suppress(RuntimeError):  # as in ``free``
        torch.compiler.reset()
    free(device)


def free(device: torch.device) -> None:
    """Give back the memory of what is gone."""
    gc.collect()
    if device.type == "cuda":
        # after some errors even this fails; ``usable`` finds out
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def start_compiler() -> None:
    """Start the processes in which PyTorch compiles kernels, so that the first network need not wait for them."""
    with suppress(ImportError, AttributeError):  # no public function
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile().use_process_pool()  # asks whether they are ready, and starts them for that


@contextmanager
def _compiling(seconds: float) -> Iterator[None]:
    """A limited time, without the compiler's tables of all candidates on the terminal; errors come as exceptions."""
    # otherwise autograd's thread compiles the backward pass, where no signal can end it
    if hasattr(functorch_config, "force_non_lazy_backward_lowering"):
        functorch_config.force_non_lazy_backward_lowering = True
    with time_limit(seconds), redirect_stderr(io.StringIO()):
        yield


def usable(device: torch.device) -> bool:
    """Whether the device still works; some errors leave it useless for the rest of the process."""
    try:
        Stopwatch(device)(lambda: torch.ones(8, device=device).sum().item())
        if device.type == "cuda":
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _layout(job: Job) -> torch.memory_format:
    return torch.channels_last if job.channels_last else torch.contiguous_format


def _model(name: str, form: Runtime | None, job: Job, device: torch.device) -> nn.Module:
    if job.task == "training":
        torch.manual_seed(0)
        return timm.create_model(name).train().to(device, memory_format=_layout(job))
    model = copy.deepcopy(inference_network(name, job.img_size, form))
    return model.to(device, torch.bfloat16 if job.precision == "bf16" else torch.float32, memory_format=_layout(job))


def _images(job: Job, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    images = torch.randn(job.batch_size, 3, job.img_size, job.img_size, device=device, dtype=dtype)
    return images.contiguous(memory_format=_layout(job))


def _inference_run(model: nn.Module, job: Job, device: torch.device) -> Run:
    images = _images(job, device, torch.bfloat16 if job.precision == "bf16" else torch.float32)

    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def _training_run(model: nn.Module, job: Job, device: torch.device) -> Run:
    labels = torch.randint(0, 1000, (job.batch_size,), device=device)
    autocast = torch.bfloat16 if job.precision == "bf16" else None
    step = training_step(model, autocast=autocast)
    return partial(step, _images(job, device, torch.float32), labels)
