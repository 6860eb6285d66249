"""What commands leave behind: one way for text, JSON, files and what is useful next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from partialnet.errors import UserError
from partialnet_cli.results import Results, result_options


@click.command()
@click.option("--more", is_flag=True)
@result_options(json="all figures", csv="the rows as CSV")
def figures(more: bool, results: Results) -> None:
    """A command with results."""
    results.say("text")
    results.write_json({"a": 1})
    results.write("csv", lambda path: path.write_text("a\n1\n"))
    if more:
        results.add_pictures(2, Path("drawn"))
    results.finish("add --csv FILE", None, "another command")


def run(*arguments: Any, command: click.Command = figures) -> Result:
    result = CliRunner().invoke(command, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result


def test_one_file_is_told_on_a_line_and_several_on_a_line_each(tmp_path: Path) -> None:
    json_path, csv_path = tmp_path / "a.json", tmp_path / "a.csv"
    following = "\nNext: add --csv FILE\n      another command\n"
    assert run("--json", json_path).stdout == f"text\n\nWritten: {json_path}\n{following}"
    assert json.loads(json_path.read_text()) == {"a": 1}
    many = run("--json", json_path, "--csv", csv_path, "--more").stdout
    assert many == f"text\n\nWritten:\n  {json_path}\n  {csv_path}\n  2 pictures in drawn\n{following}"
    assert csv_path.read_text() == "a\n1\n"
    assert run().stdout == f"text\n{following}"


def test_printed_json_has_the_standard_output_to_itself(tmp_path: Path) -> None:
    result = run("--json", "-", "--csv", tmp_path / "a.csv")
    assert json.loads(result.stdout) == {"a": 1}
    assert result.stderr == f"\nWritten: {tmp_path / 'a.csv'}\n"
    assert run("--json", "-").stderr == ""


def test_what_a_command_reads_is_not_replaced(tmp_path: Path) -> None:
    run_folder, photo, link = tmp_path / "run", tmp_path / "a.png", tmp_path / "link.png"
    run_folder.mkdir()
    link.symlink_to(photo)
    for written in (photo, link, run_folder / "model.safetensors"):
        for results in (Results(json=str(written)), Results(csv=written)):
            results.spare(tmp_path / "b.png")
            with pytest.raises(UserError, match="is what the command reads, and would be replaced"):
                results.spare(run_folder, photo)
    Results(json="-", csv=None).spare(photo)


def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    for arguments, reason in (
        (["--csv", tmp_path / "none" / "a.csv"], "There is no folder"),
        (["--json", tmp_path], "is a folder"),
        (["--json", tmp_path / "a", "--csv", tmp_path / "a"], "named for two results"),
    ):
        with pytest.raises(UserError, match=reason):
            run(*arguments)
    assert not list(tmp_path.iterdir())


@click.command()
@result_options(json="one object a line")
def lines(results: Results) -> None:
    """A command that prints as it goes."""
    for number in range(2):
        results.add_line({"n": number})
    results.write_lines()
    results.finish()


def test_an_object_a_line(tmp_path: Path) -> None:
    assert run("--json", "-", command=lines).stdout == '{"n": 0}\n{"n": 1}\n'
    assert run("--json", tmp_path / "a", command=lines).stdout == f"\nWritten: {tmp_path / 'a'}\n"
    assert (tmp_path / "a").read_text() == '{"n": 0}\n{"n": 1}\n'
