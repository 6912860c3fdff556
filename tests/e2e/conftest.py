"""Meshes of real daemons for end-to-end tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh, running_mesh

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know whether their test has failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def _commands_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test begins at a shared mesh ends with the test."""
    daemons = request.getfixturevalue("pair") if "pair" in request.fixturenames else []
    yield
    for daemon in daemons:
        daemon.close_commands()


@pytest.fixture
def mesh(short_path: Path, request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """An empty mesh."""
    found = Mesh(short_path)
    yield found
    found.close(is_failing=request.node.stash.get(FAILED, False))


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Daemon]]:
    """Two daemons of one group, with two slots each; tests leave both as they were."""
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    try:
        with running_mesh(path, "ada", "bob") as (_mesh, daemons):
            yield daemons
    finally:
        shutil.rmtree(path, ignore_errors=True)
