"""examples/science: trees of calls, scikit-learn and Dask give on the mesh what they give here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES

HERE = EXAMPLES / "science"
ROOT = Path(__file__).parents[2]


def printed(name: str, home: Path, *words: str) -> str:
    """Run a script where no node runs, and return what it prints."""
    env = {**os.environ, "P2PC_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / name), *words]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_tree(tmp_path: Path) -> None:
    """Broken: calls that tasks return, or values that go from task to task, give something else."""
    assert printed("tree.py", tmp_path, "1e-5") == ("the integral of sin(1/x) from 0.05 to 1 is 0.502840\nwidth 96\n")


def test_grid_search(tmp_path: Path) -> None:
    """Broken: scikit-learn's `n_jobs` does not work with the backend."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: examples/science/README.md")
    assert printed("grid_search.py", tmp_path, "2").startswith("best of 9: {'C': 10, 'gamma': 0.001}")


def test_dask(tmp_path: Path) -> None:
    """Broken: Dask cannot use the executor as its scheduler."""
    pytest.importorskip("dask.dataframe", reason="dask[array,dataframe] is not installed: examples/science/README.md")
    lines = printed("dask_on_mesh.py", tmp_path, "200").splitlines()
    assert "standard deviation" in lines[0]
    assert lines[2].split() == ["0", "49997.5"]
