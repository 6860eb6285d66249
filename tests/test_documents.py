"""What the documents show runs as it stands."""

import doctest
import importlib
import json
import re
import shlex
from pathlib import Path

import click
import pytest
import timm
import torch
from PIL import Image

from partialnet.checkpoint import create_checkpoint
from partialnet.search import dynamic_layers
from partialnet_cli.main import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PACKAGE = ROOT / "src" / "partialnet"
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


def test_python_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # with a run as the demo leaves it
    create_checkpoint("partialnet_t0", ("one", "two"), num_classes=2, embed_dim=16, depths=(1, 1, 1, 1)).save(
        "runs/demo"
    )
    Path("runs/demo/samples").mkdir()
    Image.new("RGB", (64, 64)).save("runs/demo/samples/a.png")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        if "partialnet_t0.pth" not in block:  # the authors' weights are not here
            exec(block, names)
    assert [tuple(feature.shape[1:]) for feature in names["maps"]] == [(192, 32, 40), (384, 16, 20), (768, 8, 10)]
    assert names["block"].eval()(torch.rand(1, 64, 8, 8)).shape == (1, 128, 4, 4)
    assert not dynamic_layers(names["static"])
    assert names["transform"](Image.new("RGB", (80, 60))).shape == (3, 224, 224)
    assert re.search(r"samples/a.png \('(one|two)', 0\.\d+\)", capsys.readouterr().out)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_the_documents(document: str) -> None:
    path = ROOT / document
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            page = path.parent / target if target else path
            assert page.exists(), target
            assert not heading or heading in anchors(page), f"{target}#{heading}"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(document: Path) -> list[str]:
    """The ``partialnet`` commands of a document: lines of code, and in the text what stands between backticks."""
    text = document.read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^(?: {4})?(?:.*(?: -m|&&) )?(partialnet [a-z-].*)$", text, flags=re.MULTILINE)
    return lines + [" ".join(words.split()) for words in re.findall(r"`(partialnet [a-z-][^`]*)`", text)]


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if commands(ROOT / document)])
def test_commands_of_the_documents(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subcommand and option exists and takes the value that it is given."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for line in commands(ROOT / document):
        words = shlex.split(line, comments=True)[1:]
        command: click.Command = cli
        context = click.Context(command, **command.context_settings)
        while isinstance(command, click.Group):
            _, words, _ = command.make_parser(context).parse_args(words)
            _, command, words = command.resolve_command(context, words)
            context = click.Context(command, parent=context)
        values, _, _ = command.make_parser(context).parse_args(words)
        for option in command.params:
            if isinstance(option, click.Option):
                option.type_cast_value(context, values.get(option.name))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_docstrings(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_models_of_the_readme() -> None:
    """Every model that the commands name exists."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"\b(partialnet_[a-z0-9]+|mobilenetv\w+|resnet\d+)\b", text)):
        assert timm.is_model(name), name


@pytest.mark.parametrize("size", ["t0", "t1", "t2", "s", "m", "l"])
def test_times_of_the_readme(size: str) -> None:
    """The table's times are those of the result files: per runtime on both machines, and of a training step."""
    (row,) = re.findall(rf"^\| `partialnet_{size}` \|(.*)\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    files = [
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))["rows"]
        for name in ("deployment_epyc", "deployment_xeon", "eager_2t")
    ]
    expected = []
    for runtime in ("openvino", "onnxruntime"):
        wanted = {"size": size, "runtime": runtime, "precision": "fp32"}
        found = [entry for file in files[:2] for entry in file if wanted.items() <= entry.items()]
        expected.append(", ".join(f"{entry['timings'][f'partialnet_{size}']['ratio']:.2f}" for entry in found))
    steps = [entry for entry in files[2] if (entry["size"], entry["what"]) == (size, "training step")]
    largest = max(steps, key=lambda entry: entry["batch"])
    expected.append(f"{largest['timings'][f'partialnet_{size}']['ratio']:.2f}")
    assert [cell.strip() for cell in row.split("|")][-3:] == expected


@pytest.mark.parametrize(
    ("data", "ahead", "behind", "document", "told"),
    [
        ("cifar10", "PartialNet-T0", "FasterNet-T0", "README.md", "by {mean} points on CIFAR-10"),
        ("imagenette", "PartialNet-T0", "FasterNet-T0", "README.md", "by {mean} on Imagenette"),
        ("cifar10", "PartialNet-T0", "FasterNet-T0", "docs/accuracy.md", "by {mean} points ({least} to {most}, seed"),
        ("cifar10", "PartialNet-T0", "MobileNetV2", "docs/accuracy.md", "by {mean} points ({least} to {most})"),
        ("cifar10", "PartialNet-T0", "PartialNet-T0 without PAT_sp", "docs/accuracy.md", "{mean} points ({least} to"),
        ("cifar10", "PartialNet-T0", "PartialNet-T0 without PAT_ch", "docs/accuracy.md", "{mean} ({least} to {most})"),
        ("cifar10", "PartialNet-T0", "PartialNet-T0 without PAT_sf", "docs/accuracy.md", "{mean} ({least} to {most})"),
        ("imagenette", "PartialNet-T0", "FasterNet-T0", "docs/accuracy.md", "by {mean} points ({least} and {most})"),
        ("imagenette", "PartialNet-T1", "FasterNet-T1", "docs/accuracy.md", "by {mean} points ({least} and {most})"),
        ("imagenette", "PartialNet-T0", "FasterNet-T1", "docs/accuracy.md", "by {mean} points"),
        ("surgery", "MobileNetV2, converted", "MobileNetV2", "docs/accuracy.md", "{mean} points ({least} and {most})"),
        ("surgery", "ConvNeXt-T", "ConvNeXt-T, converted", "docs/accuracy.md", "{mean} points ({most} and {least})"),
    ],
)
def test_leads_of_the_documents(data: str, ahead: str, behind: str, document: str, told: str) -> None:
    """How many points one network is ahead of another is what the result file says, rounded."""
    content = json.loads((ROOT / f"benchmarks/results/accuracy_{data}.json").read_text(encoding="utf-8"))
    accuracies = [{row["seed"]: row for row in content["rows"] if row["network"] == name} for name in (ahead, behind)]
    leads = [100 * (row["accuracy"] - accuracies[1][seed]["accuracy"]) for seed, row in accuracies[0].items()]
    figures = {"mean": sum(leads) / len(leads), "least": min(leads), "most": max(leads)}
    expected = told.format(**{name: f"{lead:.1f}".replace("-", "−") for name, lead in figures.items()})
    assert expected in " ".join((ROOT / document).read_text(encoding="utf-8").split())


def test_places_that_contributing_names() -> None:
    """All of them exist, and every module stands in a row, or in a folder that has one."""
    _, _, tables = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where things live")
    cells = re.findall(r"^\| (`.*?`) \|", tables, flags=re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    places = [ROOT / name if name.startswith("src/") else PACKAGE / name for name in names]
    assert [place for place in places if not place.exists()] == []
    modules = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    unnamed = [path for path in modules if not {path, *path.parents}.intersection(places)]
    assert [path.relative_to(PACKAGE).as_posix() for path in unnamed] == []
