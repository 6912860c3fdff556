"""examples/files: three nodes do to a few thousand real files what one machine does to them.

The files are those of the standard library of the Python that runs the tests.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import runpy
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon
from tests.examples.conftest import EXAMPLES, run_program, shares

HERE = EXAMPLES / "files"
LIBRARY = Path(sysconfig.get_path("stdlib"))
SIZE_MAX = 1023 * 1024
"""`find -size -1024k` rounds up to whole KiB."""


def files_of(tree: Path, *, end: str = "") -> list[str]:
    """Return what the scripts' `find` finds, as they name it."""
    found = []
    for folder, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if name != "site-packages" and (end or name != "__pycache__")]
        for name in names:
            path = Path(folder, name)
            if name.endswith(end) and path.is_file() and not path.is_symlink() and path.stat().st_size <= SIZE_MAX:
                found.append(f"./{path.relative_to(tree)}")
    return sorted(found, key=os.fsencode)


def test_checksums_are_those_of_sha256sum_in_the_order_of_the_names(trio: list[Daemon], tmp_path: Path) -> None:
    ran = run_program(trio[0], HERE / "checksums.sh", cwd=tmp_path).check()
    names = files_of(LIBRARY)
    assert len(names) > 500
    assert ran.lines == [f"{hashlib.sha256((LIBRARY / name).read_bytes()).hexdigest()}  {name}" for name in names]
    assert sum(shares(trio[0]).values()) == len(names) and len(shares(trio[0])) == 3
    (tmp_path / "SHA256SUMS").write_bytes(ran.raw)
    words = ["sha256sum", "--check", "--quiet", "--strict", str(tmp_path / "SHA256SUMS")]
    assert subprocess.run(words, cwd=LIBRARY, check=False).returncode == 0


def test_compressed_files_come_back_with_their_folders_and_nothing_else(trio: list[Daemon], tmp_path: Path) -> None:
    run_program(trio[1], HERE / "compress.sh", "out", cwd=tmp_path).check()
    names = files_of(LIBRARY)
    assert sorted(files_of(tmp_path / "out")) == sorted(f"{name}.gz" for name in names)
    for name in names:
        packed = (tmp_path / "out" / f"{name}.gz").read_bytes()
        assert gzip.decompress(packed) == (LIBRARY / name).read_bytes(), name
    assert len(shares(trio[1])) == 3


def test_a_function_finds_in_sent_files_what_it_finds_here(trio: list[Daemon], tmp_path: Path) -> None:
    """Also in files that are no Python, as the tests of Python have some: they must not fail the batch they are in."""
    tree = LIBRARY / "test" if (LIBRARY / "test" / "test_abc.py").exists() else LIBRARY
    ran = run_program(trio[2], HERE / "outline.sh", tree, cwd=tmp_path).check()
    found = {one["file"]: one for one in map(json.loads, ran.lines)}
    names = files_of(tree, end=".py")
    assert len(ran.lines) == len(names) and sorted(found, key=os.fsencode) == names
    measure = runpy.run_path(str(HERE / "outline.py"))["measure"]
    before = Path.cwd()
    os.chdir(tree)
    try:
        for name in names[:: max(1, len(names) // 200)]:
            assert found[name] == measure(name)
    finally:
        os.chdir(before)
    for name in names:
        assert found[name]["sha256"] == hashlib.sha256((tree / name).read_bytes()).hexdigest()
    (tmp_path / "outline.jsonl").write_bytes(ran.raw)
    table = run_program(trio[2], "python3", HERE / "outline.py", "outline.jsonl", cwd=tmp_path).check()
    assert f"functions in {len(names):,} files" in table.out
    job = trio[2].job()
    assert job["total"] < len(names) / 2, "short calls share tasks"


@pytest.mark.parametrize("count", [1, 7])
def test_files_of_one_name_do_not_meet(trio: list[Daemon], tmp_path: Path, count: int) -> None:
    """Seven directories each with a file of the same name, sent under that name: no task may see another's."""
    for number in range(7):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "same.txt").write_text(f"content {number}\n")
    (tmp_path / "read.py").write_text("def read(name, number):\n    return [number, open(name).read()]\n")
    words = ["p2pc", "run", "--batch", str(count), "--send", "{2}/./{1}", "read.py::read", ":::", "same.txt"]
    ran = run_program(trio[0], *words, ":::", *(str(number) for number in range(7)), cwd=tmp_path).check()
    assert sorted(map(json.loads, ran.lines)) == [[str(number), f"content {number}\n"] for number in range(7)]
