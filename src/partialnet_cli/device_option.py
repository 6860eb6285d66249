"""``--device``: the same option in every command that opens a network to use it."""

from __future__ import annotations

import click

#: Reaches the command as ``device``, a name for ``partialnet.devices.find_device``, or None.
device_option = click.option(
    "--device", metavar="NAME", help="cpu, cuda, cuda:1, …  [default: the GPU if there is one]"
)
