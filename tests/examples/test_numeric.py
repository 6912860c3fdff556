"""examples/numeric: a function with a module of its own computes on three nodes what it computes here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from p2pcompute.places import find_paths
from tests.e2e.mesh import Daemon
from tests.examples.conftest import EXAMPLES, run_program, shares

HERE = EXAMPLES / "numeric"


@pytest.fixture(scope="module")
def sweep() -> Iterator[ModuleType]:
    """The script, imported as its neighbour is: by the directory that both are in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        import sweep  # type: ignore[import-not-found]

        yield sweep
        for name in ("sweep", "double_pendulum"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def picture(sweep: ModuleType) -> list[str]:
    return [sweep.row(angle) for angle in sweep.ANGLES]


def test_energy_stays_and_the_picture_is_symmetric(sweep: ModuleType, picture: list[str]) -> None:
    """What the example shows is physics: a wrong equation breaks one or the other."""
    pendulum = sweep.double_pendulum
    state = (2.0, 1.0, 0.0, 0.0)
    before = pendulum.energy(state)
    for _ in range(300):
        state = pendulum.step(state, pendulum.STEP_S)
    assert pendulum.energy(state) == pytest.approx(before, rel=1e-4)
    assert picture == [line[::-1] for line in reversed(picture)], "mirrored starts flip at the same time"
    assert len(set("".join(picture))) > 5


def test_the_command_line_prints_the_picture(
    trio: list[Daemon], sweep: ModuleType, picture: list[str], tmp_path: Path
) -> None:
    """From another directory: the module is found beside the script, not where p2pc was called."""
    words = ["p2pc", "run", "-k", f"{HERE}/sweep.py::row", ":::", *(str(angle) for angle in sweep.ANGLES)]
    ran = run_program(trio[0], *words, cwd=tmp_path).check()
    assert ran.lines == picture
    assert sum(shares(trio[0]).values()) == len(picture) and len(shares(trio[0])) == 3
    dry = run_program(trio[0], "p2pc", "run", "--dry-run", f"{HERE}/sweep.py::row", ":::", "1", cwd=tmp_path).check()
    assert "double_pendulum" in dry.err


def test_the_library_prints_the_picture_and_who_computed_it(
    trio: list[Daemon], picture: list[str], tmp_path: Path
) -> None:
    ran = run_program(trio[1], "python3", HERE / "sweep.py", cwd=tmp_path).check()
    *lines, last = ran.lines
    assert lines == picture and ran.err == ""
    counts = dict(part.rsplit(" ", 1) for part in last.removeprefix("rows by node: ").split(", "))
    assert sum(map(int, counts.values())) == len(picture)
    assert set(counts) <= {"ada", "bob", "cy"} and len(counts) >= 2, last


def test_without_a_node_the_library_computes_here(picture: list[str], tmp_path: Path, trio: list[Daemon]) -> None:
    alone = {**trio[0].env, "P2PC_HOME": str(tmp_path / "home"), "P2PC_NODE__NAME": "solo"}
    solo = Daemon("solo", tmp_path / "home", alone, find_paths(alone))
    ran = run_program(solo, "python3", HERE / "sweep.py", cwd=tmp_path).check()
    assert ran.lines[:-1] == picture
