"""Packages of tasks that the program asks for: nodes install them, the program need not have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pcompute.api.options import TaskOptions
from p2pcompute.errors import BadValue
from p2pcompute.execution.environments import find_uv
from tests.wheels import make_wheel

pytestmark = pytest.mark.skipif(find_uv() is None, reason="runs with uv, which dev.py test installs")

PROGRAM = """# /// script
# dependencies = ["p2pcompute", "tiny"]
# ///
import sys
from p2pcompute import MeshExecutor, TaskOptions, UsageError

def version(n):
    import tiny
    return tiny.VERSION, n

if __name__ == "__main__":
    for n, deps in enumerate(["auto", sys.argv[1], "none", sys.argv[2]]):
        with MeshExecutor(max_workers=1, local=True, options=TaskOptions(deps=deps)) as mesh:
            try:
                print(mesh.submit(version, n).result())
            except ModuleNotFoundError as error:
                print(error)
            except UsageError as error:
                print(error.code)
"""


def test_packages_of_calls(tmp_path: Path) -> None:
    """Of the program's own header, of a file, none, and some that there are not; p2pcompute is not installed anew."""
    for number in ("1.0", "2.0"):
        make_wheel(tmp_path / "wheels", "tiny", number, {"tiny/__init__.py": f"VERSION = {number!r}\n"})
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "old.txt").write_text("tiny==1.0\n")
    (tmp_path / "wrong.txt").write_text("tiny>3\n")
    env = {**os.environ, "UV_FIND_LINKS": str(tmp_path / "wheels"), "UV_NO_INDEX": "1", "UV_OFFLINE": "1"}
    env |= {"P2PC_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
    env["UV_CACHE_DIR"] = str(tmp_path / "uv")
    words = [sys.executable, "program.py", "old.txt", "wrong.txt"]
    ran = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.splitlines() == ["('2.0', 0)", "('1.0', 1)", "No module named 'tiny'", "deps"], ran.stderr


def test_what_deps_can_be() -> None:
    with pytest.raises(BadValue):
        TaskOptions(deps=3)  # type: ignore[arg-type]
