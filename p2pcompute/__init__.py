"""p2pcompute: run work on every computer you own, without a server."""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Find the version when it is asked for: importlib.metadata costs 20 ms, worker processes never need it."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("p2pcompute")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0.1.0"
