"""A page in the browser on which a photograph is shown to networks: what they answer, and what they look at."""

from .answers import Network, Viewer, open_networks
from .server import PageServer

__all__ = ["Network", "PageServer", "Viewer", "open_networks"]
