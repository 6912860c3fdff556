"""The commands against a real node: what a person or a script sees of it."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2pcompute.api.result_target import ResultsTarget, hold

pytestmark = pytest.mark.e2e
LIMIT_S = 30.0


@dataclass(frozen=True)
class Shell:
    """A shell in a directory of its own, with the node's environment."""

    env: dict[str, str]
    cwd: Path

    def start(self, *arguments: str, **more: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "p2pcompute", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            cwd=self.cwd,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "p2pcompute", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=self.env,
            cwd=self.cwd,
            timeout=LIMIT_S,
        )
        return done.returncode, done.stdout, done.stderr

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def job(self) -> dict[str, object]:
        document = json.loads(self("show", "--json")[1])
        assert isinstance(document, dict)
        return document


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("n")
    root = str(Path(__file__).resolve().parents[2])
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("P2PC_")},
        "P2PC_HOME": str(home),
        "P2PC_NODE__INTERFACES": "lo",
        "P2PC_NODE__SLOTS": "2",
        "PYTHONPATH": root,
    }
    for name in ("CI", "FORCE_COLOR", "NO_COLOR"):
        env.pop(name, None)
    command = [sys.executable, "-m", "p2pcompute", "node"]
    subprocess.run([*command, "start"], env=env, check=True, capture_output=True, timeout=LIMIT_S)
    yield env
    subprocess.run([*command, "stop", "--now"], env=env, check=True, capture_output=True, timeout=LIMIT_S)


@pytest.fixture
def p2pc(environment: dict[str, str], tmp_path: Path) -> Shell:
    return Shell(environment, tmp_path)


def test_three_inputs_are_three_lines_on_stdout_and_one_summary_on_stderr(p2pc: Shell) -> None:
    code, out, err = p2pc("run", "-k", "echo {}", ":::", "a", "b", "c")
    assert (code, out) == (0, "a\nb\nc\n")
    assert re.fullmatch(r"done 3/3 in .* · \S+ 3\n", err)


def test_relative_files_are_found_as_under_a_shell(p2pc: Shell) -> None:
    (p2pc.cwd / "x.txt").write_text("here\n")
    assert p2pc("run", "cat", ":::", "x.txt")[:2] == (0, "here\n")
    assert p2pc("run", "pwd; echo >{#}.out", ":::", "1")[1] == f"{p2pc.cwd} 1\n" or (p2pc.cwd / "1.out").exists()


def test_streams_tags_and_exit_codes(p2pc: Shell) -> None:
    code, out, err = p2pc("run", "--tag", "-k", "--retries", "0", "echo o{}; echo e{} >&2; exit {}", ":::", "0", "3")
    assert (code, out) == (1, "0\to0\n3\to3\n") and "0\te0\n" in err and "3\te3\n" in err and "1 failed" in err
    assert p2pc("run", "--exit-code", "gnu", "--retries", "0", "sh", "-c", "exit {}", ":::", "1", "2", "0")[0] == 2
    code, _, err = p2pc("run", "--halt", "now,fail=1", "--retries", "0", "sleep {}; exit 1", ":::", "0", "9", "9", "9")
    assert code == 3 and "stopped early" in err
    code, _, err = p2pc("run", "--timeout", "0.3", "--retries", "0", "sleep", ":::", "9")
    assert code == 1 and "did not end within 0.3 s" in err


def test_inputs_from_a_pipe_go_out_as_they_come(p2pc: Shell) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pcompute", "run", "echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=p2pc.env,
        cwd=p2pc.cwd,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        for word in (b"one\n", b"two\n"):
            process.stdin.write(word)
            process.stdin.flush()
            assert process.stdout.readline() == word, "its result is there before the next input"
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0


def test_no_inputs_are_no_tasks(p2pc: Shell) -> None:
    code, out, err = p2pc("run", "echo", stdin="")
    assert (code, out) == (0, "") and err == "no inputs: there is nothing to run\n"


def test_many_outputs_come_in_order(p2pc: Shell) -> None:
    code, out, _ = p2pc("run", "-k", "--range", "1..300", "echo")
    assert code == 0 and out.split() == [str(number) for number in range(1, 301)]


def test_large_output_is_whole_and_in_its_place(p2pc: Shell) -> None:
    """More than travels with an event."""
    code, out, _ = p2pc("run", "-k", "--tag", "seq {} 1 40000", ":::", "1", "2")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 80000 - 1 and lines[0] == "1\t1" and lines[40000] == "2\t2"


def test_functions_their_modules_values_and_errors(p2pc: Shell) -> None:
    (p2pc.cwd / "near.py").write_text("def twice(x): return x * 2\n")
    (p2pc.cwd / "sim.py").write_text(
        "import near\n"
        "def run(x):\n    if x == '2': raise ValueError('no twos')\n"
        "    print('p' + x)\n    return {'x': near.twice(x)}\n"
        "def pair(a, b): return a + b\n"
        "def item(v): return v\n"
    )
    code, out, err = p2pc("run", "-k", "--retries", "0", "sim.py::run", ":::", "1", "2", "3")
    assert (code, out) == (1, 'p1\n{"x": "11"}\np3\n{"x": "33"}\n')
    assert "ValueError: no twos" in err and err.count("Traceback") == 1
    assert p2pc("run", "sim.py::pair", ":::", "a", ":::", "b")[1] == "ab\n"
    (p2pc.cwd / "v.json").write_text('[{"a": [1, null]}]')
    assert p2pc("run", "--from-json", "v.json", "sim::item")[1] == '{"a": [1, null]}\n'
    assert p2pc("run", "-k", "--batch", "2", "--range", "1..5", "sim.py::item")[1] == "1\n2\n3\n4\n5\n"
    done = subprocess.run(
        [sys.executable, "-m", "p2pcompute", "result", "--format", "pickle"],
        capture_output=True,
        check=True,
        env=p2pc.env,
    )
    assert pickle.loads(done.stdout) == [["1", "2"], ["3", "4"], ["5"]]
    code, _, err = p2pc("run", "sim.py::rum", ":::", "1")
    assert code == 2 and "did you mean" in err


def test_files_go_along_and_come_back(p2pc: Shell) -> None:
    (p2pc.cwd / "in").mkdir()
    for name in ("a", "b"):
        (p2pc.cwd / "in" / f"{name}.txt").write_text(name)
    (p2pc.cwd / "common").write_text("+")
    command = "cat {} common > {.}.out"
    flags = ["--send", "{}", "--fetch", "{.}.out", "--share", "common"]
    code, _, err = p2pc("run", *flags, command, ":::", "in/a.txt", str(p2pc.cwd / "in/b.txt"))
    assert code == 0, err
    assert (p2pc.cwd / "in/a.out").read_text() == "a+"
    assert (p2pc.cwd / str(p2pc.cwd / "in/b.out").lstrip("/")).read_text() == "b+"
    before = len(json.loads(p2pc("jobs", "-a", "--json", "-l", "1000")[1])["items"])
    code, _, err = p2pc("run", "--send", "{}", "cat {}", ":::", "in/a.txt", "gone.txt")
    assert code == 2 and "gone.txt" in err
    assert len(json.loads(p2pc("jobs", "-a", "--json", "-l", "1000")[1])["items"]) == before, "nothing was started"


def test_results_resume_by_content(p2pc: Shell) -> None:
    flags = ["run", "--results", "out", "--joblog", "log", "--retries", "0"]
    code, _, err = p2pc(*flags, "test {} != b && echo {}", ":::", "a", "b", "c")
    assert code == 1 and "results in out/, log" in err
    stdout = p2pc.cwd / "out/tasks/000"
    assert [(stdout / name / "stdout").read_text() for name in ("000000", "000001", "000002")] == ["a\n", "", "c\n"]
    assert (p2pc.cwd / "out/joblog").read_text() == (p2pc.cwd / "log").read_text()
    assert p2pc(*flags, "test {} != b && echo {}", ":::", "a")[0] == 2, "other results are not mixed in"
    code, out, err = p2pc(*flags, "--resume", "test {} != b && echo {}", ":::", "d", "c", "b", "a")
    assert (code, out) == (1, "d\n"), "the exit code is that of the whole job"
    assert "resume: 2 of 4 already done, 1 failed before, 1 new" in err
    code, out, err = p2pc(*flags, "--resume-failed", "test {} != b && echo {}", ":::", "d", "b")
    assert code == 1 and out == "" and "1 of 2 already done, 1 failed before, 0 new" in err
    code, out, err = p2pc(*flags, "--resume", "test {} != b && echo {}", ":::", "d", "c")
    assert (code, out) == (0, "") and "2 of 2 already done" in err
    code, out, err = p2pc("run", "--joblog", "log", "--resume", "test {} != b && echo {}", ":::", "e", "a")
    assert (code, out) == (0, "e\n") and "1 of 2 already done" in err


def test_one_file_of_results(p2pc: Shell) -> None:
    assert p2pc("run", "--results", "o.csv", "echo", ":::", "a", 'b,"c')[0] == 0
    with (p2pc.cwd / "o.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert sorted((row["V1"], row["Stdout"]) for row in rows) == [("a", "a\n"), ('b,"c', 'b,"c\n')]


def test_a_table_has_the_values_of_functions(p2pc: Shell) -> None:
    (p2pc.cwd / "area.py").write_text("def area(radius):\n    return 3.5 * float(radius)\n")
    assert p2pc("run", "--results", "r.csv", "area.py::area", ":::", "1", "2")[0] == 0
    assert p2pc("result", "last", "-o", "areas.csv", "--format", "csv")[0] == 0
    for name in ("r.csv", "areas.csv"):
        with (p2pc.cwd / name).open(newline="") as table:
            assert sorted((row["V1"], row["Value"]) for row in csv.DictReader(table)) == [("1", "3.5"), ("2", "7.0")]
    code, _, err = p2pc("result", "last", "-o", "areas.csv")
    assert code == 2 and "already holds results" in err and "--resume" not in err, "result has no --resume"


@pytest.mark.parametrize("command", ["show", "logs", "explain", "result"])
def test_a_task_that_does_not_exist_is_an_error(p2pc: Shell, command: str) -> None:
    """Broken: the whole job is shown for it, or nothing, as if it had printed nothing."""
    assert p2pc("run", "--output", "none", "true", ":::", "a", "b", "c")[0] == 0
    for tasks, first in (("3", 3), ("99", 99), ("0,7-9", 7)):
        code, out, err = p2pc(command, f"last/{tasks}")
        assert (code, out) == (2, "") and f"has no task {first}" in err and "it has 3" in err
    assert p2pc(command, "last/2-9")[0] == 0


def test_json_is_one_document(p2pc: Shell) -> None:
    code, out, _ = p2pc("run", "--json", "--retries", "0", "echo {}; exit {}", ":::", "0", "1")
    document = json.loads(out)
    assert code == 1 and document["schema"] == "p2pc.job/1"
    assert (document["done"], document["failed"], document["exit_code"]) == (1, 1, 1)
    code, out, _ = p2pc("run", "-k", "--output", "jsonl", "echo", ":::", "a", "b")
    assert [json.loads(line)["stdout"] for line in out.splitlines()] == ["a\n", "b\n"]


def test_a_detached_job_is_waited_for_and_read(p2pc: Shell) -> None:
    code, out, err = p2pc("run", "--detach", "sleep 2; echo {}; exit {}", ":::", "0", "1")
    alias = out.strip()
    assert code == 0 and re.fullmatch(r"[a-z][a-z2-9]{3,}", alias)
    assert p2pc("wait", "--timeout", "0.01", alias)[0] == 7
    code, _, err = p2pc("result", alias)
    assert code == 7 and "error[not-finished]" in err
    assert p2pc("wait", alias)[0] == 1
    assert p2pc("attach", alias)[0] == 1
    code, out, _ = p2pc("result", alias)
    assert (code, out) == (1, "0\n1\n")
    code, out, _ = p2pc("logs", alias, "--failed")
    assert out.startswith(f"{alias}/1  ") and "exit 1" in out
    assert p2pc("logs", "--raw", f"{alias}/0")[1] == "0\n"
    code, out, _ = p2pc("show", f"{alias}/1", "--json")
    assert json.loads(out)["exit_code"] == 1
    assert p2pc("result", alias, "-o", "saved")[0] == 1
    assert (p2pc.cwd / "saved/tasks/000/000000/stdout").read_text() == "0\n"
    for target in (ResultsTarget(dir=p2pc.cwd / "busy"), ResultsTarget(file=p2pc.cwd / "busy.csv")):
        name = "busy" if target.file is None else "busy.csv"
        with hold(target):  # as another `p2pc result -o` of the same name does: they would mix what they write
            code, _, err = p2pc("result", alias, "-o", name)
        assert code == 2 and "error[results-busy]" in err and "is being written by another program" in err
        assert p2pc("result", alias, "-o", name)[0] == 1
        assert "error[results-exist]" in p2pc("result", alias, "-o", name)[2]
    assert f"{alias}  " in p2pc("jobs")[1]
    code, _, err = p2pc("retry", alias)
    assert code == 0 and "1 task of" in err
    assert p2pc("wait", alias)[0] == 1


def test_ctrl_c_lets_running_tasks_finish_and_again_kills_them(p2pc: Shell) -> None:
    flags = ["run", "-j", "1", "--progress", "none", "touch started-{}; sleep 1; echo {}"]
    process = p2pc.start(*flags, ":::", "1", "2", "3")
    p2pc.wait_for((p2pc.cwd / "started-1").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (130, "1\n") and "no new tasks" in err and "Traceback" not in err
    assert re.search(r"to run what was not: p2pc retry \w{4}\n", err)
    assert not (p2pc.cwd / "started-3").exists()
    process = p2pc.start("run", "--progress", "none", "touch go-{}; sleep 60", ":::", "1", "2")
    p2pc.wait_for((p2pc.cwd / "go-1").exists)
    process.send_signal(signal.SIGINT)
    p2pc.wait_for(lambda: p2pc.job()["waiting"] == 0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130 and "Traceback" not in err
    assert p2pc.job()["state"] == "cancelled"


def test_a_closed_terminal_does_not_end_the_job(p2pc: Shell) -> None:
    process = p2pc.start("run", "touch up-{}; sleep 0.5; echo {} >> all", ":::", "1", "2", "3")
    p2pc.wait_for((p2pc.cwd / "up-1").exists)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 129
    assert p2pc("wait")[0] == 0
    assert sorted((p2pc.cwd / "all").read_text().split()) == ["1", "2", "3"]


def test_a_reader_that_has_enough_ends_the_job_quietly(p2pc: Shell) -> None:
    process = p2pc.start("run", "-j", "1", "--progress", "none", "--range", "1..100000", "echo {}; sleep 0.02")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "1\n"
    process.stdout.close()
    assert process.wait(LIMIT_S) == 141
    with process.stderr:
        assert process.stderr.read() == ""
    p2pc.wait_for(lambda: p2pc.job()["state"] == "cancelled")


def test_cancel_asks_first(p2pc: Shell) -> None:
    alias = p2pc("run", "--detach", "sleep", ":::", "60", "61")[1].strip()
    code, _, err = p2pc("cancel", alias)
    assert code == 2 and "-y" in err
    assert p2pc("cancel", "--now", "-y", alias)[0] == 0
    p2pc.wait_for(lambda: p2pc.job()["state"] == "cancelled")
    assert p2pc("wait", alias)[0] == 3


def test_prune_says_what_it_would_free(p2pc: Shell) -> None:
    p2pc("run", "echo", ":::", "a")
    assert p2pc("prune", "--older-than", "0s")[0] == 2, "it asks, and nobody can answer"
    code, out, _ = p2pc("prune", "--older-than", "0s", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["dry_run"] is True
    assert json.loads(p2pc("jobs", "-a", "--json")[1])["items"]


def test_the_demo_finds_pi(p2pc: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "pi.csv"
    code, out, _ = p2pc("demo", "--json", "--tasks", "4", "--plot", str(picture))
    document = json.loads(out)
    assert code == 0 and abs(document["pi"] - 3.14159) < 0.02 and document["done"] == 4
    assert len(picture.read_text().splitlines()) == 5


@pytest.fixture
def alone(environment: dict[str, str], tmp_path: Path) -> Shell:
    """Where no node may stay."""
    home = tmp_path / "h"
    home.mkdir()
    return Shell({**environment, "P2PC_HOME": str(home), "CI": "1"}, tmp_path)


def test_an_unfinished_job_of_a_closed_terminal_is_carried_on_and_not_run_twice(alone: Shell) -> None:
    """A new job beside it would run its tasks again, into the same directory."""
    words = ("run", "--results", "out", "echo {} >>ran; [ -e go ] || sleep 60", ":::", "1", "2", "3", "4", "5")
    first = alone.start(*words)
    alone.wait_for((alone.cwd / "ran").exists)
    first.kill()
    first.communicate()
    alone.wait_for(lambda: not (alone.cwd / "h/node.json").exists())
    code, out, err = alone("jobs", "--json")
    assert code == 0 and [job["state"] for job in json.loads(out)["items"]] in (["waiting"], ["running"])
    (alone.cwd / "go").touch()
    before = (alone.cwd / "ran").read_text()
    assert alone("show", "last")[0] == 0 and (alone.cwd / "ran").read_text() == before, "looking runs nothing"
    code, out, err = alone(*words[:3], "--resume", *words[3:], "6")
    assert code == 0 and "carrying on with it" in err, err
    assert err.index("1 unfinished job of earlier runs goes on") < err.index("carrying on")
    assert err.index("carrying on") < err.index("resume: 5 of 6 already done, 1 new") < err.index("done 1/1")
    done = [line.split("\t")[8] for line in (alone.cwd / "out/joblog").read_text().splitlines()[1:]]
    assert len(done) == len(set(done)) == 6
    assert not (alone.cwd / "out/.p2pc-writer").exists()
    assert len(json.loads(alone("jobs", "--json")[1])["items"]) == 2


def test_jobs_are_shown_where_no_node_stays(alone: Shell) -> None:
    """`p2pc logs` is what the last line of a failed run recommends."""
    assert alone("jobs")[0] == 0, "there are none"
    words = ("--retries", "0", "--output", "none", "echo why{} >&2; exit {}", ":::", "0", "3", "3")
    code, _, err = alone("run", "-q", "--name", "why-not", *words)
    assert code == 1 and err.startswith("done 1/3"), "-q is understood after the command, too"
    code, _, err = alone("run", *words)
    assert (
        code == 1 and re.search(r"exit 3 on 2 tasks \(\w{4}/1,2\)", err) and "\n  why3\n" in err and "why0" not in err
    )
    code, out, _ = alone("logs", "--failed")
    assert code == 0 and "why3" in out and "why0" not in out
    assert alone("show", "why-not")[0] == 0 and alone("result")[0] == 1, "a job is found by its name"
    assert alone("retry", "last")[0] == 5, "what has to run needs a node"


def test_tasks_are_chosen_by_state_input_and_time(p2pc: Shell) -> None:
    """If it broke: among hundreds of tasks nobody finds the ones that failed, or that took long."""
    script = "sleep 0.{}; test {} -lt 40"
    assert p2pc("run", "--name", "chosen", "--retries", "0", script, ":::", "10", "35", "41", "42")[0] == 1
    code, out, err = p2pc("show", "chosen", "--state", "failed")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == ["2", "3"]
    assert err == "2 of 4 tasks\n"
    code, out, err = p2pc("show", "chosen", "--sort", "took", "-l", "1")
    assert len(out.splitlines()) == 2 and err == "4 of 4 tasks, 1 of them here\n"
    items = json.loads(p2pc("show", "chosen", "--longer", "300ms", "--state", "done", "--json")[1])["items"]
    assert [task["inputs"] for task in items] == [["35"]]
    (task,) = json.loads(p2pc("show", "chosen", "--input", "35", "--json")[1])["items"]
    status = json.loads(p2pc("status", "--json")[1])["node"]
    assert task["node_id"] == status["id"], "names are not unique"
    assert len(json.loads(p2pc("show", "chosen", "--on", status["short_id"], "--json")[1])["items"]) == 4
    code, out, err = p2pc("show", "chosen", "--on", "nobody")
    assert out == "no such tasks (none ran on nobody)\n" and err == "0 of 4 tasks\n"
    out = p2pc("logs", "chosen", "--input", "41")[1]
    assert "/2 " in out and "/3 " not in out
    code, out, err = p2pc("result", "chosen", "--state", "done", "--format", "csv")
    assert code == 1 and [row["V1"] for row in csv.DictReader(out.splitlines())] == ["10", "35"]
    assert "no such tasks" in p2pc("logs", "chosen", "--state", "waiting")[2]
    assert p2pc("result", "chosen", "--state", "done", "--bundle", "b")[0] == 2


def test_names_are_completed(p2pc: Shell) -> None:
    """If it broke: nobody knows the ids, settings and scenarios by heart."""

    def complete(line: str) -> list[str]:
        env = p2pc.env | {"_P2PC_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run([sys.executable, "-m", "p2pcompute"], env=env, capture_output=True, text=True, check=True)
        assert not done.stderr
        return [found.removeprefix("plain,") for found in done.stdout.split()]

    name = json.loads(p2pc("status", "--json")[1])["node"]["name"]
    for line in ("p2pc peers ", "p2pc run --on ", "p2pc trust show ", "p2pc show --on "):
        assert complete(line) == [name], line
    assert complete("p2pc group use ") == complete("p2pc -g ") == ["home"]
    assert complete("p2pc config get node.na") == ["node.name"]
    assert "smoke" in complete("p2pc sim run ") and complete("p2pc sim show smo") == ["smoke"]
