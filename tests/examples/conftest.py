"""Three daemons for the programs of examples/, which run as a user would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import PROGRAM, Daemon, Ran, running_mesh

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="package")
def trio() -> Iterator[list[Daemon]]:
    """Three daemons of one group, with two slots each; tests leave all as they were."""
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    try:
        with running_mesh(path, "ada", "bob", "cy") as (_mesh, daemons):
            yield daemons
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run_program(daemon: Daemon, *words: str | Path, cwd: Path, limit_s: float = 55.0) -> Ran:
    """Run a program on a daemon's machine, with p2pc and this Python first in PATH."""
    places = f"{Path(PROGRAM).parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**daemon.env, "PATH": places},
        cwd=cwd,
        timeout=limit_s,
        check=False,
    )
    return Ran(tuple(str(word) for word in words), done.returncode, done.stdout, done.stderr.decode(), 0.0)


def shares(daemon: Daemon) -> dict[str, int]:
    """Node → tasks of the last job that it did."""
    return {share["node"]: share["done"] for share in daemon.job()["by_node"]}
