"""The command line of every script that writes a result file: its own help, and the option ``--output``."""

from __future__ import annotations

import argparse
from pathlib import Path

from partialnet.errors import UserError
from partialnet.files import check_destinations

RESULTS = Path(__file__).parent / "results"


def result_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option; a file that could not be written is refused before anything is measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=_file, metavar="FILE", help="result file, instead of the one in benchmarks/results"
    )
    return parser


def result_file(options: argparse.Namespace, name: str) -> Path:
    """The file that the option names, or else ``name`` in ``benchmarks/results``."""
    return options.output or RESULTS / name


def _file(text: str) -> Path:
    try:
        check_destinations(Path(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)
