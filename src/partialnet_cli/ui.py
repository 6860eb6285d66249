"""``partialnet ui``."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from threading import Thread

import click

from partialnet.errors import UserError

from .options import IntRange, device_option

_DEMO = Path("runs/demo")


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "--port",
    type=IntRange(0, 65535),
    default=0,
    show_default=False,
    help="Port of 127.0.0.1 to listen on.  [default: any free one]",
)
@click.option(
    "--open/--no-open",
    "open_browser",
    default=True,
    show_default=False,
    help="Open the page in the browser.  [default: open]",
)
@click.option(
    "--img-size",
    type=IntRange(32, 1024),
    help="Height and width of the images; larger ones give finer maps.  [default: each network's own]",
)
@device_option
def ui(sources: tuple[str, ...], port: int, open_browser: bool, img_size: int | None, device: str | None) -> None:
    """Show photographs to networks on a local page in the browser.

    Drop a photograph and see the classes, where each network looks, what its gates weigh, the attention from where you
    click, and how fast it is folded. Several networks are shown side by side.

    SOURCE is a run folder, its model.safetensors, a checkpoint of timm's training script or of the authors, an exported
    .onnx, .xml or .tflite file, or a model name (timm's, torchvision:NAME; then with random weights). Without any,
    runs/demo is shown.

    The page is served on this machine only and works without a network connection. Ctrl-C ends it.

    \b
    Examples: partialnet ui runs/flowers
              partialnet ui runs/flowers runs/resnet --port 8000 --no-open
    """
    if not sources:
        if not _DEMO.is_dir():
            raise UserError(
                f"Name a SOURCE to show; there is no {_DEMO} here, which `partialnet demo` makes in a few minutes."
            )
        sources = (str(_DEMO),)
    from partialnet.ui import PageServer, Viewer, open_networks

    viewer = Viewer(open_networks(sources, device, img_size))
    try:
        server = PageServer(viewer, port)
    except OSError as error:
        viewer.close()
        raise UserError(_why_not(error, port)) from error
    try:
        names = ", ".join(network.name for network in viewer.networks)
        click.echo(f"Showing {names} at {server.url} (Ctrl-C ends it)")
        sys.stdout.flush()  # whoever starts this as a process waits for the line
        if open_browser:
            _open_in_browser(server.url)
        server.serve_forever()
    except KeyboardInterrupt:
        # Python waits for the question in hand; a second Ctrl-C ends that
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        click.echo("\nThe page is closed.")
    finally:
        server.server_close()
        viewer.close()


def _why_not(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use; choose another, or leave --port out for any free one."
    return f"Port {port} cannot be used: {error.strerror}; leave --port out for any free one."


def _open_in_browser(url: str) -> None:
    """Ask for the page in a browser, where there is a screen: one that runs in the terminal would take it over."""
    import webbrowser

    screen = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if screen:
        Thread(target=webbrowser.open, args=(url,), daemon=True).start()
