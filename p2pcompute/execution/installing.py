"""How a package comes to where this program runs: `pip` alone may be that of another environment."""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path


def install_command(requirement: str) -> str:
    """Return the command that installs a package into the environment of this process."""
    prefix = Path(sys.prefix)
    if "pipx" in prefix.parts and prefix.parent.name == "venvs":
        return f"pipx inject {prefix.name} {shlex.quote(requirement)}"
    python = shlex.quote(sys.executable)
    if find_spec("pip") is not None:
        return f"{python} -m pip install {shlex.quote(requirement)}"
    return f"uv pip install --python {python} {shlex.quote(requirement)}"
