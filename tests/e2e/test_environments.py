"""Jobs with Python packages of their own between real daemons: another installation's node installs them, too."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.execution.environments import find_uv
from tests.e2e.mesh import Daemon, Mesh
from tests.sandboxes import need_sandbox
from tests.wheels import make_source, make_wheel

pytestmark = pytest.mark.skipif(find_uv() is None, reason="runs with uv, which dev.py test installs")

SCRIPT = """# /// script
# dependencies = ["tiny=={version}"]
# ///
import os, sys, tiny

def version(n):
    return f"{{tiny.VERSION}} {{n}}"

if __name__ == "__main__":
    print(tiny.VERSION, *sys.argv[1:])
"""
BROKEN = "def build_wheel(*args, **kwargs):\n    raise SystemExit('there is no compiler here')\n"


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Daemon]]:
    need_sandbox()
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    path.chmod(0o755)
    wheels = path / "wheels"
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "tiny", version, {"tiny/__init__.py": f"VERSION = {version!r}\n"})
    make_source(wheels, "hard", "1.0", BROKEN)
    own = {"UV_FIND_LINKS": str(wheels), "UV_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_CACHE_DIR": str(path / "uv")}
    mesh = Mesh(path, P2PC_NODE__ACCEPT="sandboxed", **own)
    try:
        ada, bob = mesh.add("ada"), mesh.add("bob")
        for daemon in (ada, bob):
            daemon.start()
        bob.p2pc("join", "--accept", "sandboxed", mesh.token(ada)).check()
        ada.wait_ups(["bob"], 20)
        for version in ("1.0", "2.0"):
            (ada.home / f"v{version[0]}.py").write_text(SCRIPT.format(version=version))
        yield [ada, bob]
    except BaseException:
        mesh.close(is_failing=True)
        raise
    else:
        mesh.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_on_nodes_of_two_installations(pair: list[Daemon]) -> None:
    """Both run both versions, at the same time; what is not installed here is not needed here."""
    ada = pair[0]
    begun = [ada.begin("run", "-k", "--on", "bob", f"v{version}.py::version", ":::", "x", "y") for version in (1, 2)]
    here = ada.p2pc("run", "-k", "--on", "ada", "v1.py::version", ":::", "x").check()
    there = [one.finish().check() for one in begun]
    assert here.out == "1.0 x\n"
    assert [ran.out for ran in there] == ["1.0 x\n1.0 y\n", "2.0 x\n2.0 y\n"]
    kept = ada.home.parent / "bob" / "environments"
    others = [path for path in kept.iterdir() if path.name not in ("library", "own")]
    assert len(others) == 1 and len(list(others[0].glob("*/.p2pc-ready"))) == 2, (
        "they did not run in sandboxes of bob's"
    )


def test_commands(pair: list[Daemon]) -> None:
    ada = pair[0]
    ran = ada.p2pc("run", "--on", "bob", "--send", "v2.py", "--deps", "v2.py", "python v2.py {}", ":::", "x").check()
    assert ran.out == "2.0 x\n"
    assert "1 package of v2.py in an environment of its own" in ran.err
    shown = ada.p2pc("run", "--dry-run", "v2.py::version", ":::", "x").check()
    assert "packages: tiny 2.0" in shown.err
    (ada.home / "none.txt").write_text("")
    ran = ada.p2pc("run", "--deps", "none.txt", "v1.py::version", ":::", "x").check(1)
    assert "No module named 'tiny'" in ran.err


def test_what_cannot_be_had(pair: list[Daemon]) -> None:
    """It is said before anything runs, or the task fails once: what, why and what to do."""
    ada = pair[0]
    (ada.home / "wrong.txt").write_text("tiny>=3\n")
    refused = ada.p2pc("run", "--deps", "wrong.txt", "v1.py::version", ":::", "x").check(2)
    assert "error[deps]" in refused.err and "tiny>=3" in refused.err and "fix:" in refused.err
    (ada.home / "hard.txt").write_text("hard\n")
    failed = ada.p2pc("run", "--deps", "hard.txt", "v1.py::version", ":::", "x").check(1)
    assert "no wheel of hard: only nodes of this installation build" in failed.err
    assert "there is no compiler here" in failed.err and "retried" not in failed.err
    assert ada.p2pc("show", "--json", "last/0").json()["attempts"] == 1
    refused = ada.p2pc("run", "--explain", "--on", "bob", "--deps", "hard.txt", "v1.py::version", ":::", "x")
    assert refused.code in (0, 4)


def test_wheels_for_other_machines(pair: list[Daemon]) -> None:
    """Packages that no node here could install are refused before the job begins, and why is said."""
    ada = pair[0]
    make_wheel(ada.home.parent / "wheels", "far", "1.0", {"far.py": ""}, tag="py3-none-macosx_11_0_arm64")
    (ada.home / "far.txt").write_text("far\n")
    refused = ada.p2pc("run", "--deps", "far.txt", "echo {}", ":::", "x").check(4)
    assert "no node can ever run this" in refused.err, refused.err
    assert refused.err.count("its packages have no wheels for") == 2, refused.err


def test_scikit_learn(pair: list[Daemon]) -> None:
    """A job with scikit-learn of its own, which neither node has; needs a package index that has it."""
    ada = pair[0]
    script = Path(__file__).parents[2] / "examples" / "science" / "forest.py"
    words = [str(find_uv()), "pip", "compile", "--quiet", str(script)]
    asked = subprocess.run(words, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip(f"no package index has scikit-learn: {asked.stderr.strip()[-200:]}")
    mesh = Mesh(ada.home.parent / "online")
    try:
        carl = mesh.add("carl")
        carl.start()
        flags = ("run", "-k", "--timeout", "120s", str(script) + "::score", ":::", "1", "10")
        ran = carl.p2pc(*flags, limit_s=400).check()
        assert [line.partition(":")[0] for line in ran.lines] == ["1 trees", "10 trees"], ran.out
        assert float(ran.lines[1].rpartition(" ")[2]) > 0.7
        assert "in an environment of its own" in ran.err
    finally:
        mesh.close()
