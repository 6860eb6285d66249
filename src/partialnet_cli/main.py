"""The ``partialnet`` command: subcommands, and one place where mistakes become one sentence and exit code 2."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import NoReturn

import click

from .group import Group, Subcommand
from .termination import Terminated, raising_terminated


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
)
@click.version_option(None, "--version", "-V", package_name="partialnet", prog_name="partialnet")
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
    if own_modules:
        from .own_networks import import_own

        for name in own_modules:
            import_own(name)


for subcommand in (
    Subcommand("partialnet_cli.ablate:ablate", "Repeat an ablation of the paper."),
    Subcommand("partialnet_cli.bench:bench", "Time networks in turn, ready for inference."),
    Subcommand("partialnet_cli.convert:convert", "Put partial channels into another network."),
    Subcommand("partialnet_cli.demo:demo", "Train a network on handwritten digits."),
    Subcommand("partialnet_cli.detect:detect", "Object detection and instance segmentation."),
    Subcommand("partialnet_cli.eval:evaluate", "Measure accuracy on labelled images."),
    Subcommand("partialnet_cli.explain:explain", "Show what a network looks at in images."),
    Subcommand("partialnet_cli.export:export", "Export a network, folded, for other runtimes."),
    Subcommand("partialnet_cli.info:info", "Show structure and cost of a network."),
    Subcommand("partialnet_cli.predict:predict", "Classify images."),
    Subcommand("partialnet_cli.search:search", "Learn how many channels each layer convolves."),
    Subcommand("partialnet_cli.train:train", "Train any timm network on your own images."),
    Subcommand("partialnet_cli.ui:ui", "Open the local page in the browser."),
):
    cli.add_command(subcommand)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Exit codes: 0 done, 2 a mistake the user can mend, 75 stopped and resumable, 130 Ctrl-C, 143 SIGTERM, 1 else.
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files need not be UTF-8; an encoding of fewer characters than we print gets the others in ASCII
        utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    try:
        with raising_terminated():
            cli.main(args, prog_name="partialnet", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort as abort:
        if isinstance(abort.__cause__, Terminated):
            _fail("Terminated.", 143)
        _fail("Interrupted.", 130)
    except BrokenPipeError:
        # the reader of our output is gone, as after `| head`; nothing more can be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}", 2)
    except Exception as error:
        from torch import OutOfMemoryError

        from partialnet.errors import RunInterrupted, UserError
        from partialnet.training.batch_loader import lost_reader

        if isinstance(error, UserError):
            _fail(str(error), 2)
        if isinstance(error, RunInterrupted):
            _fail(str(error), 75)
        if isinstance(error, OutOfMemoryError):
            _fail("The GPU is out of memory; use smaller images, or fewer at a time (a smaller batch size).", 2)
        if (lost := lost_reader(error)) is not None:
            _fail(str(lost), 2)
        raise


def _open_closed_streams() -> None:
    """Let what is printed to a stream that is closed, as by ``>&-``, go nowhere.

    Otherwise printing fails, and the next file that is opened is taken for the stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open as long as the process


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"partialnet: {message}", err=True)
    sys.exit(code)
