"""Disks, keys and stores that are not as they should be: said clearly, nothing lost, nothing wiped."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.places import find_paths
from tests.e2e.mesh import Daemon, Mesh, Ran, joblog_rows, until


@pytest.fixture
def small_disk(short_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    point = short_path / "disk"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(point)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def fill(disk: Path) -> Path:
    """Leave no free block."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):  # a buffer is written again at the end
        while file.write(bytes(64 * 1024)):
            pass
    with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass
    return ballast


def database_of(daemon: Daemon) -> Path:
    (database,) = [path for path in find_paths(daemon.env).store.iterdir() if ".sqlite" in path.suffix]
    return database


def refusal(daemon: Daemon) -> Ran:
    """Start a node that cannot start; return what `p2pc node start` says."""
    ran = daemon.p2pc("node", "start")
    assert ran.code in (2, 5), ran.err
    assert ran.err.startswith("error[") and "Traceback" not in ran.err, ran.err
    return ran


def test_a_full_disk_loses_nothing(mesh: Mesh, small_disk: Path, tmp_path: Path) -> None:
    """The node lives, says what is wrong, takes nothing it cannot keep, and goes on when there is room."""
    ada = mesh.add("ada", home=small_disk / "ada").start()
    ada.p2pc("run", "echo {}", ":::", "before").check()
    running = ada.begin("run", "--results", str(tmp_path / "out"), "sleep 0.1; echo {}", ":::", *map(str, range(60)))
    ada.wait_done(10, 20)
    ballast = fill(small_disk)

    def trouble() -> bool:
        return any("store" in note for note in ada.get("/v1/status")["notes"])

    until(trouble, 20, "status says that the store takes nothing")
    status = ada.p2pc("status").check()
    assert "to look at" in status.out and "store" in status.out, status.out
    refused = ada.p2pc("run", "echo {}", ":::", "during", limit_s=30)
    assert refused.code != 0 and "error[" in refused.err and "Traceback" not in refused.err, refused.err
    assert ada.get("/v1/status")["node"]["state"] in ("idle", "working"), "the node lives"
    ballast.unlink()
    ran = running.finish(60).check()
    assert sorted(map(int, ran.lines)) == list(range(60))
    job = ada.job()
    assert (job["done"], job["failed"]) == (60, 0)
    assert job["retried"] <= 4, "only what ran in the moment when the disk was full"
    assert len(list((tmp_path / "out/tasks/000").iterdir())) == 60
    assert not trouble()
    ada.kill()
    ada.start()
    assert ada.job()["done"] == 60, "and all of it is in the store"


def test_a_task_fills_the_disk(mesh: Mesh, small_disk: Path, tmp_path: Path) -> None:
    """Output larger than the disk fails its task with the reason; others are not touched."""
    ada = mesh.add("ada", home=small_disk / "ada").start()
    ran = ada.p2pc(
        "run",
        "--retries",
        "0",
        "if [ {} = big ]; then head -c 60M /dev/zero; else echo {}; fi",
        ":::",
        "a",
        "big",
        "b",
        limit_s=60,
    )
    assert ran.code == 1, ran.err
    assert {"a", "b"} <= set(ran.lines)
    # Its end is in the store as soon as there is room for it again.
    (failed,) = until(lambda: [task for task in ada.tasks() if task["inputs"] == ["big"]], 10, "it is in the store")
    assert failed["state"] == "failed" and "the disk is full" in failed["error"], failed["error"]
    ada.p2pc("run", "echo {}", ":::", "after").check()


def test_a_damaged_store_is_refused_and_kept(mesh: Mesh) -> None:
    ada = mesh.add("ada").start()
    ada.p2pc("run", "echo {}", ":::", *map(str, range(50))).check()
    ada.stop()
    database = database_of(ada)
    size = database.stat().st_size
    with open(database, "r+b") as file:
        for at in range(4096, size, 4096):
            file.seek(at)
            file.write(os.urandom(2048))
    damaged = database.read_bytes()
    said = refusal(ada)
    assert "error[store" in said.err and str(database) in said.err and "fix:" in said.err, said.err
    assert database.read_bytes() == damaged, "never wiped"
    database.rename(database.with_suffix(".aside"))
    for beside in database.parent.glob(database.name + "-*"):
        beside.unlink()
    assert ada.start().get("/v1/jobs?all=1")["items"] == [], "the way out works"
    ada.expected_errors.append("did not start")


def test_a_newer_store_is_refused(mesh: Mesh) -> None:
    ada = mesh.add("ada").start()
    ada.stop()
    database = database_of(ada)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 9999")
    said = refusal(ada)
    assert "newer" in said.err and "fix:" in said.err, said.err
    ada.expected_errors.append("did not start")


def test_an_identity_of_another_machine_is_refused(mesh: Mesh) -> None:
    """A copied home would be two nodes with one key."""
    ada = mesh.add("ada").start()
    identity = ada.get("/v1/status")["node"]["id"]
    ada.stop()
    (key,) = [path for path in find_paths(ada.env).data.iterdir() if path.name.startswith("identity")]
    copied = key.read_bytes()
    here = _machine_id(ada)
    assert here in copied or here.hex().encode() in copied or here.decode().encode() in copied
    key.write_bytes(copied.replace(here, b"0" * len(here)))
    os.chmod(key, 0o600)
    said = refusal(ada)
    assert "another machine" in said.err and "fix:" in said.err, said.err
    key.write_bytes(copied)
    os.chmod(key, 0o644)
    said = refusal(ada)
    assert "chmod" in said.err, said.err
    os.chmod(key, 0o600)
    assert ada.start().get("/v1/status")["node"]["id"] == identity
    ada.expected_errors.append("did not start")


def _machine_id(daemon: Daemon) -> bytes:
    from p2pcompute.host.paths import resolve_paths

    return resolve_paths(daemon.env).machine_id.encode()


def test_a_second_node_of_one_home_is_refused(mesh: Mesh) -> None:
    ada = mesh.add("ada").start()
    second = ada.p2pc("node")
    assert second.code == 5 and "running already" in second.err and "p2pc status" in second.err, second.err
    assert ada.get("/v1/status")["node"]["pid"] == ada.pid


def test_results_that_cannot_be_written_are_kept(mesh: Mesh, short_path: Path, small_disk: Path) -> None:
    """The disk of --results fills up: the job's own results stay in the node, and are written once there is room."""
    ada = mesh.add("ada").start()
    gate, out = short_path / "gate", small_disk / "out"
    command = f"while [ ! -e {gate} ]; do sleep 0.05; done; echo {{}}"
    running = ada.begin("run", "--results", str(out), command, ":::", *map(str, range(20)))
    until(lambda: list(out.glob("*")), 20, "the folder is claimed")
    ballast = fill(small_disk)
    gate.touch()
    first = running.finish(60)
    assert first.code != 0 and "No space left" in first.err, first.err
    ballast.unlink()
    until((out / "summary.json").exists, 20, "it is tried again by itself")
    said = [row[8].rpartition("; ")[2] for row in joblog_rows(out / "joblog")]
    assert sorted(said) == sorted(f"echo {i}" for i in range(20))


def test_a_job_whose_results_have_no_room_is_not_begun(mesh: Mesh, small_disk: Path) -> None:
    ada = mesh.add("ada").start()
    ballast = fill(small_disk)
    refused = ada.p2pc("run", "--results", str(small_disk / "out"), "echo {}", ":::", "a")
    assert refused.code == 5 and "No space left" in refused.err and "nothing has run" in refused.err, refused.err
    assert ada.get("/v1/jobs?all=true")["items"] == []
    ballast.unlink()
    ada.p2pc("run", "--results", str(small_disk / "out"), "echo {}", ":::", "a").check()
