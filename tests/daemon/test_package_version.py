"""What the package says about itself."""

from __future__ import annotations

import tomllib
from pathlib import Path

from p2pcompute import __version__


def test_version_is_the_projects() -> None:
    """The constant would otherwise go on telling everybody the last release."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
