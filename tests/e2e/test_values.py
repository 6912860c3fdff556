"""Values of functions between real daemons: data from anybody, pickles from those who are trusted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh
from tests.sandboxes import need_sandbox

FUNCTIONS = """
class Point:
    def __init__(self, x): self.x = x
    def __str__(self): return f"point {self.x}"
class Trap:
    def __reduce__(self): return open, ("/tmp/p2pc-trap-of-a-test", "w")
def data(n): return {"n": (int(n), 1.5, b"x"), "s": {1, 2}}
def array(n):
    import numpy
    return numpy.arange(int(n) * 50_000)
def point(n): return Point(int(n))
def trap(n): return Trap()
def fails(n): raise KeyError("no such thing")
"""
TRAP = Path("/tmp/p2pc-trap-of-a-test")


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Daemon]]:
    need_sandbox()
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    path.chmod(0o755)
    mesh = Mesh(path, P2PC_NODE__ACCEPT="sandboxed")
    try:
        ada, bob = mesh.add("ada"), mesh.add("bob")
        for daemon in (ada, bob):
            daemon.start()
        bob.p2pc("join", "--accept", "sandboxed", mesh.token(ada)).check()
        ada.wait_ups(["bob"], 20)
        ada.p2pc("trust", "set", "bob", "member", "--yes").check()
        (ada.home / "f.py").write_text(FUNCTIONS)
        yield [ada, bob]
    except BaseException:
        mesh.close(is_failing=True)
        raise
    else:
        mesh.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(ada: Daemon, name: str, *flags: str) -> str:
    ran = ada.p2pc("run", "--verify", "none", "--on", "bob", "--retries", "0", *flags, f"f.py::{name}", ":::", "3")
    return ran.out + ran.err


def test_data_and_arrays_come_from_anybody(pair: list[Daemon]) -> None:
    """Containers keep their types, and arrays are arrays, also those that travel as files."""
    pytest.importorskip("numpy", reason="runs with numpy, which dev.py test installs")
    ada = pair[0]
    assert '{"n": [3, 1.5' in run(ada, "data") or "{'n': (3, 1.5, b'x')" in run(ada, "data")
    shown = run(ada, "array")
    assert "149999]" in shown, shown
    assert "no such thing" in run(ada, "fails"), "the text of an exception is lost"


def test_pickles_come_from_the_trusted(pair: list[Daemon]) -> None:
    """What only a pickle can carry is refused with the reason and the fix, and nothing of it is run here."""
    ada = pair[0]
    shown = run(ada, "point")
    assert "is no plain data" in shown and "its node is not trusted" in shown, shown
    assert "p2pc trust set NODE trusted" in shown, shown
    TRAP.unlink(missing_ok=True)
    assert "is not trusted" in run(ada, "trap")
    assert not TRAP.exists(), "a pickle of a stranger ran here"
    ada.p2pc("trust", "set", "bob", "trusted", "--yes").check()
    assert "point 3" in run(ada, "point")
    ada.p2pc("trust", "set", "bob", "member", "--yes").check()
    assert "is not trusted" in run(ada, "point")
