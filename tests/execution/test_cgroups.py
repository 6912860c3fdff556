"""Control groups, on a stand-in for their file system: this says what is written, not what kernels make of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from p2pcompute.execution.cgroups import Cgroups, NoCgroup, find_own
from p2pcompute.execution.sandbox import BoxLimits
from p2pcompute.limits import MIB

LIMITS = BoxLimits(mem_bytes=512 * MIB, disk_bytes=64 * MIB, processes=64, cores=(0, 1))


def machine(
    directory: Path, *, controllers: str = "cpu io memory pids", pids: tuple[int, ...] = (), line: str = "0::/s/u"
) -> Path:
    """A /proc and a group; returns /proc."""
    own = directory / "fs" / "s" / "u"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text(controllers + "\n")
    (own / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    (own / "cgroup.subtree_control").write_text("")
    proc = directory / "proc"
    process = proc / str(os.getpid())
    process.mkdir(parents=True)
    (process / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {directory / 'fs'} cgroup2 rw 0 0\n")
    (process / "cgroup").write_text(f"4:memory:/x\n{line}\n")
    return proc


def test_a_group_of_our_own_is_divided(tmp_path: Path) -> None:
    proc = machine(tmp_path, pids=(os.getpid(),))
    own = find_own(proc=proc)
    assert own == tmp_path / "fs/s/u"
    cgroups = Cgroups(own)
    assert (own / "node/cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    path = cgroups.make("worker-3", LIMITS)
    assert path == own / "worker-3"
    found = {file.name: file.read_text() for file in path.iterdir()}
    assert int(found.pop("memory.max")) > LIMITS.mem_bytes + LIMITS.disk_bytes
    assert int(found.pop("pids.max")) > LIMITS.processes
    assert found == {"cpu.max": "200000 100000", "memory.swap.max": "0"}
    said = subprocess.run(Cgroups.within(path, ["sh", "-c", "echo $$; echo ran"]), capture_output=True, check=True)
    assert said.stdout.split() == [(path / "cgroup.procs").read_bytes().strip(), b"ran"], "it was in it from the start"
    for file in path.iterdir():
        file.unlink()  # as the kernel's files, which do not keep their directory
    cgroups.end(path)
    (path / "cgroup.kill").unlink()
    assert cgroups.make("worker-4", LIMITS) is not None
    assert not path.exists(), "what was still ending is removed later"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pids": (1, 2)}, "other processes"),
        ({"controllers": "hugetlb"}, "does not control memory, pids, cpu"),
        ({"line": "9:name=systemd:/"}, "version 2"),
        ({"line": "0::/elsewhere"}, "cannot be read"),
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path: Path, fields: dict[str, object], says: str) -> None:
    proc = machine(tmp_path, **fields)  # type: ignore[arg-type]
    with pytest.raises(NoCgroup, match=says):
        find_own(proc=proc)


def test_a_restart_in_the_same_service(tmp_path: Path) -> None:
    """systemd starts the next node in the service's group again; one that was started by the last is below it."""
    proc = machine(tmp_path, line="0::/s/u/node")
    assert find_own(proc=proc) == tmp_path / "fs/s/u"


def test_a_sandbox_that_cannot_be_limited_is_watched(tmp_path: Path) -> None:
    cgroups = Cgroups(find_own(proc=machine(tmp_path)))
    (tmp_path / "fs/s/u/worker-1").write_text("in the way")
    assert cgroups.make("worker-1", LIMITS) is None
