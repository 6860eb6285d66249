"""Runners give the network's outputs, in every runtime and precision, long after the files they came from are gone."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import Randomize
from torch import nn

from partialnet.bench.contestants import Setting, prepare
from partialnet.bench.runners import OnnxRuntimeRunner, OpenVINORunner, TorchRunner
from partialnet.checkpoint import load
from partialnet.deploy.export import write_onnx
from partialnet.deploy.library_messages import quiet
from partialnet.deploy.precision import convert_onnx, convert_openvino
from partialnet.deploy.quantize import _float_products
from partialnet.deploy.runtimes import openvino_core
from partialnet.errors import UserError
from partialnet.folding import fold

CASES = [
    (OnnxRuntimeRunner, "fp32", 1e-5),
    (OnnxRuntimeRunner, "fp16", 1e-2),
    (OnnxRuntimeRunner, "int8", 1e-1),
    (OpenVINORunner, "fp32", 1e-5),
    (OpenVINORunner, "int8", 1e-1),
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 5)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def onnx_file(network: nn.Module, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runners") / "network.onnx"
    write_onnx(network, images.shape, path)
    return path


def churn() -> None:
    """Give freed memory to others, so that a dangling pointer reads something else."""
    gc.collect()
    blocks = [np.full(size, 0x7F, np.uint8) for size in (1 << 12, 1 << 16, 1 << 20) for _ in range(16)]
    del blocks
    gc.collect()


@pytest.mark.parametrize(("runner", "precision", "tolerance"), CASES)
def test_runs_after_its_file_and_images_are_gone(
    runner: type,
    precision: str,
    tolerance: float,
    network: nn.Module,
    images: torch.Tensor,
    onnx_file: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(onnx_file.read_bytes())
    given = images.clone().numpy()
    with quiet():
        run = runner(path, given, precision, 1)
    # truncated before it is deleted: memory that was mapped from it could not be read any more
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
        file.unlink()
    given[:] = np.nan
    del given
    churn()
    with torch.no_grad():
        expected = network(images).numpy()
    outputs = [run() for _ in range(3)]
    churn()
    for output in outputs:
        assert np.abs(output - expected).max() <= tolerance * np.abs(expected).max()
    kept = outputs[0].copy()
    del run
    churn()
    np.testing.assert_array_equal(outputs[0], kept)  # outputs are theirs who got them


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_contestants_outlive_everything_that_made_them(runtime: str) -> None:
    checkpoint = load("test_resnet")
    setting = Setting(runtime, img_size=64, batch_size=2)
    with quiet():
        run = prepare(checkpoint, setting)
    first = np.asarray(run()).copy()
    del checkpoint, setting
    churn()
    for _ in range(3):
        np.testing.assert_allclose(np.asarray(run()), first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eager(precision: str, network: nn.Module, images: torch.Tensor) -> None:
    run = TorchRunner(copy.deepcopy(network), images, precision, "cpu", torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(run().float(), network(images), rtol=0.05, atol=0.05)
    assert run().dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting("eager", "int8"), "onnxruntime and openvino"),
        (Setting("compile", "int8"), "onnxruntime and openvino"),
        (Setting("eager", "fp16"), "made for GPUs"),
        (Setting("onnxruntime", "bf16"), "no bf16"),
        (Setting("openvino", device="cuda"), "on the CPU only"),
        (Setting("onnxruntime", device="cuda:1"), "on the CPU only"),
        (Setting("eager", device="cuda:99"), "sees no device 'cuda:99'"),
        (Setting("eager", "fp16", device="cpu:0"), "on the CPU use bf16"),
    ],
)
def test_what_a_runtime_cannot_do_is_said_in_one_sentence(setting: Setting, message: str) -> None:
    with pytest.raises(UserError, match=message):
        setting.check()
    for allowed in (Setting("openvino", "int8"), Setting("onnxruntime", "int8"), Setting("onnxruntime", "fp16")):
        allowed.check()


def test_a_precision_that_this_cpu_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, images: torch.Tensor, onnx_file: Path
) -> None:
    # OpenVINO takes any precision and computes in another where the CPU lacks it
    used = SimpleNamespace(to_string=lambda: "f32")
    compiled = SimpleNamespace(get_property=lambda name: used)
    core = SimpleNamespace(read_model=lambda content: None, compile_model=lambda *arguments: compiled)
    monkeypatch.setattr("partialnet.bench.runners.openvino_core", lambda: core)
    with pytest.raises(UserError, match="computes in f32 on this CPU when asked for bf16"):
        OpenVINORunner(onnx_file, images.numpy(), "bf16", 1)


_SIGNALS_AFTER_NETWORKS = """
import signal, subprocess, sys
import numpy as np
from pathlib import Path
from partialnet.bench.runners import OpenVINORunner

signal.signal(signal.SIGCHLD, lambda *_: None)
images = np.zeros((2, 3, 32, 32), np.float32)
first, second = (OpenVINORunner(Path(sys.argv[1]), images, "fp32", 1) for _ in range(2))
first()
del first
second()
del second
for _ in range(3):
    subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""


def test_signals_are_survived_after_networks_are_gone(onnx_file: Path) -> None:
    """OpenVINO's cores leave a dangling signal stack if they end in the order of their making."""
    process = subprocess.run(
        [sys.executable, "-c", _SIGNALS_AFTER_NETWORKS, str(onnx_file)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "alive"


@pytest.mark.parametrize("fresh", [True, False], ids=["without biases", "with biases"])
def test_gates_are_found_that_int8_leaves_in_float(fresh: bool, randomize: Randomize, tmp_path: Path) -> None:
    model = timm.create_model("partialnet_t0", depths=(1, 1), mixers=("pat_ch", "pat_ch"), embed_dim=8)
    path = tmp_path / "network.onnx"
    write_onnx(fold(model.eval() if fresh else randomize(model.eval()), 32, "openvino"), (1, 3, 32, 32), path)
    network = openvino_core().read_model(path)
    # a gate of channels and one of positions in each block
    assert len(_float_products(network)) == 4


class _Tokens(nn.Module):
    """Attention without weights between two dense layers, on (B, tokens, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(48, 32), nn.Linear(32, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.before(images.flatten(1, 2).transpose(1, 2))
        return self.after((x @ x.transpose(1, 2)).softmax(-1) @ x).mean(1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_of_tokens(runtime: str, tmp_path: Path) -> None:
    """Dense layers are quantised, products of two activations are not."""
    torch.manual_seed(0)
    path = tmp_path / "network.onnx"
    images = torch.randn(2, 3, 16, 16)
    write_onnx(_Tokens().eval(), images.shape, path)
    with quiet():
        if runtime == "onnxruntime":
            nodes = convert_onnx(path, "int8", [{"images": images.numpy()}]).graph.node
            makers = {name: node.op_type for node in nodes for name in node.output}
            layers = [node for node in nodes if node.op_type in ("Gemm", "MatMul", "FusedMatMul")]
            weights = [makers[layer.input[1]] for layer in layers]
        else:
            operators = convert_openvino(path, "int8", [{"images": images.numpy()}]).get_ordered_ops()
            layers = [operator for operator in operators if operator.get_type_name() == "MatMul"]
            weights = [layer.input_value(1).get_node().get_type_name() for layer in layers]
    assert [weight in ("DequantizeLinear", "Multiply") for weight in weights] == [True, False, False, True]


def test_onnx_int8_of_partial_convolutions(randomize: Randomize, tmp_path: Path) -> None:
    """Maps stay in int8 where they are split, gated, rectified and put together; statistics of gates are in float."""
    path = tmp_path / "network.onnx"
    model = timm.create_model("partialnet_t2", depths=(1, 1), mixers=("pat_ch", "pat_ch"), embed_dim=8)
    write_onnx(fold(randomize(model.eval()), runtime="onnxruntime"), (1, 3, 32, 32), path)
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    nodes = convert_onnx(path, "int8", [{"images": images}]).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}

    def in_int8(operator: str) -> list[bool]:
        inputs = [node.input[:1] if operator == "Split" else node.input for node in nodes if node.op_type == operator]
        return [{makers.get(name) for name in names} == {"DequantizeLinear"} for names in inputs]

    assert in_int8("Split") == [True] * 2
    # of PAT_ch and of the MLP's gated and other half, but not of means and deviations
    assert sorted(in_int8("Concat")) == [False] * 2 + [True] * 4
    # by both gates, but not of squares and unbiased variances
    assert sorted(in_int8("Mul")) == [False] * 4 + [True] * 4
    assert in_int8("Relu") == []
    # shifts behind PAT_sp's gates and residual sums
    assert in_int8("Add") == [True] * 4


class _SiLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.before(images)
        return self.after(x * x.sigmoid()).mean((2, 3))


def test_onnx_int8_does_not_take_silu_for_a_gate(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    write_onnx(_SiLU().eval(), (1, 3, 4, 4), path)
    images = np.random.default_rng(0).random((1, 3, 4, 4), np.float32)
    nodes = convert_onnx(path, "int8", [{"images": images}]).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    products = [sorted(makers[name] for name in node.input) for node in nodes if node.op_type == "Mul"]
    assert products == [["DequantizeLinear", "Sigmoid"]]
