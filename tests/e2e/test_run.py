"""`p2pc run` on a mesh of two nodes: inputs, files, results, resume, failures, and commands about jobs."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from random import Random

import psutil
import pytest

from tests.e2e.mesh import Daemon, joblog_rows, until

MIB = 1024 * 1024
BIG_MIB = 300
GROWTH_MIB_MAX = 48
"""What moving a file of BIG_MIB may add to a daemon's memory: windows and buffers, not the file."""


@pytest.fixture
def ada(pair: list[Daemon]) -> Daemon:
    return pair[0]


def names_of(items: Sequence[dict[str, object]]) -> set[str]:
    return {str(item["node"]) for item in items}


# --- inputs ---------------------------------------------------------------------------------------


def test_inputs_of_all_kinds(ada: Daemon, tmp_path: Path) -> None:
    """One job for each way to give inputs; -k makes the output comparable."""
    (tmp_path / "list").write_text("x y\nz\n")
    (tmp_path / "pairs").write_text("name,size\na,1\nb,2\n")
    (tmp_path / "items.json").write_text(json.dumps([{"k": "p", "n": 1}, {"k": "q", "n": 2}]))
    cases: list[tuple[list[str], bytes, list[str]]] = [
        (["echo", "{1}-{2}", ":::", "a", "b", ":::", "1", "2"], b"", ["a-1", "a-2", "b-1", "b-2"]),
        (["--link", "echo", "{1}-{2}", ":::", "a", "b", ":::", "1", "2"], b"", ["a-1", "b-2"]),
        (["echo", "<{}>", "::::", "list"], b"", ["<x y>", "<z>"]),
        (["-a", "list", "echo", "<{}>"], b"", ["<x y>", "<z>"]),
        (["echo", "{.}|{/}|{//}|{/.}"], b"d/e.txt\n", ["d/e|e.txt|d|e"]),
        (["-0", "echo", "<{}>"], b"a\nb\0c\0", ["<a", "b>", "<c>"]),
        (["--range", "1..7:3", "echo", "n{}", "{#}"], b"", ["n1 1", "n4 2", "n7 3"]),
        (["--colsep", ",", "--header", ":", "-a", "pairs", "echo", "{name}={size}"], b"", ["a=1", "b=2"]),
        (["--pipe", "--block", "4", "wc", "-l"], b"1\n2\n3\n", ["2", "1"]),
        (["--pipe", "--header", ":", "--block", "2", "-a", "list", "paste", "-sd+"], b"", ["x y+z"]),
        (["--from-json", "items.json", "echo", "{k}{n}"], b"", ["p1", "q2"]),
        (["-n", "2", "echo", ":::", "1", "2", "3"], b"", ["1 2", "3"]),
        (["echo $(( {} * 2 ))", ":::", "3", "4"], b"", ["6", "8"]),
        (["printf '%s\\n'", ":::", "a  b", "$HOME", "'"], b"", ["a  b", "$HOME", "'"]),
    ]
    for words, stdin, expected in cases:
        ran = ada.p2pc("run", "-k", *words, stdin=stdin, cwd=tmp_path).check()
        assert ran.lines == expected, words


def test_both_nodes_work_and_output_is_whole(ada: Daemon, tmp_path: Path) -> None:
    ran = ada.p2pc("run", "--tag", "sleep 0.1; echo out {}; echo err {} >&2", ":::", *map(str, range(30)), cwd=tmp_path)
    ran.check()
    assert sorted(ran.lines) == sorted(f"{index}\tout {index}" for index in range(30))
    assert {f"{index}\terr {index}" for index in range(30)} <= set(ran.err.splitlines())
    assert names_of(ada.job()["by_node"]) == {"ada", "bob"}


def test_json_is_one_document_and_stdout_is_empty_otherwise(ada: Daemon) -> None:
    document = ada.p2pc("run", "--json", "echo {}; test {} != 2", ":::", "1", "2", "3", "--retries", "0").json()
    assert document["schema"] == "p2pc.job/1"
    document = ada.p2pc("run", "--json", "--retries", "0", "test {} != 2", ":::", "1", "2", "3").check(1).json()
    assert (document["done"], document["failed"], document["exit_code"]) == (2, 1, 1)
    failed = ada.p2pc("run", "--json", "--no-such-flag", "x", ":::", "1")
    assert failed.code == 2 and failed.json()["schema"] == "p2pc.error/1"


def test_functions_with_their_own_module(ada: Daemon, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "work.py").write_text(
        "import os\nfrom helper import double\n\ndef f(x):\n    return double(int(x)), os.environ['P2PC_NODE']\n"
    )
    ada.p2pc("run", "work.py::f", ":::", *map(str, range(40)), cwd=tmp_path).check()
    records = [json.loads(line) for line in ada.p2pc("result", "last", "--format", "jsonl").check().lines]
    values = {record["index"]: record["value"] for record in records}
    assert {index: value[0] for index, value in values.items()} == {index: 2 * index for index in range(40)}


# --- files ----------------------------------------------------------------------------------------


def test_files_go_along_and_come_back(ada: Daemon, tmp_path: Path) -> None:
    """Folders in their names too; each node gets only what its tasks need."""
    (tmp_path / "in").mkdir()
    for index in range(20):
        (tmp_path / f"in/{index}.txt").write_text(f"text {index}\n" * (index + 1))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/prefix").write_text(">> ")
    inputs = [f"in/{index}.txt" for index in range(20)]
    ran = ada.p2pc(
        "run",
        "--send",
        "{}",
        "--share",
        "shared",
        "--fetch",
        "{.}.up",
        "--fetch",
        "{.}.sum",
        "sleep 0.1; { cat shared/prefix; tr a-z A-Z <{}; } > {.}.up; sha256sum <{} >{.}.sum",
        ":::",
        *inputs,
        cwd=tmp_path,
    )
    ran.check()
    for index in range(20):
        text = f"text {index}\n" * (index + 1)
        assert (tmp_path / f"in/{index}.up").read_text() == ">> " + text.upper()
        assert (tmp_path / f"in/{index}.sum").read_text().split()[0] == hashlib.sha256(text.encode()).hexdigest()
    assert names_of(ada.job()["by_node"]) == {"ada", "bob"}


def test_large_files_are_streamed(pair: list[Daemon], tmp_path: Path) -> None:
    """A big file reaches both nodes and a big result comes back; breaks when one of them is held in memory whole."""
    ada = pair[0]
    big = tmp_path / "big"
    rng = Random(7)
    with open(big, "wb") as file:
        for at in range(0, BIG_MIB, 3):
            file.seek(at * MIB)
            file.write(rng.randbytes(64 * 1024))
        file.truncate(BIG_MIB * MIB)
    with open(big, "rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    processes = [psutil.Process(daemon.pid) for daemon in pair]
    before = [process.memory_info().rss for process in processes]
    most = list(before)

    def look() -> bool:
        for at, process in enumerate(processes):
            most[at] = max(most[at], process.memory_info().rss)
        return running.process.poll() is not None

    running = ada.begin(
        "run",
        "--share",
        "big",
        "--fetch",
        "back{}",
        "--results",
        "out",
        "sleep 0.3; sha256sum <big; head -c 25M big >back{}; echo $P2PC_NODE",
        ":::",
        "1",
        "2",
        "3",
        "4",
        cwd=tmp_path,
    )
    until(look, 120, "the job is over")
    ran = running.finish().check()

    assert [line.split()[0] for line in ran.lines[::2]] == [digest] * 4
    assert set(ran.lines[1::2]) == {"ada", "bob"}
    for folder in (tmp_path / "out/tasks/000").iterdir():
        (found,) = (folder / "files").iterdir()
        assert found.stat().st_size == 25 * MIB
    grown = [round((top - base) / MIB, 1) for top, base in zip(most, before, strict=True)]
    print(f"{BIG_MIB} MiB shared, 100 MiB fetched in {ran.took_s:.1f} s; memory of the daemons grew by {grown} MiB")
    assert max(grown) < GROWTH_MIB_MAX, grown


# --- results --------------------------------------------------------------------------------------


def test_results_directory_and_single_files(ada: Daemon, tmp_path: Path) -> None:
    words = ["echo out {}; echo err {} >&2; exit {}", ":::", "0", "3"]
    ada.p2pc("run", "--retries", "0", "--results", "out", *words, cwd=tmp_path).check(1)
    folder = tmp_path / "out/tasks/000/000001"
    assert (folder / "stdout").read_text() == "out 3\n" and (folder / "stderr").read_text() == "err 3\n"
    assert json.loads((folder / "meta.json").read_text())["exit_code"] == 3
    assert json.loads((tmp_path / "out/summary.json").read_text())["failed"] == 1
    assert [row[6] for row in sorted(joblog_rows(tmp_path / "out/joblog"))] == ["0", "3"]
    ada.p2pc("run", "--retries", "0", "--results", "out.csv", *words, cwd=tmp_path).check(1)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["Seq"])
    assert [row["Exitval"] for row in rows] == ["0", "3"] and rows[1]["Stdout"] == "out 3\n"
    ada.p2pc("run", "--retries", "0", "--results", "out.jsonl", *words, cwd=tmp_path).check(1)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    again = ada.p2pc("run", "--results", "out", *words, cwd=tmp_path)
    assert again.code == 2 and "--resume" in again.err, "results that are there are not overwritten"


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
def test_gnu_parallel_reads_our_joblog(ada: Daemon, tmp_path: Path) -> None:
    """It takes the tasks of our log as done, and starts only what is not in there."""
    inputs = [f"{index}" for index in range(12)]
    ada.p2pc("run", "--joblog", "log", "echo", "{}", ":::", *inputs, cwd=tmp_path).check()
    rows = sorted(joblog_rows(tmp_path / "log"), key=lambda row: int(row[0]))
    assert [row[8] for row in rows] == [f"echo {item}" for item in inputs]
    assert {row[1] for row in rows} <= {"ada", "bob"}
    for row in rows:
        assert float(row[2]) > 1.7e9 and float(row[3]) >= 0 and int(row[4]) == 0 and int(row[5]) > 0, row
    done = subprocess.run(
        ["parallel", "--will-cite", "--joblog", "log", "--resume", "-k", "echo", "{}", ":::", *inputs, "new"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=ada.env,
    )
    assert (done.returncode, done.stdout) == (0, "new\n"), done.stderr


def test_resume_by_content(ada: Daemon, tmp_path: Path) -> None:
    """Another order, more inputs, fewer inputs: what was done is not done again, what is new is, failures count."""
    script = "echo {} >> ran; test {} != bad"
    words = ["--retries", "0", "--results", "out", script, ":::"]
    ada.p2pc("run", *words, "a", "b", "bad", "c", cwd=tmp_path).check(1)
    resumed = ada.p2pc("run", "--resume", *words, "new", "c", "bad", "a", cwd=tmp_path).check(1)
    assert "2 of 4 already done, 1 failed before, 1 new" in resumed.err, resumed.err
    assert "1 failed before and not tried now; again: --resume-failed" in resumed.err, "why the exit code is 1"
    assert sorted((tmp_path / "ran").read_text().split()) == ["a", "b", "bad", "c", "new"]
    again = ada.p2pc("run", "--resume-failed", *words, "a", "b", "bad", "c", "new", cwd=tmp_path).check(1)
    assert "bad" in (tmp_path / "ran").read_text().split()[5:], again.err
    changed = ada.p2pc("run", "--resume", "--results", "out", script + " ", ":::", "a", cwd=tmp_path).check()
    assert "1 new" in changed.err, "another command is other work"
    numbers = [int(row[0]) for row in joblog_rows(tmp_path / "out/joblog")]
    assert len(numbers) == len(set(numbers)), "numbers of tasks go on"


def test_resume_from_a_joblog(ada: Daemon, tmp_path: Path) -> None:
    words = ["--joblog", "log", "echo {} >> ran", ":::"]
    ada.p2pc("run", *words, "a", "b", cwd=tmp_path).check()
    ada.p2pc("run", "--resume", *words, "c", "b", "a", cwd=tmp_path).check()
    assert sorted((tmp_path / "ran").read_text().split()) == ["a", "b", "c"]


# --- failures -------------------------------------------------------------------------------------


def test_retries_go_to_another_node(ada: Daemon, tmp_path: Path) -> None:
    """A task that fails on one node only succeeds on the other, whichever that is."""
    ran = ada.p2pc(
        "run",
        "--retries",
        "1",
        "test $P2PC_NODE = bob && echo {} || { sleep 0.05; exit 1; }",
        ":::",
        *map(str, range(8)),
        cwd=tmp_path,
    ).check()
    assert sorted(ran.lines) == sorted(map(str, range(8)))
    job = ada.job()
    assert job["failed"] == 0 and job["retried"] >= 1
    assert {task["node"] for task in ada.tasks()} == {"bob"}


def test_timeout_kills_the_whole_group(ada: Daemon, tmp_path: Path) -> None:
    ran = ada.p2pc(
        "run",
        "--timeout",
        "1s",
        "--retries",
        "0",
        "--results",
        "out",
        "sleep 61.25 & sleep {}",
        ":::",
        "0.1",
        "60",
        cwd=tmp_path,
        limit_s=30,
    ).check(1)
    assert ran.took_s < 15
    (failed,) = [task for task in ada.tasks() if task["state"] == "failed"]
    assert failed["inputs"] == ["60"] and "1 s" in failed["error"]
    assert sorted(row[6] for row in joblog_rows(tmp_path / "out/joblog")) == ["-1", "0"]
    until(
        lambda: (
            not any(
                "61.25" in process.info["cmdline"] or ()
                for process in psutil.process_iter(["cmdline"])
                if process.info["cmdline"]
            )
        ),
        10,
        "nothing of it is left",
    )


def test_halt(ada: Daemon, tmp_path: Path) -> None:
    soon = ada.p2pc(
        "run",
        "--halt",
        "soon,fail=1",
        "--retries",
        "0",
        "-j",
        "2",
        "sleep 0.1; test {} != 3",
        ":::",
        *map(str, range(200)),
        cwd=tmp_path,
    ).check(3)
    job = ada.job()
    assert job["failed"] == 1 and job["cancelled"] > 100 and job["halted"], soon.err
    ada.p2pc("run", "--halt", "now,success=1", "sleep {}", ":::", "0.1", "50", "60", limit_s=20).check(0)
    ada.p2pc("run", "--halt", "now,done=100%", "echo", ":::", "1", "2").check()


def test_exit_codes(ada: Daemon, tmp_path: Path) -> None:
    for words, code in (
        (["true", ":::", "1"], 0),
        (["--retries", "0", "false", ":::", "1", "2"], 1),
        (["--retries", "0", "--exit-code", "gnu", "false", ":::", "1", "2"], 2),
        (["--no-such-flag", "true", ":::", "1"], 2),
        (["--timeout", "soon", "true", ":::", "1"], 2),
        (["--send", "missing", "true", ":::", "1"], 2),
        (["-a", "missing", "true"], 2),
        (["missing.py::f", ":::", "1"], 2),
        (["--retries", "0", "/no/such/command", ":::", "1"], 1),
        (["--local", "/no/such/command", ":::", "1"], 2),
    ):
        ran = ada.p2pc("run", *words, cwd=tmp_path)
        assert ran.code == code, (words, ran.code, ran.err)
        if code == 2 and "gnu" not in words:
            assert ran.err.startswith("error[") and "Traceback" not in ran.err, ran.err
    assert ada.p2pc("wait", "zzzz").code == 2
    assert ada.p2pc("run", "true", ":::", "1", env={"P2PC_HOME": str(tmp_path / "nobody")}).code == 5


def test_what_cannot_run_is_said_before_or_with_the_task(ada: Daemon, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\necho hello\n")
    refused = ada.p2pc("run", "./script", ":::", "1", cwd=tmp_path)
    assert refused.code == 2 and "chmod +x" in refused.err, refused.err
    (tmp_path / "unpicklable.py").write_text(
        "import threading\nlock = threading.Lock()\n\ndef f(x):\n    with lock:\n        return x\n"
    )
    refused = ada.p2pc("run", "unpicklable.py::f", ":::", "1", cwd=tmp_path)
    assert refused.code == 2 and "lock" in refused.err and "Traceback" not in refused.err, refused.err
    (tmp_path / "broken.py").write_text("def f(x):\n    return {}[x]\n")
    failed = ada.p2pc("run", "--retries", "0", "broken.py::f", ":::", "1", "2", cwd=tmp_path).check(1)
    assert "KeyError: '1'" in failed.err and "broken.py" in failed.err, "the user's own traceback is shown"
    assert "p2pcompute/execution" not in failed.err, "ours is not"


def test_preflight_of_local_files(ada: Daemon, tmp_path: Path) -> None:
    """Inputs that are files of this machine only would fail on every other node."""
    (tmp_path / "data.txt").write_text("x")
    refused = ada.p2pc("run", "cat", ":::", "data.txt", cwd=tmp_path)
    assert refused.code == 2 and "--send {}" in refused.err and "--local" in refused.err, refused.err
    assert ada.p2pc("run", "--local", "cat", ":::", "data.txt", cwd=tmp_path).check().out == "x"
    assert {task["node"] for task in ada.tasks()} == {"ada"}


# --- jobs -----------------------------------------------------------------------------------------


def test_detach_wait_logs_result(ada: Daemon, tmp_path: Path) -> None:
    detached = ada.p2pc(
        "run",
        "--detach",
        "--retries",
        "0",
        "--name",
        "three",
        "sleep 3; echo out {}; echo err {} >&2; test {} != 2",
        ":::",
        "1",
        "2",
        "3",
        cwd=tmp_path,
    ).check()
    (alias,) = detached.lines
    early = ada.p2pc("result", alias)
    assert early.code == 7, early.err
    assert ada.p2pc("wait", alias, "--timeout", "0.01s").code == 7
    assert ada.p2pc("wait", alias).code == 1
    raw = ada.p2pc("logs", alias, "--raw", "--stdout").check().lines
    assert sorted(raw) == ["out 1", "out 2", "out 3"]
    assert "err 2" in ada.p2pc("logs", alias, "--failed").out
    result = ada.p2pc("result", alias)
    assert result.code == 1 and sorted(result.lines) == ["out 1", "out 2", "out 3"], "the code of the job"
    ada.p2pc("result", alias, "-o", "saved", cwd=tmp_path)
    assert (tmp_path / "saved/tasks/000/000000/stdout").read_text() == "out 1\n"
    shown = ada.p2pc("show", alias, "--json").check().json()
    assert (shown["state"], shown["name"], shown["failed"]) == ("failed", "three", 1)
    assert alias in ada.p2pc("jobs").check().out
    assert ada.p2pc("show", f"{alias}/1").check().out


def test_cancel_and_retry(ada: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    sleeps = ["0.1", "50", "51", "52", "53", "54"]
    alias = ada.p2pc("run", "--detach", "--retries", "0", "sleep {}", ":::", *sleeps).lines[0]
    ada.wait_done(1, 20, alias)
    assert ada.p2pc("cancel", alias, "--now", "-y").took_s < 10
    job = ada.wait_over(10, alias)
    assert (job["state"], job["done"], job["cancelled"]) == ("cancelled", 1, 5)
    assert ada.p2pc("wait", alias).code == 3
    alias = ada.p2pc("run", "--detach", "--retries", "0", f"test -e {gate} && echo {{}}", ":::", "1", "2").lines[0]
    assert ada.p2pc("wait", alias).code == 1
    gate.touch()
    ada.p2pc("retry", alias).check()
    assert ada.p2pc("wait", alias).code == 0
    assert sorted(ada.p2pc("result", alias).check().lines) == ["1", "2"]
    shares = ada.job(alias)["by_node"]
    assert sum(share["failed"] for share in shares) == 0 and sum(share["done"] for share in shares) == 2
    assert f"2 results of {alias} given up" in ada.p2pc("retry", "--all", alias).check().err
    assert ada.p2pc("wait", alias).code == 0
    one = ada.p2pc("run", "--detach", "sleep {}", ":::", "0.1", "40", "0.2").lines[0]
    ada.p2pc("cancel", f"{one}/1", "--now", "-y").check()
    job = ada.wait_over(20, one)
    assert (job["done"], job["cancelled"]) == (2, 1)


def test_cancel_of_a_detached_job_lets_running_tasks_finish(ada: Daemon, tmp_path: Path) -> None:
    alias = ada.p2pc("run", "--detach", "sleep 1; echo {} >> ran", ":::", *map(str, range(50)), cwd=tmp_path).lines[0]
    until(lambda: ada.job(alias)["running"] == 4, 20, "four run")
    said = ada.p2pc("cancel", alias, "-y").check().err
    assert re.search(
        rf"[1-4] tasks? of {alias} runs? and finish(es)?; to kill (it|them): p2pc cancel --now {alias}", said
    )
    job = ada.wait_over(20, alias)
    ran = (tmp_path / "ran").read_text().split()
    assert job["done"] == len(ran) == 4, "what ran was finished, and nothing was started after"
    assert job["cancelled"] == 46


def test_prune(ada: Daemon, tmp_path: Path) -> None:
    alias = ada.p2pc("run", "--detach", "head -c 3M /dev/zero #", ":::", "1").lines[0]
    ada.p2pc("wait", alias).check()
    kept = ada.p2pc("prune", "--older-than", "1d", "-y").check()
    assert ada.job(alias)["state"] == "done", kept.err
    dry = ada.p2pc("prune", "--older-than", "0s", "--drop-results", "--dry-run", "--json").check().json()
    assert dry["freed_bytes"] >= 3 * MIB and ada.job(alias)["done"] == 1
    freed = ada.p2pc("prune", "--older-than", "0s", "--drop-results", "-y", "--json").check().json()
    assert freed["freed_bytes"] >= 3 * MIB and freed["jobs"] >= 1
    assert ada.p2pc("show", alias).code == 2


def test_slots_are_bounded_over_the_group(ada: Daemon, tmp_path: Path) -> None:
    """-j 1: never two at once, on whichever node."""
    lock = tmp_path / "lock"
    ada.p2pc(
        "run", "-j", "1", "--retries", "0", f"mkdir {lock} && sleep 0.05 && rmdir {lock} #", ":::", *map(str, range(12))
    ).check()


def test_tiny_tasks_do_not_wait_for_a_slow_one(ada: Daemon, tmp_path: Path) -> None:
    """Slow ones end only when all others have, those too that were handed to a worker process together with them."""
    (tmp_path / "out").mkdir()
    (tmp_path / "mixed.py").write_text(
        "import os, time\n"
        "def work(name):\n"
        f"    while name.startswith('slow') and len(os.listdir({str(tmp_path / 'out')!r})) < 1200:\n"
        "        time.sleep(0.05)\n"
        f"    open({str(tmp_path / 'out')!r} + '/' + name, 'w').close()\n"
    )
    names = [f"slow{number}" if number in (300, 600, 900) else str(number) for number in range(1203)]
    ada.p2pc("run", "--retries", "0", "mixed.py::work", ":::", *names, cwd=tmp_path).check()
