"""Calls whose results are kept in a folder, and programs that go on from one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcompute import JobStatus, MeshExecutor, TaskOptions, UsageError
from p2pcompute.api.files import digest_of_file
from p2pcompute.api.functions import Functions
from p2pcompute.api.noted import Noting
from p2pcompute.api.result_folder import ResultFolder, results_target

OPTIONS: dict[str, Any] = {"max_workers": 2, "local": True}


def ran(folder: Path) -> list[str]:
    """The inputs of calls in the order of their records."""
    lines = (folder / "tasks.jsonl").read_text().splitlines()
    return [",".join(json.loads(line)["inputs"]) for line in lines]


def make(log: Path) -> Callable[[Any], int]:
    def square(n: Any) -> int:
        with log.open("a") as out:
            out.write(f"{n}\n")
        if n == 3 and not log.with_suffix(".mended").exists():
            raise ValueError(n)
        return int(n * n)

    return square


def read_mode(_number: int) -> str | None:
    return os.environ.get("MODE")


def test_resume(tmp_path: Path) -> None:
    """Broken: a program that is started again computes what it has, misses what it has not, or mixes them up."""
    log, out = tmp_path / "log", tmp_path / "out"
    square = make(log)
    with MeshExecutor(**OPTIONS, results=out) as executor:
        job = executor.start_map(square, range(5))
        assert job.results(errors="skip") == [0, 1, 4, 16]
        large = executor.submit(bytes, 200_000).result()
    assert sorted(ran(out)) == ["0", "1", "2", "200000", "3", "4"]
    assert json.loads((out / "summary.json").read_text())["failed"] == 1
    log.with_suffix(".mended").touch()
    log.write_text("")
    with MeshExecutor(**OPTIONS, results=out, resume=True) as executor:
        again = executor.start_map(square, [7, 4, 3, 2])  # in another order
        assert list(again) == [49, 16, 9, 4]
        assert list(executor.map(square, range(3))) == [0, 1, 4]
        assert executor.submit(bytes, 200_000).result() == large
        first = executor.submit(square, 2)
        assert first.info.state == "done" and first.done(), "it need not wait for the node"
        assert executor.submit(square, first).result() == 16
    assert sorted(log.read_text().split()) == ["3", "4", "7"]
    with MeshExecutor(**OPTIONS, results=out, resume=True) as executor:
        assert executor.submit(square, executor.submit(square, 2)).result() == 16
        assert list(executor.with_options(key="two").map(square, [7])) == [49]
        assert executor.with_options(key="two").submit(float, 7).result() == 7.0, "and those of other functions"
    assert sorted(log.read_text().split()) == ["3", "4", "7", "7"], "calls with another key are other calls"
    with MeshExecutor(**OPTIONS, results=out, resume=True) as executor:
        assert [executor.with_options(key="two").submit(of, 7).result() for of in (square, float)] == [49, 7.0]


def test_files_are_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: files of one call are written over those of another, or are not found again."""
    monkeypatch.chdir(tmp_path)
    options = TaskOptions(fetch=["o.txt"])

    def write(text: str) -> int:
        return Path("o.txt").write_text(text)

    found = []
    for resume in (False, True):
        with MeshExecutor(**OPTIONS, options=options, results="out", resume=resume) as executor:
            job = executor.start_map(write, ["one", "three"])
            assert list(job) == [3, 5]
            found.append([future.files["o.txt"] for future in job.futures])
    assert found[0] == found[1]
    assert [Path(path).read_text() for path in found[0]] == ["one", "three"]
    assert not (tmp_path / "o.txt").exists()


def test_changed_files_are_other_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a call whose input file has changed is taken for done."""
    monkeypatch.chdir(tmp_path)
    options = TaskOptions(send=["{}"])
    for text in ("old", "new", "new"):
        (tmp_path / "in").write_text(text)
        with MeshExecutor(**OPTIONS, options=options, results="out", resume=True) as executor:
            assert executor.submit(lambda path: Path(path).read_text(), "in").result() == text
    assert ran(tmp_path / "out") == ["in", "in"]


def test_changed_surroundings_make_other_calls(tmp_path: Path) -> None:
    """Broken: a result that was made with other variables, packages or digits is taken for what was asked for."""
    (tmp_path / "one.txt").write_text("numpy==1.26.0\n")
    (tmp_path / "two.txt").write_text("numpy==2.0.0\n")
    noting = Noting(True, digest_of_file)
    shipment, _ = Functions(TaskOptions()).find(read_mode)

    def key_with(**changes: Any) -> bytes:
        options = TaskOptions(**changes)
        return noting.prepare(shipment, b"", read_mode, (1,), {}, options).note.key

    plain = key_with()
    others = [
        {"env": {"MODE": "fast"}},
        {"env": {"MODE": "slow"}},
        {"equal": 3},
        {"deps": str(tmp_path / "one.txt")},
        {"deps": str(tmp_path / "two.txt")},
        {"key": "v1"},
        {"key": "v1", "env": {"MODE": "fast"}},
    ]
    keys = [key_with(**changes) for changes in others]
    assert len({plain, *keys}) == len(others) + 1
    assert keys == [key_with(**changes) for changes in others]
    for same in ({"deps": "none"}, {"cpus": 2}, {"retries": 5}, {"sandbox": "process"}, {"network": "full"}):
        assert key_with(**same) == plain, "what only says where and how often"
    for mode in ("fast", "slow"):
        with MeshExecutor(**OPTIONS, results=tmp_path / "out", resume=True) as executor:
            assert executor.with_options(env={"MODE": mode}).submit(read_mode, 1).result() == mode


def test_one_file(tmp_path: Path) -> None:
    """Broken: values in one file cannot be read by other programs."""
    with MeshExecutor(**OPTIONS, results=tmp_path / "out.jsonl") as executor:
        assert list(executor.map(abs, [-1, 2])) == [1, 2]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(line["value"] for line in lines) == [1, 2]
    with pytest.raises(UsageError, match="kept in a folder"):
        MeshExecutor(results=tmp_path / "out.jsonl", resume=True)


def test_what_is_refused(tmp_path: Path) -> None:
    """Broken: results of another program are mixed with these."""
    with MeshExecutor(**OPTIONS, results=tmp_path) as executor:
        assert executor.submit(abs, -1).result() == 1
        saved = executor.start_map(abs, [-1])
        saved.save(tmp_path / "other")
        with pytest.raises(UsageError, match=r"; name another place$"):
            saved.save(tmp_path / "other")
    with pytest.raises(UsageError, match=r"already holds results .*; resume=True carries on"):
        MeshExecutor(results=tmp_path)
    with pytest.raises(UsageError, match="needs to know"):
        MeshExecutor(resume=True)


WRITER = """
import sys, time
from p2pcompute import MeshExecutor, UsageError
try:
    with MeshExecutor(max_workers=1, local=True, results="out", resume=True) as executor:
        print(executor.submit(str, sys.argv[1]).result(), flush=True)
        sys.stdin.readline()
        if "die" in sys.argv:
            import os
            os.kill(os.getpid(), 9)
except UsageError as error:
    print(error.code, flush=True)
"""


def test_two_programs_do_not_share_a_folder(tmp_path: Path) -> None:
    """Broken: both number their calls alike and overwrite each other, or a dead one keeps all others out."""
    (tmp_path / "program.py").write_text(WRITER)

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "program.py", *words],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    with start("one", "die") as first:
        assert first.stdout is not None and first.stdout.readline() == "one\n"
        with start("two") as second:
            assert second.communicate()[0] == "results-busy\n"
        with pytest.raises(UsageError, match=f"{tmp_path}/out is being written by another program"):
            results_target(tmp_path / "out", resume=True)
        first.communicate("\n")
    with start("two") as second:
        assert second.communicate("\n")[0] == "two\n", "who died keeps nobody out"
    records = [json.loads(line) for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
    assert [(record["number"], record["inputs"]) for record in records] == [(0, ["one"]), (1, ["two"])]
    assert not list((tmp_path / "out").glob(".*")), "and leaves nothing"


def test_numbers_are_given_to_who_has_the_folder(tmp_path: Path) -> None:
    """Broken: what is free is looked up before the folder is claimed, and is taken by then."""
    early = results_target(tmp_path / "out", resume=True)
    with MeshExecutor(**OPTIONS, results=tmp_path / "out") as executor:
        assert executor.submit(abs, -1).result() == 1
        with pytest.raises(UsageError, match="another program"):
            MeshExecutor(**OPTIONS, results=tmp_path / "out", resume=True)
    late = ResultFolder(early, "late")
    assert late.target.first == 1
    late.close()


def test_progress_is_told() -> None:
    """Broken: nobody is told how far a map is."""
    told: list[JobStatus] = []
    with MeshExecutor(**OPTIONS, progress=told.append) as executor:
        assert len(list(executor.map(abs, range(50)))) == 50
        executor.start_map(abs, range(5)).wait()
    assert [(status.name, status.done, status.total) for status in told if status.done == status.total] == [
        ("abs", 50, 50),
        ("abs", 5, 5),
    ]
