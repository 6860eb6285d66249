"""The page over HTTP, on this machine only.

Python's own ``http.server`` serves it: three files and five questions need no framework, so the page costs no
dependency, asks nothing of the network and reports to nobody. (Gradio was the alternative: a framework of its own,
analytics to switch off, fonts from elsewhere.) It has no encryption and no users, as a public server would need, but
listens on 127.0.0.1 alone. It refuses requests under other host names, by which a strange page could read answers (DNS
rebinding), and those that other sites' pages send.

No path of a request ever becomes a path of a file; photographs come in a request's body and stay in memory.
"""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from partialnet.errors import UserError
from partialnet.messages import first_line

from .answers import Busy, Forgotten, Viewer

ADDRESS = "127.0.0.1"
#: Bytes of an uploaded file at most.
MAX_UPLOAD = 32 * 2**20
#: Seconds that a request may stand still.
_PATIENCE = 30
#: Bytes of a refused upload that are read on, so that the browser gets to see the answer.
_DRAINED = 4 * MAX_UPLOAD
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    # scripts, styles and connections of this server alone: the page cannot load or send anything elsewhere
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_PHOTO = re.compile(r"/api/photos/([\w-]{1,64})/(maps|attention)")

_logger = logging.getLogger(__name__)


class PageServer(ThreadingHTTPServer):
    """The page of a viewer, a thread for each request.

    ``serve_forever`` runs it and ``server_close`` ends it; ``url`` is its address.

    Args:
        viewer: Answers the questions.
        port: 0 takes any that is free.

    Raises:
        OSError: The port is in use or not allowed.
    """

    daemon_threads = True

    def __init__(self, viewer: Viewer, port: int = 0) -> None:
        self.viewer = viewer
        self.files = {path: (files(__package__) / name).read_bytes() for path, (name, _) in _FILES.items()}
        super().__init__((ADDRESS, port), _Handler)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Its address for a browser."""
        return f"http://{ADDRESS}:{self.port}/"

    @cached_property
    def hosts(self) -> frozenset[str]:
        """Names, with the port, under which it answers."""
        names = {f"{name}:{self.port}" for name in (ADDRESS, "localhost")}
        return frozenset(names | {ADDRESS, "localhost"} if self.port == 80 else names)

    def server_bind(self) -> None:
        """Bind without asking for the machine's name, for which the parent may wait on a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = ADDRESS, self.port

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what went wrong with a connection; browsers that went away are no news."""
        _logger.debug("A connection failed.", exc_info=True)


class _Refused(Exception):
    """A request that gets an error's answer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One request: files and questions by name, everything else refused in one sentence."""

    server: PageServer
    server_version = "partialnet"
    sys_version = ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Files of the page, and questions that change nothing."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Photographs, and measurements, which take a while."""
        self._answer(self._post)

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        viewer = self.server.viewer
        if path == "/api/networks":
            return {**viewer.describe(), "max_upload": MAX_UPLOAD}
        if found := _PHOTO.fullmatch(path):
            photo, question = found.groups()
            if question == "maps":
                return {"maps": viewer.maps(photo, _whole(query, "stage"), query.get("target"))}
            return {"attention": viewer.attention(photo, _share(query, "x"), _share(query, "y"))}
        raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")

    def _post(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        content = self._read_body()
        if path == "/api/photos":
            return self.server.viewer.add_photo(content, query.get("name", "the file")[:100], _whole(query, "stage"))
        if path == "/api/speed":
            return self.server.viewer.speed()
        raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")

    def _answer(self, question: Callable[[str, dict[str, str]], dict[str, Any]]) -> None:
        """Send what a question gives, or one sentence about what is wrong with it."""
        try:
            path, _, arguments = self.path.partition("?")
            self._check_sender()
            if self.command == "GET" and path in _FILES:
                self._send(HTTPStatus.OK, self.server.files[path], _FILES[path][1])
                return
            query = {name: values[-1] for name, values in parse_qs(arguments).items()}
            status, answer = HTTPStatus.OK, question(path, query)
        except _Refused as error:
            status, answer = error.status, {"error": str(error)}
        except Forgotten as error:
            status, answer = HTTPStatus.GONE, {"error": str(error)}
        except UserError as error:
            status, answer = HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)}
        except Busy as error:
            status, answer = HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)}
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            _logger.exception("A question could not be answered.")
            status, answer = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"That did not work: {first_line(error)}"}
        self._send(status, json.dumps(answer, allow_nan=False).encode(), "application/json")

    def _check_sender(self) -> None:
        """Refuse requests under another name, and those that another site's page sends."""
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            self._drain(self._length())
            raise _Refused(HTTPStatus.FORBIDDEN, f"This page answers under {self.server.url} only.")
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower().removeprefix("http://") not in self.server.hosts:
            self._drain(self._length())
            raise _Refused(HTTPStatus.FORBIDDEN, "This page takes no questions from other sites.")

    def _length(self) -> int:
        """Bytes of the body as announced; 0 without one."""
        text = self.headers.get("Content-Length", "0")
        if not text.isdecimal() or not text.isascii() or len(text) > 18 or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "A request must say how many bytes it has.")
        return int(text)

    def _read_body(self) -> bytes:
        length = self._length()
        if length > MAX_UPLOAD:
            self._drain(length)
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The file has {length / 2**20:.0f} MB, more than the {MAX_UPLOAD // 2**20} MB that this page takes.",
            )
        content = self.rfile.read(length)
        if len(content) < length:
            raise _Refused(HTTPStatus.BAD_REQUEST, "The file broke off on its way here.")
        return content

    def _drain(self, length: int) -> None:
        """Read what is refused, up to a limit: a connection that is cut while it sends shows no answer."""
        left = min(length, _DRAINED)
        while left > 0 and (chunk := self.rfile.read(min(left, 2**16))):
            left -= len(chunk)

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests for those who debug."""
        _logger.debug(format, *args)


def _whole(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 9):
        raise _Refused(HTTPStatus.BAD_REQUEST, f"{name} must be a whole number.")
    return int(text)


def _share(query: dict[str, str], name: str) -> float:
    try:
        return float(query[name])
    except (KeyError, ValueError):
        raise _Refused(HTTPStatus.BAD_REQUEST, f"{name} must be a number from 0 to 1.") from None
