"""The GPU suite: its real code on the CPU, with small networks; the same on a GPU where there is one."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_suite
import gpu_tables
import pytest
import torch
import training_speed
from gpu import runs, state
from gpu import suite as suite_module
from gpu.networks import inference_network, work
from gpu.plan import PEER_GROUPS, RUNTIMES, SIZES, Job, full_plan, pair, possible
from gpu.runs import CompileTimeout, time_limit
from gpu.suite import Suite
from gpu.timing import Stopwatch, interleave
from PIL import Image
from timm.layers import BatchNormAct2d
from timm.models import register_model
from torch import nn

BENCHMARKS = Path(gpu_tables.__file__).parent
CPU = torch.device("cpu")


@register_model
def gpu_suite_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network that compiles in seconds."""
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@register_model
def gpu_suite_failing(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network that can be built and folded but not run."""
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(3, 3))


def small_suite(path: Path, **options: Any) -> Suite:
    return Suite(CPU, path, **{"seconds": 0.01, "quick": True, **options})


def test_command_without_the_optional_packages(tmp_path: Path):
    # as on a machine that has PyTorch and timm and nothing of ours: a checkout, no other package
    output = tmp_path / "result.json"
    absent = ["lightning", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "sklearn", "matplotlib", "click"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import torch; torch.set_num_threads(1); import gpu_suite\n"
        "gpu_suite.main(sys.argv[1:])"
    )
    arguments = ["--device", "cpu", "--quick", "--seconds", "0.01", "--runtimes", "eager", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path, env={}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"next: python benchmarks/gpu_tables.py {output}" in done.stdout
    result = json.loads(output.read_text())
    assert result["finished"]
    assert result["failed"] == result["skipped"] == result["missing"] == []
    rows = result["rows"]
    assert len(rows) == 10
    assert {row["task"] for row in rows} == {"inference", "training"}
    assert {row["precision"] for row in rows} == {"bf16", "fp32"}
    assert {row["layout"] for row in rows} == {"channels_last", "contiguous"}
    for row in rows:
        tried_both = row["task"] == "inference" and row["layout"] == "channels_last"
        assert row["form"] in ("plain", "torch") if tried_both else row["form"] == "plain"
        assert row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch_size"] / row["median_ms"], rel=1e-3)
        assert row["rounds"] >= 7
    check_tables(result)


def test_command_waits_for_nothing_at_its_end(tmp_path: Path):
    # PyTorch waits there for its compiler's processes
    output = tmp_path / "result.json"
    program = (
        "import atexit, runpy, sys; atexit.register(print, 'waited'); sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["--device", "cpu", "--quick", "--minutes", "0", "--runtimes", "eager", "--output", str(output)]
    command = [sys.executable, "-c", program, str(BENCHMARKS / "gpu_suite.py"), *arguments]
    environment = {"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert f"next: python benchmarks/gpu_tables.py {output}" in done.stdout
    assert "waited" not in done.stdout
    assert json.loads(output.read_text())["finished"]


def check_tables(result: dict[str, Any]) -> None:
    page = gpu_tables.page(result)
    ours = next(row for row in result["rows"] if row["against"] == "fasternet_t0" and row["model"] == "partialnet_t0")
    assert f"| {ours['ratio']:.2f} ({ours['ratio_q1']:.2f}–{ours['ratio_q3']:.2f}) |" in page
    assert f"{ours['images_per_second']:,.0f} |" in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    # after the pairs one table of networks for each precision and layout
    networks: dict[tuple[str, str], set[str]] = {}
    for row in result["rows"]:
        if row["task"] == "inference":
            networks.setdefault((row["precision"], row["layout"]), set()).add(row["model"])
    in_order = sorted(networks, key=lambda kind: (("bf16", "tf32", "fp32").index(kind[0]), kind[1]))
    assert [block for block in page.split("\n\n") if block.startswith("In ")] == [
        f"In {precision}, {layout}:" for precision, layout in in_order
    ]
    for kind, lines in zip(in_order, tables[1:], strict=True):
        assert {line.split(" | ")[0].removeprefix("| ") for line in lines[2:]} == networks[kind]


def test_plan_holds_what_was_asked_for():
    jobs = full_plan()
    assert len(set(jobs)) == len(jobs)
    # the first comparisons are the pairs, and compiling starts with the smallest
    assert [job.names for job in jobs[:6]] == [pair(size) for size in SIZES]
    assert next(job for job in jobs if job.runtime == "compile").names == pair("t0")
    measured = {
        (name, job.task, job.runtime, job.precision, job.batch_size, job.channels_last)
        for job in jobs
        for name in job.names
    }
    pairs = {name for size in SIZES for name in pair(size)}
    peers = {name for group in PEER_GROUPS for name in group}
    for name in pairs | peers:
        for channels_last in (True, False):
            assert (name, "inference", "eager", "bf16", 256, channels_last) in measured
            assert (name, "inference", "cudagraph", "bf16", 1, channels_last) in measured
        for precision in ("bf16", "tf32", "fp32"):
            assert (name, "inference", "eager", precision, 256, True) in measured
            assert (name, "inference", "cudagraph", precision, 1, True) in measured
            for batch in (256, 1):
                assert (name, "inference", "compile", precision, batch, True) in measured
                assert ((name, "inference", "autotune", precision, batch, True) in measured) == (precision == "bf16")
    for name in pairs:
        for runtime in ("eager", "compile"):
            assert ((name, "training", runtime, "bf16", 256, True) in measured) == (not name.endswith("_l"))


def test_what_only_completes_the_table_comes_last_and_the_cheap_first():
    jobs = full_plan()
    places: dict[str, list[int]] = {"cheap": [], "compiled": [], "completing": [], "last": []}
    for index, job in enumerate(jobs):
        if job.runtime == "autotune" or (job.runtime == "compile" and job.precision != "bf16"):
            places["last"].append(index)
        elif job.compile_mode is not None:
            places["compiled"].append(index)
        elif job.names in PEER_GROUPS and (job.precision == "fp32" or not job.channels_last):
            places["completing"].append(index)
        elif job.precision == "bf16" and job.channels_last and (job.batch_size == 256 or job.runtime == "cudagraph"):
            places["cheap"].append(index)
    assert places["last"] == list(range(places["last"][0], len(jobs)))
    order = ("cheap", "compiled", "completing", "last")
    assert all(max(places[one]) < min(places[next]) for one, next in itertools.pairwise(order))
    # the compiler may still be busy with a network whose time is over
    autotuned = [index for index, job in enumerate(jobs) if job.runtime == "autotune"]
    assert autotuned == list(range(autotuned[0], len(jobs)))


def test_the_cpu_gets_what_it_can_do():
    jobs = list(possible(full_plan(), "cpu", ("eager", "cudagraph")))
    assert jobs
    assert {job.runtime for job in jobs} == {"eager"}
    assert {job.precision for job in jobs} == {"bf16", "fp32"}
    assert list(possible(full_plan(), "cuda", RUNTIMES)) == full_plan()


def test_work_of_a_convolution_by_hand():
    # 8×8 patches of 32×32: 4×4 positions, 192 weights for each of 4 channels
    needed = work("gpu_suite_small", 32)
    assert needed.params == 4 * 192 + 4
    assert needed.macs_per_image == 16 * 4 * 192
    assert needed.values_per_image == 3 * 32 * 32 + 4 * 16
    assert needed.values_of_weights == 4 * 192 + 4
    assert needed.flops(3) == 2 * 3 * 16 * 4 * 192
    assert needed.bytes_moved(2, 4) == 4 * (2 * (3 * 32 * 32 + 4 * 16) + 4 * 192 + 4)


def test_networks_are_timed_in_folded_form():
    for name in ("partialnet_t0", "mobilenetv4_conv_small"):
        kinds = {type(module) for module in inference_network(name, 64).modules()}
        assert not kinds & {nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d}
    # the paper's multiply–adds, in thousand millions
    assert work("partialnet_t0", 224).macs_per_image / 1e9 == pytest.approx(0.249, abs=1e-3)


def test_failing_and_missing_networks_are_named(tmp_path: Path):
    path = tmp_path / "result.json"
    names = ("gpu_suite_small", "gpu_suite_failing", "network_of_tomorrow")
    result = small_suite(path).run([Job(names, batch_size=2, img_size=32, precision="fp32")])
    assert json.loads(path.read_text()) == result
    assert result["missing"] == ["network_of_tomorrow"]
    assert [row["model"] for row in result["rows"]] == ["gpu_suite_small"]
    assert [entry["models"] for entry in result["failed"]] == [["gpu_suite_failing"]]
    assert "RuntimeError" in result["failed"][0]["error"]
    gaps = gpu_tables.gaps(result)
    assert "not in this timm: network_of_tomorrow" in gaps
    assert "failed: gpu_suite_failing (inference eager fp32 channels_last batch 2): RuntimeError" in gaps


def test_the_faster_form_counts_and_one_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = Job(("gpu_suite_small", "test_resnet"), batch_size=1, img_size=32, precision="fp32")
    original = runs._model

    class Slow(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return self.network(images)

    def model(name: str, form: Any, job: Job, device: torch.device) -> nn.Module:
        if name == "gpu_suite_small" and form == "torch":
            raise RuntimeError("CUDA out of memory")
        found = original(name, form, job, device)
        return Slow(found) if form is None else found

    monkeypatch.setattr(runs, "_model", model)
    result = small_suite(tmp_path / "result.json").run([job])
    assert {row["model"]: row["form"] for row in result["rows"]} == {"gpu_suite_small": "plain", "test_resnet": "torch"}
    (failed,) = result["failed"]
    assert failed["models"] == ["gpu_suite_small"]
    assert failed["error"] == "in another form: RuntimeError: CUDA out of memory"


def test_compilers_and_contiguous_networks_get_the_plain_form():
    plain = [job for job in full_plan() if runs.forms(job) == (None,)]
    assert plain == [j for j in full_plan() if j.compile_mode or j.task == "training" or not j.channels_last]


def test_without_its_reference_a_network_has_no_ratio(tmp_path: Path):
    names = ("gpu_suite_failing", "gpu_suite_small")
    (row,) = small_suite(tmp_path / "result.json").run([Job(names, batch_size=2, img_size=32)])["rows"]
    assert row["model"] == "gpu_suite_small"
    assert row["median_ms"] > 0
    assert row["ratio"] is row["against"] is None


def test_what_does_not_fit_is_skipped_and_named(tmp_path: Path):
    jobs = [
        Job(("gpu_suite_small", "gpu_suite_small"), runtime=runtime, img_size=32) for runtime in ("eager", "compile")
    ]
    result = small_suite(tmp_path / "result.json", minutes=0.0).run(jobs)
    assert result["finished"]
    assert result["rows"] == []
    assert [entry["job"] for entry in result["skipped"]] == [job.label for job in jobs]
    assert f"skipped: {jobs[0].label}" in gpu_tables.gaps(result)


def test_rows_are_on_disk_before_the_next_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "result.json"
    original = Suite.measure
    jobs = [Job(("gpu_suite_small", "test_resnet"), batch_size=size, img_size=32, precision="fp32") for size in (1, 2)]

    def cut_off(self: Suite, job: Job) -> None:
        if job.batch_size == 2:
            raise KeyboardInterrupt
        original(self, job)

    monkeypatch.setattr(Suite, "measure", cut_off)
    with pytest.raises(KeyboardInterrupt):
        small_suite(path).run(jobs)
    result = json.loads(path.read_text())
    assert [row["model"] for row in result["rows"]] == ["gpu_suite_small", "test_resnet"]
    assert not result["finished"]
    assert "cut off" in gpu_tables.gaps(result)


def test_an_interrupted_command_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    limits: list[float] = []

    def interrupted(self: Suite, jobs: Any) -> None:
        self.results["rows"].append({})
        raise KeyboardInterrupt

    monkeypatch.setattr(Suite, "run", interrupted)
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda seconds, exit: limits.append(seconds * exit))
    monkeypatch.setattr("faulthandler.cancel_dump_traceback_later", lambda: limits.append(0))
    path = tmp_path / "result.json"
    with pytest.raises(SystemExit) as stop:
        gpu_suite.main(["--device", "cpu", "--quick", "--minutes", "2", "--output", str(path)])
    assert stop.value.code == 130
    assert capsys.readouterr().out == f"interrupted: 1 rows are in {path}\n"
    # what hangs where no signal reaches it would have been ended soon after the time budget, and nothing else
    assert limits == [2 * 60 + gpu_suite.GRACE_SECONDS, 0]


def test_after_an_error_that_the_device_does_not_survive_the_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    jobs = [Job(("gpu_suite_small", "test_resnet"), batch_size=size, img_size=32, precision="fp32") for size in (1, 2)]
    monkeypatch.setattr(torch.compiler, "reset", broken)
    monkeypatch.setattr(suite_module, "usable", lambda device: False)
    result = small_suite(tmp_path / "result.json").run(jobs)
    assert [row["batch_size"] for row in result["rows"]] == [1, 1]
    assert result["skipped"] == [{"job": jobs[1].label, "reason": "the device stopped working"}]


def test_a_recording_that_breaks_leaves_the_stream_and_says_why(monkeypatch: pytest.MonkeyPatch):
    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    default = Stream()
    current: list[object] = [default]

    @contextlib.contextmanager
    def stream(new: object) -> Iterator[None]:
        before, current[0] = current[0], new
        try:
            yield
        finally:
            current[0] = before

    class Recording:
        """Like PyTorch's, it does not leave its stream where the end of the recording fails."""

        def __init__(self, graph: object, stream: object) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream

        def __exit__(self, *error: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    def fails_when_recorded() -> None:
        if not gc.isenabled():  # nothing is collected during a recording
            raise RuntimeError("a sum is wanted on the CPU")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    with pytest.raises(RuntimeError, match="a sum is wanted on the CPU"):
        runs.capture(fails_when_recorded)
    assert current == [default]
    assert gc.isenabled()


def test_what_nvidias_tools_say_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda", 0)
    known = SimpleNamespace(
        name="NVIDIA X", total_memory=2**34, major=9, minor=0, multi_processor_count=8, uuid="12-ab"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setenv("PATH", str(tmp_path))
    without = state.device_facts(cuda)
    assert (without["gpu"], without["gpu_memory_gib"], without["compute_capability"]) == ("NVIDIA X", 16.0, "9.0")
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nassert '--id=GPU-12-ab' in sys.argv\nprint('580.1, 1980, [N/A]')\n"
    )
    program.chmod(0o755)
    driver = {"driver": "580.1", "max_sm_clock_mhz": "1980", "power_limit_w": "[N/A]"}
    assert state.device_facts(cuda) == without | driver
    program.write_text(f"#!{sys.executable}\nraise SystemExit(9)\n")
    assert state.device_facts(cuda) == without

    def absent(device: torch.device) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "clock_rate", lambda device: 1755)
    monkeypatch.setattr(torch.cuda, "temperature", absent)
    assert state.device_state(cuda) == {"sm_clock_mhz": 1755}
    assert state.device_state(CPU) == {}


def test_a_gpu_that_was_idle_warms_up_before_it_is_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gpu.timing.WARM_UP_SECONDS", 0.05)
    calls: list[float] = []

    def measured(device_type: str) -> int:
        watch: Any = lambda run, calls=1: run() or 1.0  # noqa: E731
        watch.device = torch.device(device_type)
        calls.clear()
        run = lambda: (time.sleep(0.002), calls.append(time.perf_counter()))[0]  # noqa: E731
        samples = interleave({"a": run}, watch, seconds=0.05, latency=True, min_rounds=5, max_rounds=5)
        assert len(samples["a"].milliseconds) == 5
        return len(calls)

    assert measured("cpu") == 2 + 2 + 5
    assert measured("cuda") > 2 + 2 + 5


def test_time_limit_ends_python_that_ignores_errors():
    begin = time.monotonic()

    def stubborn() -> None:
        with time_limit(0.05):
            while time.monotonic() - begin < 10:
                with contextlib.suppress(Exception):
                    time.sleep(1)

    with pytest.raises(CompileTimeout, match="more than 0 s"):
        stubborn()
    assert time.monotonic() - begin < 5
    time.sleep(0.1)  # no alarm is left


def test_compiling_too_long_ends_the_comparison_and_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"batch_size": 1, "img_size": 32, "precision": "fp32"}
    names = ("gpu_suite_small", "test_resnet")
    eager, *compiled = (Job(names, runtime=runtime, **settings) for runtime in ("eager", "compile", "compile"))
    prepared = []

    def prepare(name: str, job: Job, device: torch.device, seconds: float) -> Any:
        prepared.append((name, job.runtime))
        if job.runtime == "compile":
            raise CompileTimeout("compiling took more than 1 s")
        return original(name, job, device, seconds)

    original = suite_module.prepare
    monkeypatch.setattr(suite_module, "prepare", prepare)
    result = small_suite(tmp_path / "result.json").run([*compiled, eager])
    assert prepared == [("gpu_suite_small", "compile"), ("gpu_suite_small", "eager"), ("test_resnet", "eager")]
    assert [row["runtime"] for row in result["rows"]] == ["eager", "eager"]
    (failed,) = result["failed"]
    assert failed["error"] == "CompileTimeout: compiling took more than 1 s"
    assert result["skipped"] == [{"job": compiled[1].label, "reason": "nothing of this kind could be run"}]


def test_the_compilers_processes_start_before_they_are_needed(monkeypatch: pytest.MonkeyPatch):
    started: list[bool] = []
    compiler = "torch._inductor.async_compile.AsyncCompile"
    monkeypatch.setattr(f"{compiler}.use_process_pool", lambda self: started.append(True))
    runs.start_compiler()
    assert started


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compiled_network(tmp_path: Path):
    job = Job(("gpu_suite_small", "gpu_suite_failing"), runtime="compile", batch_size=2, img_size=32, precision="fp32")
    result = small_suite(tmp_path / "result.json", minutes=20.0, compile_seconds=500.0).run([job])
    (row,) = result["rows"]
    assert row["compile_mode"] == "default"
    assert row["prepare_seconds"] > row["median_ms"] / 1e3
    assert [entry["models"] for entry in result["failed"]] == [["gpu_suite_failing"]]


def test_contestants_take_turns_and_one_may_fail():
    calls: list[str] = []

    def failing() -> None:
        calls.append("b")
        if calls.count("b") > 6:
            raise RuntimeError("out of memory")

    runs = {"a": lambda: calls.append("a"), "b": failing, "c": lambda: calls.append("c")}
    samples = interleave(runs, Stopwatch(CPU), seconds=0, latency=True, min_rounds=5)
    assert "".join(calls) == "aabbcc" + 2 * "abc" + 3 * "abc" + 2 * "ac"
    assert "out of memory" in str(samples["b"].error)
    assert len(samples["a"].milliseconds) == len(samples["c"].milliseconds) == 5
    assert samples["c"].error is None


def test_ratio_is_of_the_same_round():
    samples = interleave({"a": int, "b": int}, Stopwatch(CPU), seconds=0, latency=True)
    # the machine is ten times slower in the second half
    samples["a"].milliseconds = [1.0, 1.0, 10.0, 10.0]
    samples["b"].milliseconds = [2.0, 2.0, 20.0, 20.0]
    assert samples["b"].ratio_quartiles(samples["a"]) == (2.0, 2.0, 2.0)
    assert samples["b"].quartiles() == (2.0, 11.0, 20.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_command_on_a_gpu(tmp_path: Path):
    output = tmp_path / "result.json"
    gpu_suite.main(["--quick", "--compile-seconds", "240", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["failed"] == result["skipped"] == []
    assert {row["runtime"] for row in result["rows"]} == set(RUNTIMES)
    assert {row["precision"] for row in result["rows"]} == {"bf16", "tf32", "fp32"}
    assert all(row["peak_memory_mb"] > 0 for row in result["rows"])
    check_tables(result)


def test_training_speed_of_both_networks(tmp_path: Path):
    output = tmp_path / "result.json"
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.png")
    sizes = ["--batch-size", "2", "--img-size", "32", "--seconds", "0", "--batches", "1", "--rounds", "1"]
    training_speed.main([str(tmp_path / "photos"), "--cores", "1", *sizes, "--output", str(output)])
    result = json.loads(output.read_text())
    *steps, _, together = result["rows"]
    assert (together["threads"], together["workers"], result["images"]) == (1, 1, 22)
    assert all(together[f"{what}_images_per_second"]["median"] > 0 for what in ("loader", "step", "both"))
    rows = {row["model"]: row for row in steps}
    assert set(rows) == {"fasternet_t0", "partialnet_t0"}
    assert rows["fasternet_t0"]["ratio"] == 1
    for row in rows.values():
        assert row["what"] == "step"
        assert row["images_per_second"] == pytest.approx(2e3 / row["median_ms"], rel=1e-2)
