"""The ``partialnet`` command: subcommands, and one place where mistakes become one sentence and exit code 2."""

from __future__ import annotations

import io
import os
import sys

import click
import torch

import partialnet
from partialnet.errors import RunInterrupted, UserError

from .ablate import ablate
from .bench import bench
from .convert import convert
from .demo import demo
from .detect import detect
from .eval import evaluate
from .explain import explain
from .export import export
from .group import Group
from .info import info
from .own_networks import import_own
from .predict import predict
from .search import search
from .train import train
from .ui import ui


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
)
@click.version_option(partialnet.__version__, "--version", "-V", prog_name="partialnet")
@click.option(
    "--import",
    "own_modules",
    multiple=True,
    metavar="MODULE",
    help="Python module or file that registers your own networks with timm; repeatable. Its code is run.",
)
def cli(own_modules: tuple[str, ...]) -> None:
    """PartialNet: partial-channel vision networks.

    Start with `partialnet demo`, which trains a network on your CPU in a few minutes.
    """
    for name in own_modules:
        import_own(name)


cli.add_command(ablate)
cli.add_command(bench)
cli.add_command(convert)
cli.add_command(demo)
cli.add_command(detect)
cli.add_command(evaluate)
cli.add_command(explain)
cli.add_command(export)
cli.add_command(info)
cli.add_command(predict)
cli.add_command(search)
cli.add_command(train)
cli.add_command(ui)


def main(args: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 2 a mistake the user can mend, 75 stopped and resumable, 1 else."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    try:
        cli.main(args, prog_name="partialnet", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        _fail("Interrupted.", 130)
    except UserError as error:
        _fail(str(error), 2)
    except RunInterrupted as interruption:
        _fail(str(interruption), 75)
    except torch.OutOfMemoryError:
        _fail("The GPU is out of memory; use smaller images, or fewer at a time (a smaller batch size).", 2)
    except BrokenPipeError:
        # the reader of our output is gone, as after `| head`; nothing more can be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}", 2)


def _fail(message: str, code: int) -> None:
    click.echo(f"partialnet: {message}", err=True)
    sys.exit(code)
