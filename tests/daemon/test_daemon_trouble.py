"""What a daemon says and does when its surroundings are broken."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_daemon_process import Process

from p2pcompute.config import Settings
from p2pcompute.daemon.compose import build_node
from p2pcompute.daemon.listener import AcceptTrouble
from p2pcompute.errors import IdentityError, StoreError
from p2pcompute.host.paths import prepare_directories, resolve_paths


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "home")
    yield process
    if process.process.poll() is None:
        process.process.kill()
    process.process.communicate(timeout=10)


@pytest.mark.parametrize("what", ["home", "lock", "socket"])
def test_a_node_whose_home_is_gone_stops(daemon: Process, what: str) -> None:
    """Otherwise it goes on for ever: no command reaches it, and what it stores is lost."""
    home = daemon.paths.state
    if what == "home":
        shutil.rmtree(home)
    elif what == "lock":
        daemon.paths.lock.unlink()
    else:
        daemon.paths.socket.unlink()
        daemon.paths.socket.write_text("of another")
    assert daemon.ended(15) == 0
    if what != "home":
        assert "is gone or was replaced" in daemon.paths.log.read_text()
    assert what != "socket" or daemon.paths.socket.read_text() == "of another", "not ours to remove"


def test_a_lock_that_is_no_file_is_named(tmp_path: Path) -> None:
    """Otherwise it is called a bug of ours."""
    (tmp_path / "home" / "node.lock").mkdir(parents=True)
    refused = Process(tmp_path / "home")
    assert refused.report["code"] == "lock" and "node.lock" in refused.report["what"] and refused.report["fix"]
    assert refused.ended() == 5


async def test_a_new_key_is_not_made_beside_an_old_membership(tmp_path: Path) -> None:
    """Otherwise the node silently becomes a stranger to its group."""
    paths = resolve_paths({"P2PC_HOME": str(tmp_path / "home")})
    prepare_directories(paths)
    _, close = await build_node(paths, Settings())
    await close()
    (paths.data / "group.cbor").write_bytes(b"membership")
    (paths.data / "identity.cbor").unlink()
    with pytest.raises(IdentityError) as gone:
        await build_node(paths, Settings())
    assert gone.value.code == "identity-gone" and "group.cbor" in str(gone.value.fix)
    assert not (paths.data / "identity.cbor").exists()


async def test_a_file_in_the_place_of_the_tasks_is_named(tmp_path: Path) -> None:
    """Otherwise it is called a bug of ours."""
    paths = resolve_paths({"P2PC_HOME": str(tmp_path / "home")})
    prepare_directories(paths)
    (paths.data / "work").write_text("")
    with pytest.raises(StoreError) as refused:
        await build_node(paths, Settings())
    assert refused.value.code == "work" and refused.value.fix


def test_a_deleted_working_directory_is_named(tmp_path: Path) -> None:
    """Otherwise it is called a bug of ours."""
    program = (
        "import os, sys\nfrom p2pcompute.cli.main import run_command\nos.mkdir('gone')\nos.chdir('gone')\n"
        "os.rmdir('../gone')\nsys.exit(run_command(['run', '--dry-run', 'echo', '{}', ':::', '1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "P2PC_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "bug" not in done.stderr and (done.returncode == 0 or "cwd-gone" in done.stderr), done.stderr


async def test_a_process_out_of_descriptors_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the log is flooded: hundreds of tracebacks a second."""
    loop = asyncio.get_running_loop()
    trouble = AcceptTrouble()
    with caplog.at_level(logging.WARNING):
        for _ in range(500):
            trouble.handle(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})
        assert [record.exc_info for record in caplog.records] == [None]
        trouble.handle(loop, {"message": "another", "exception": ValueError("kept")})
    assert "Too many open files" in caplog.text and "another" in caplog.text
