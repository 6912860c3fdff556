"""p2pcompute: run work on every computer you own, without a server."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
"""As in pyproject.toml; a constant, because importlib.metadata costs every command 20 ms."""
