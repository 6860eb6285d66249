"""Tie the two files of OpenVINO's format together, as OpenVINO takes any weights that are long enough for a graph.

The two files of an export are moved into place one after the other. If that is stopped in between, or two exports take
one name at the same moment, a graph stands beside weights of another network and answers wrongly, without an error.
Therefore both hold a digest of the weights: the graph in its runtime information, and the weights behind their end,
where OpenVINO reads nothing. Comparing them takes no time, however large the weights are.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from partialnet.errors import UserError

_KEY = "partialnet_weights"
#: What stands in the graph until the weights are written.
_UNKNOWN = "0" * 64
_NAMED = re.compile(rb'<%s value="([0-9a-f]{64})"' % _KEY.encode())
#: What the digest behind the weights follows.
_MARK = b"PartialNet:"


def make_room(model: Any) -> None:
    """Let the graph of an ``openvino.Model`` have a place for the digest of its weights once it is saved."""
    model.set_rt_info(_UNKNOWN, [_KEY])


def tie_together(graph: Path) -> None:
    """Write the digest of the weights into both saved files."""
    weights = graph.with_suffix(".bin")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest().encode()
    with weights.open("ab") as file:
        file.write(_MARK + digest)
    graph.write_bytes(graph.read_bytes().replace(_UNKNOWN.encode(), digest, 1))


def digest_behind(weights: Path) -> bytes | None:
    """The digest that ends a file of weights; None if it is not there, or no export's."""
    length = len(_MARK) + len(_UNKNOWN)
    try:
        with weights.open("rb") as file:
            file.seek(-length, os.SEEK_END)
            end = file.read(length)
    except OSError:  # it is shorter, too
        return None
    return end.removeprefix(_MARK) if end.startswith(_MARK) else None


def check_pair(graph: Path) -> None:
    """Refuse a graph beside the weights of another export; what other programs have saved is taken as it is.

    Raises:
        UserError: The weights are of another export.
    """
    weights = graph.with_suffix(".bin")
    found = digest_behind(weights)
    if found is None:
        return
    named = _NAMED.search(graph.read_bytes())
    if named is None or named[1] != found:
        raise UserError(
            f"{str(graph)!r} and the {weights.name!r} beside it are of two exports, perhaps because one was stopped; "
            "export again."
        )
