"""Exports for LiteRT run in its own runtime and agree with PyTorch; without the package a sentence says what to do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from commands import CLASSES, Command, assert_mistake
from conftest import TINY
from conftest import randomize_parameters as randomize

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.deploy.export import Export, _Draft, export
from partialnet.deploy.library_messages import quiet_native
from partialnet.deploy.runtimes import CONFIG_KEY, load_exported
from partialnet.errors import UserError


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    checkpoint = create_checkpoint("partialnet_t0", CLASSES, num_classes=len(CLASSES), **{**TINY, "depths": (1,) * 4})
    randomize(checkpoint.model).eval()
    return checkpoint


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Export:
    pytest.importorskip("litert_torch")
    return export(checkpoint, tmp_path_factory.mktemp("litert") / "net.tflite", "litert", img_size=64)


def test_export_agrees_and_carries_its_configuration(exported: Export, checkpoint: Checkpoint) -> None:
    for agreement in exported.agreement.values():
        assert agreement.top1 == 1
        assert agreement.max_error <= 1e-4 * agreement.max_logit
    assert json.loads(Path(f"{exported.path}.json").read_text())["format"] == "litert"
    opened = load_exported(exported.path)
    assert opened.class_names == CLASSES
    assert list(opened.input_config["input_size"]) == [3, 64, 64]
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(images), checkpoint.model(images), rtol=1e-4, atol=1e-4)


def test_half_precision(
    exported: Export, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Draft, "litert", without_configuration(exported.path))  # to convert takes long
    half = export(checkpoint, tmp_path / "net.tflite", "litert", "fp16", img_size=64)
    agreement = half.agreement["photographs"]
    assert 0 < agreement.max_error <= 0.05 * agreement.max_logit
    assert load_exported(half.path).class_names == CLASSES
    assert exported.size_mb - half.size_mb > 0.9 * 2 * half.folded_params_m


def without_configuration(path: Path) -> bytes:
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    model.metadata = [entry for entry in model.metadata if entry.name != CONFIG_KEY.encode()]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def test_input_and_output_have_the_names_of_every_format(exported: Export) -> None:
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(str(exported.path)).get_signature_list()
    assert list(signatures.values()) == [{"inputs": ["images"], "outputs": ["logits"]}]


def test_maps_are_transposed_for_the_input_and_self_attention_alone(exported: Export) -> None:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(exported.path.read_bytes(), 0)
    graph = model.Subgraphs(0)
    operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
    kinds = [model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() for operator in operators]
    # of stage 4, the only block with self-attention: three parts, two products and the result
    assert kinds.count(schema.BuiltinOperator.TRANSPOSE) <= 1 + 6
    assert schema.BuiltinOperator.CUSTOM not in kinds


def test_commands_take_the_file(exported: Export, photos: Path, command: Command) -> None:
    result = command("predict", exported.path, photos / "grey.png")
    assert (result.code, result.err) == (0, "")
    assert any(name in result.out for name in CLASSES)
    assert_mistake(command("export", exported.path), "is an exported file")


def test_damaged_file_is_told(exported: Export, tmp_path: Path) -> None:
    content = exported.path.read_bytes()
    for wrong in (b"nonsense" * 100, b"", content[:1000]):
        (tmp_path / "net.tflite").write_bytes(wrong)
        with pytest.raises(UserError, match="damaged or not a LiteRT file"):
            load_exported(tmp_path / "net.tflite")


def test_an_opened_file_may_be_deleted(exported: Export, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(exported.path.read_bytes())
    opened = load_exported(path)
    images = torch.randn(2, 3, 64, 64)
    first = opened.model(images)
    path.unlink()
    kept = first.clone()
    assert torch.equal(opened.model(images), first)
    opened.model(torch.zeros_like(images))
    assert torch.equal(first, kept)  # a later answer is not written over an earlier one


def test_what_litert_does_not_offer_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="litert is exported in fp32, fp16, not in bf16"):
        export(checkpoint, tmp_path / "net.tflite", "litert", "bf16")
    with pytest.raises(UserError, match="without a dynamic batch"):
        export(checkpoint, tmp_path / "net.tflite", "litert", dynamic_batch=True)


def test_a_missing_package_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    for module in ("litert_torch", "ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert_mistake(
        command("export", "partialnet_t0", "--format", "litert"), "litert_torch; install it", '"partialnet[litert]"'
    )
    Path("net.tflite").write_bytes(b"")
    assert_mistake(
        command("predict", "net.tflite", photos / "grey.png"), "ai_edge_litert; install it", '"partialnet[litert]"'
    )


def test_messages_of_libraries_in_c_are_kept_off_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_native():
        os.write(2, b"INFO: a delegate was made\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
