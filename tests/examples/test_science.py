"""examples/science: trees of calls, scikit-learn and Dask give on the mesh what they give here."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pcompute.execution.environments import find_uv
from tests.examples.conftest import EXAMPLES

HERE = EXAMPLES / "science"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def python_with(tmp_path: Path) -> Callable[..., Path]:
    """Makes an environment with packages as the example's README has them; returns its Python."""

    def make(*packages: str) -> Path:
        uv = find_uv()
        if uv is None:
            pytest.skip("runs with uv, which dev.py test installs")
        python = tmp_path / "venv" / "bin" / "python"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")], check=True)
        words = [uv, "pip", "install", "--quiet", "--python", str(python), *packages]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"runs where a package index has {' '.join(packages)}: {done.stderr.strip()[-200:]}")
        (library,) = (tmp_path / "venv" / "lib").glob("python3.*/site-packages")
        (library / "of_these_tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # what p2pcompute needs
        return python

    return make


def printed(name: str, home: Path, *words: str, python: str | Path = sys.executable) -> str:
    """Run a script where no node runs, and return what it prints."""
    env = {**os.environ, "P2PC_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [str(python), str(HERE / name), *words]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_tree(tmp_path: Path) -> None:
    """Broken: calls that tasks return, or values that go from task to task, give something else."""
    assert printed("tree.py", tmp_path, "1e-5") == ("the integral of sin(1/x) from 0.05 to 1 is 0.502840\nwidth 96\n")


def test_grid_search(tmp_path: Path, python_with: Callable[..., Path]) -> None:
    """Broken: scikit-learn's `n_jobs` does not work with the backend."""
    shown = printed("grid_search.py", tmp_path, "2", python=python_with("joblib", "scikit-learn"))
    assert shown.startswith("best of 9: {'C': 10, 'gamma': 0.001}")


def test_dask(tmp_path: Path, python_with: Callable[..., Path]) -> None:
    """Broken: Dask cannot use the executor as its scheduler."""
    shown = printed("dask_on_mesh.py", tmp_path, "200", python=python_with("dask[array,dataframe]"))
    lines = shown.splitlines()
    assert "standard deviation" in lines[0]
    assert lines[2].split() == ["0", "49997.5"]
