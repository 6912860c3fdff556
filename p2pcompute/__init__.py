"""p2pcompute: run work on every computer you own, without a server."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("p2pcompute")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.1.0"

__all__ = ["__version__"]
