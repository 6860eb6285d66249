"""The versions that are tested as the oldest are those that the package allows."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
#: Extras whose packages the tests do without.
UNTESTED = {"hf", "litert", "test", "dev"}


def allowed() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(line for name in extras if name not in UNTESTED for line in extras[name])]
    return [requirement for requirement in map(Requirement, needed) if requirement.name != "partialnet"]


def pinned() -> dict[str, Version]:
    lines = (ROOT / "tests/oldest_versions.txt").read_text().splitlines()
    pins = (line.split("#")[0].strip().split("==") for line in lines)
    return {pin[0]: Version(pin[1]) for pin in pins if len(pin) == 2}


@pytest.mark.parametrize("requirement", allowed(), ids=lambda requirement: requirement.name)
def test_the_oldest_allowed_version_is_tested(requirement: Requirement) -> None:
    (bound,) = requirement.specifier
    oldest = Version(bound.version)
    version = pinned()[requirement.name]
    assert bound.operator == ">="
    assert version.release[: len(oldest.release)] == oldest.release
