"""The measuring instrument: interleaving, ratios, files, and the command with every runtime."""

import contextlib
import csv
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from commands import Command, assert_mistake
from matplotlib.figure import Figure
from PIL import Image
from torch._dynamo import config as dynamo_config

import partialnet
from partialnet.bench import environment, interleave
from partialnet.bench.contestants import Setting, default_peer, fastest_form, open_and_prepare, prepare
from partialnet.bench.environment import place
from partialnet.bench.measure import measure_models
from partialnet.bench.report import Row
from partialnet.bench.speed_bars import speed_bars
from partialnet.bench.timing import Timing
from partialnet.bench.torch_settings import torch_settings
from partialnet.checkpoint import create_checkpoint, load
from partialnet.errors import UserError
from partialnet.layers.eager import PatchConv, PositionwiseLinear
from partialnet.plots import save


def test_contestants_take_turns():
    calls: list[str] = []
    timings = interleave(
        {name: lambda name=name: calls.append(name) for name in "abc"}, "a", seconds=0, min_rounds=5, warmup=1
    )
    assert calls == list("abc") * 6
    assert {timing.rounds for timing in timings.values()} == {5}


def test_ratio_is_of_the_same_round(monkeypatch: pytest.MonkeyPatch):
    # both contestants slow down tenfold halfway; their ratio stays 2
    now = [0.0]
    monkeypatch.setattr("partialnet.bench.timing.time", SimpleNamespace(perf_counter=lambda: now[0]))
    durations = iter([0.002, 0.004] * 6 + [0.02, 0.04] * 5)

    def run() -> None:
        now[0] += next(durations)

    timings = interleave({"fast": run, "slow": run}, "fast", seconds=0, min_rounds=9, warmup=2)
    assert timings["fast"].ratio == 1
    assert timings["slow"].ratio == pytest.approx(2)
    assert timings["slow"].ratio_q3 == pytest.approx(2)
    assert timings["slow"].median_ms == pytest.approx(40)
    assert timings["slow"].q1_ms == pytest.approx(4)


def test_another_clock_is_reported():
    now = iter(range(100))
    timings = interleave({"one": lambda: None}, "one", seconds=0, min_rounds=3, clock=lambda: float(next(now)))
    assert timings["one"].median_ms == 1000


def test_environment_has_the_command_without_private_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    typed = [
        "/opt/bin/partialnet",
        "bench",
        "runs/a",
        "/home/me/photos",
        f"--json={tmp_path}/out/a b.json",
        "-r",
        "eager",
    ]
    monkeypatch.setattr("sys.argv", typed)
    found = json.loads(json.dumps(environment()))
    assert found["command"] == "partialnet bench runs/a photos '--json=out/a b.json' -r eager"
    monkeypatch.setattr("sys.argv", ["benchmarks/eager.py", "--threads", "2"])
    assert environment()["command"] == "benchmarks/eager.py --threads 2"
    assert {"cpu", "versions", "commit", "date"} <= set(found)


def test_preparing_leaves_the_network_as_it_is():
    checkpoint = create_checkpoint("test_resnet")
    checkpoint.model.train()
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    prepare(checkpoint, Setting("eager", "bf16", img_size=32))
    assert checkpoint.model.training
    for name, value in checkpoint.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_measuring_gives_back_the_settings_of_the_process():
    def found() -> tuple[int, bool, int, bool]:
        cudnn = torch.backends.cudnn
        return torch.get_num_threads(), cudnn.allow_tf32, dynamo_config.recompile_limit, cudnn.benchmark

    before = found()
    with contextlib.suppress(ZeroDivisionError), torch_settings(before[0] + 1):
        within = found()
        raise ZeroDivisionError
    assert within == (before[0] + 1, False, max(256, before[2]), True)
    assert found() == before
    assert before[1]


# the attention of efficientvit chooses a path by the data type, which cannot be traced: it is folded in parts
@pytest.mark.parametrize("name", ["fasternet_t0", "repvit_m0_9", "efficientvit_b0"])
def test_peers_are_folded_like_ours(name):
    peer = timm.create_model(name).eval()
    fast = partialnet.fold(peer, 64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), peer(images), rtol=1e-4, atol=1e-5)


def test_default_peer():
    assert default_peer("partialnet_s") == "fasternet_s"
    assert default_peer("resnet18") is None


def test_torchvision_names():
    assert load("torchvision:mobilenet_v2").input_config["input_size"] == [3, 224, 224]
    with pytest.raises(UserError, match="no classifier"):
        load("torchvision:mobilenet_v99")


def test_models_are_measured_from_python_beside_the_reference():
    said: list[str] = []
    settings = [Setting(runtime, img_size=32, batch_size=2) for runtime in ("eager", "onnxruntime")]
    rows = measure_models(["test_resnet"], settings, against="test_efficientnet", seconds=0.01, say=said.append)
    assert [(row.setting, row.model) for row in rows] == [
        (setting, model) for setting in settings for model in ("test_resnet", "test_efficientnet")
    ]
    assert [row.timing.ratio for row in rows if row.model == "test_efficientnet"] == [1, 1]
    assert {(row.against, row.input_size) for row in rows} == {("test_efficientnet", (3, 32, 32))}
    model = create_checkpoint("test_resnet").model
    folded = sum(parameter.numel() for parameter in partialnet.fold(model.eval(), 32).parameters())
    assert rows[0].folded_params_m == pytest.approx(folded / 1e6)
    assert said == ["Preparing 2 networks for eager …", "Preparing 2 networks for onnxruntime …"]


def test_command_compares_with_the_peer(command: Command) -> None:
    done = command("bench", "partialnet_t0", "--img-size", "32", "--seconds", "0.01")
    assert "ratio: time ÷ that of fasternet_t0" in done.out


def test_command_with_every_runtime(command: Command, tmp_path: Path) -> None:
    small = str(tmp_path / "small")
    create_checkpoint("partialnet_t0", num_classes=2, embed_dim=16, depths=[0, 0, 0, 1]).save(small)
    files = {kind: tmp_path / f"speed.{kind}" for kind in ("json", "csv", "png")}
    runtimes = ("--runtime", "eager,onnxruntime,openvino", "--img-size", "64", "--seconds", "0.05")
    written = ("--json", files["json"], "--csv", files["csv"], "--plot", files["png"])
    assert command("bench", small, "test_resnet", *runtimes, *written).code == 0
    rows = json.loads(files["json"].read_text())["rows"]
    assert [(row["runtime"], row["network"]) for row in rows] == [
        (runtime, model) for runtime in ("eager", "onnxruntime", "openvino") for model in (small, "test_resnet")
    ]
    assert all(row["median_ms"] > 0 and row["rounds"] >= 7 and row["input_size"] == [3, 64, 64] for row in rows)
    with files["csv"].open() as file:
        assert [row["input_size"] for row in csv.DictReader(file)] == ["3×64×64"] * len(rows)
    assert Image.open(files["png"]).width > 600


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler needs a C++ compiler")
def test_compiled_contestants_have_the_form_of_eager_ones_and_compile_quietly(tmp_path, capfd):
    small = str(tmp_path / "small")
    create_checkpoint("partialnet_t0", num_classes=2, embed_dim=16, depths=[0, 0, 0, 1]).save(small)
    runs = {runtime: open_and_prepare(small, Setting(runtime, img_size=32)) for runtime in ("eager", "compile")}
    assert any(isinstance(layer, PositionwiseLinear) for layer in runs["compile"].model.modules())
    torch.testing.assert_close(runs["compile"](), runs["eager"](), rtol=1e-4, atol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_a_gpu_gets_the_faster_of_two_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    network = create_checkpoint("test_resnet")
    monkeypatch.setattr("partialnet.bench.contestants.fastest_form", lambda models, *arguments: models)
    (for_cpu,) = prepare(network, Setting(img_size=32))
    plain, products = prepare(network, Setting(img_size=32, device="cuda"))
    in_form = [any(isinstance(layer, PatchConv) for layer in m.modules()) for m in (for_cpu, plain, products)]
    assert in_form == [True, False, True]


def test_the_faster_form_is_kept() -> None:
    class Slow(torch.nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return x

    for forms in ([Slow(), torch.nn.Identity()], [torch.nn.Identity(), Slow()]):
        assert type(fastest_form(forms, torch.zeros(1, 3, 4, 4), Setting()).model) is torch.nn.Identity


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", torch.channels_last), ("cuda", torch.contiguous_format)], ids=["cpu", "cuda"]
)
def test_networks_are_compiled_in_the_layout_that_suits_the_device(
    device: str, expected: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on a GPU contiguous, as that is faster uncompiled
    faster = SimpleNamespace(layout=torch.contiguous_format)
    monkeypatch.setattr("partialnet.bench.contestants.fastest_form", lambda *arguments: faster)
    monkeypatch.setattr("partialnet.bench.contestants.TorchRunner", lambda *arguments: arguments)
    setting = Setting("compile", img_size=32, device=device)
    model, _, precision, place, layout = prepare(create_checkpoint("test_resnet"), setting)
    assert model._compiled_call_impl is not None
    assert (precision, place, layout) == ("fp32", device, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ["partialnet_t9"],
        ["partialnet_t0", "--runtime", "tensorrt"],
        ["partialnet_t0", "--runtime", "onnxruntime", "--precision", "bf16"],
        [],
    ],
)
def test_mistakes(arguments: list[str], command: Command) -> None:
    assert_mistake(command("bench", *arguments))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_command_on_a_gpu(command: Command) -> None:
    done = command(
        "bench", "partialnet_t0", "--device", "cuda", "--precision", "bf16", "--seconds", "0.1", "--json", "-"
    )
    assert json.loads(done.out)["rows"][0]["device"] == "cuda"


def test_a_runtime_that_cannot_run_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("No working C++ compiler.\nLook there.")

    monkeypatch.setattr("partialnet.bench.contestants.fastest_form", fail)
    done = command("bench", "test_resnet", "--runtime", "eager", "--seconds", "0.1")
    assert done.code == 2
    assert done.err.splitlines()[-1] == "partialnet: test_resnet cannot be run in eager: No working C++ compiler."


def cannot_run_exported(
    monkeypatch: pytest.MonkeyPatch, only: Callable[[torch.Tensor], bool] = lambda images: True
) -> None:
    """Let onnxruntime fail on the networks whose images fulfil a condition."""

    def fail(model: object, images: torch.Tensor, *arguments: object) -> Callable[[], None]:
        if only(images):
            raise RuntimeError("Nothing runs here.\nLook there.")
        return lambda: None

    monkeypatch.setattr("partialnet.bench.contestants.exported_runner", fail)


def test_what_was_measured_is_kept_when_a_later_runtime_fails(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    cannot_run_exported(monkeypatch)
    files = {kind: tmp_path / f"speed.{kind}" for kind in ("json", "csv", "png")}
    written = ("--json", files["json"], "--csv", files["csv"], "--plot", files["png"])
    networks = ("test_resnet", "test_efficientnet", "--img-size", "32", "--seconds", "0.01")
    done = command("bench", *networks, "-r", "eager,onnxruntime", *written)
    assert done.code == 2
    sentence = "test_resnet cannot be run in onnxruntime: Nothing runs here."
    assert [line for line in done.err.splitlines() if line.startswith("partialnet: ")] == [f"partialnet: {sentence}"]
    assert "Nothing is timed in onnxruntime, as all ratios refer to test_resnet." in done.err
    assert "test_efficientnet" in done.out
    content = json.loads(files["json"].read_text())
    assert [(row["network"], row["runtime"]) for row in content["rows"]] == [
        ("test_resnet", "eager"),
        ("test_efficientnet", "eager"),
    ]
    assert content["failures"] == [sentence]
    assert content["interrupted"] is False
    assert len(files["csv"].read_text().splitlines()) == 3
    assert files["png"].exists()


def test_what_was_measured_is_kept_when_a_person_stops_it(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("partialnet.bench.contestants.exported_runner", stop)
    files = {kind: tmp_path / f"speed.{kind}" for kind in ("json", "csv", "png")}
    arguments = ("bench", "test_resnet", "--img-size", "32", "--seconds", "0.01")
    written = ("--json", files["json"], "--csv", files["csv"], "--plot", files["png"])
    done = command(*arguments, *written, "-r", "eager,onnxruntime")
    assert done.code == 130
    assert "Interrupted; not measured: onnxruntime." in done.err
    assert "test_resnet" in done.out
    content = json.loads(files["json"].read_text())
    assert [(row["network"], row["runtime"]) for row in content["rows"]] == [("test_resnet", "eager")]
    assert content["interrupted"] is True
    assert len(files["csv"].read_text().splitlines()) == 2
    assert files["png"].exists()
    assert command(*arguments, "-r", "onnxruntime,eager")[:2] == (130, "")


def test_a_network_that_a_runtime_cannot_run_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = ["test_resnet", "test_vit", "test_efficientnet"]
    numbers = iter(range(3))
    cannot_run_exported(monkeypatch, lambda images: next(numbers) == 1)
    failures: list[str] = []
    settings = [Setting(runtime, img_size=160) for runtime in ("onnxruntime", "eager")]
    rows = measure_models(networks, settings, seconds=0.01, on_failure=failures.append)
    assert [(row.setting.runtime, row.model) for row in rows] == [
        ("onnxruntime", "test_resnet"),
        ("onnxruntime", "test_efficientnet"),
        *(("eager", name) for name in networks),
    ]
    assert failures == ["test_vit cannot be run in onnxruntime: Nothing runs here."]
    numbers = iter(range(3))
    with pytest.raises(UserError, match="test_vit cannot be run in onnxruntime"):
        measure_models(networks, settings, seconds=0.01)


def test_too_little_memory_for_all_networks_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("partialnet.bench.measure.interleave", fail)
    failures: list[str] = []
    assert measure_models(["test_resnet"], [Setting(img_size=32)], on_failure=failures.append) == []
    (failure,) = failures
    assert failure.startswith("The networks cannot be timed in eager: the GPU is out of memory; use smaller")


def test_a_precision_that_one_runtime_lacks_is_refused_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    compiled = SimpleNamespace(get_property=lambda name: SimpleNamespace(to_string=lambda: "f32"))
    core = SimpleNamespace(compile_model=lambda *arguments: compiled)
    monkeypatch.setattr("partialnet.bench.runners.openvino_core", lambda: core)
    done = command("bench", "test_resnet", "--runtime", "eager,openvino", "--precision", "bf16")
    assert_mistake(done, "OpenVINO computes in f32 on this CPU when asked for bf16; measure fp32 instead.\n")


def test_results_of_a_gpu_are_labelled_with_its_name(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    figures = drawn(monkeypatch)
    timing = Timing(4.0, 3.0, 5.0, 1.0, 1.0, 1.0, 9)
    rows = [Row("resnet50", "resnet50", Setting("eager", "bf16", device="cuda"), (3, 224, 224), timing, 25.6, 4.1)]
    monkeypatch.setattr("partialnet.bench.measure.measure_each_setting", lambda *arguments: [rows])
    monkeypatch.setattr(Setting, "check", lambda setting: None)
    done = command("bench", "resnet50", "--device", "cuda", "-p", "bf16", "--plot", tmp_path / "speed.png")
    assert "in the same round; NVIDIA H200, bf16." in done.out
    assert [figure.get_suptitle() for figure in figures] == [
        "Inference, batch 1, bf16, NVIDIA H200; × is the ratio to resnet50"
    ]
    assert place("cpu", 1) == "1 CPU thread"
    assert place("cpu", 4) == "4 CPU threads"


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The bar charts that are drawn from now on."""
    figures: list[Figure] = []

    def note(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr("partialnet.bench.speed_bars.save", note)
    return figures


def test_names_with_dollars_are_no_formulas_in_the_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # names of run folders; this formula is wrong, and would end the plot
    figures = drawn(monkeypatch)
    timing = Timing(4.0, 3.0, 5.0, 1.0, 1.0, 1.0, 9)
    rows = [
        Row(name, "runs/$^$", Setting(runtime), (3, 32, 32), timing, 1.0, 1.0)
        for runtime, names in (("eager", ("other", "runs/$^$")), ("openvino", ("runs/$^$",)))  # which lacks one
        for name in names
    ]
    speed_bars(tmp_path / "speed.png", rows)
    assert figures[0].get_suptitle().endswith("the ratio to runs/$^$")
    assert Image.open(tmp_path / "speed.png").width > 600


@pytest.mark.parametrize("runtimes", [("eager",), ("eager", "onnxruntime", "openvino")])
def test_long_names_leave_room_for_the_bars(
    runtimes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures = drawn(monkeypatch)
    names = ("runs/a_run_with_all_that_was_set_in_its_name_lr0.001_wd0.05_seed3", "resnet50")
    rows = [
        Row(name, names[1], Setting(runtime), (3, 32, 32), Timing(123.4, 115.0, 128.0, 1.23, 1.2, 1.3, 9), 1.0, 1.0)
        for runtime in runtimes
        for name in names
    ]
    speed_bars(tmp_path / "speed.png", rows)
    (figure,) = figures
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["runs/a_run_with_all…lr0.001_wd0.05_seed3", "resnet50"]
    for axes in figure.axes:
        assert axes.get_window_extent().width > 2.5 * figure.dpi
        assert all(text.get_window_extent().x1 < axes.get_window_extent().x1 for text in axes.texts)


@pytest.mark.filterwarnings("error")
def test_a_wide_spread_leaves_room_for_the_numbers_in_the_picture(tmp_path: Path) -> None:
    timing = Timing(4.0, 3.0, 400.0, 1.0, 1.0, 1.0, 9)
    speed_bars(tmp_path / "speed.png", [Row("resnet50", "resnet50", Setting(), (3, 32, 32), timing, 1.0, 1.0)])
