"""The version of the package."""

from p2pcompute import __version__ as VERSION

__all__ = ["VERSION"]
