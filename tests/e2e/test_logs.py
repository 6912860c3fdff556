"""What tasks print: while they run, and after their nodes have left."""

from __future__ import annotations

from tests.e2e.mesh import Daemon, Mesh, until

TALKING = """
import os, time

def talk(number):
    print(os.environ["P2PC_NODE"], "begins", flush=True)
    time.sleep(600)
"""


def test_logs_show_what_a_task_prints_while_it_runs(pair: list[Daemon]) -> None:
    """From the node where it runs; every line once, the rest when it has ended."""
    ada, _bob = pair
    text = "echo begun {}; echo trouble {} >&2; sleep 4; echo over {}; printf unfinished"
    running = ada.begin("run", "--on", "bob", text, ":::", "1", "2")
    ada.wait_done(0, 20)
    logs = ada.begin("logs", "-f", "last")
    until(lambda: b"[bob 0] begun 1\n" in logs.out and b"[bob 1] trouble 2\n" in logs.out, 20, "it is shown live")
    assert b"over" not in logs.out and ada.job()["done"] == 0
    one = ada.begin("logs", "-f", "last/1", "--raw", "--stdout")
    until(lambda: one.out == b"begun 2\n", 20, "of one task, and no more")
    done = logs.finish().check()
    lines = done.lines
    for index in (0, 1):
        shown = [line for line in lines if f"[bob {index}]" in line]
        wanted = [f"begun {index + 1}", f"trouble {index + 1}", f"over {index + 1}", "unfinished"]
        assert sorted(shown) == sorted(f"[bob {index}] {word}" for word in wanted), done.out
    assert one.finish().check().raw == b"begun 2\nover 2\nunfinished\n"
    running.finish().check()


def test_functions_are_shown_line_by_line(pair: list[Daemon]) -> None:
    ada, _bob = pair
    script = ada.home / "talk.py"
    script.write_text("import time\ndef talk(word):\n    print('begun', word)\n    time.sleep(3)\n    return word\n")
    running = ada.begin("run", f"{script}::talk", ":::", "x")
    until(lambda: ada.job()["kind"] == "function", 20, "it is submitted")
    logs = ada.begin("logs", "-f", "last/0")
    until(lambda: b"begun x\n" in logs.out, 20, "it is shown live")
    logs.finish().check()
    running.finish().check()


def test_logs_outlive_the_node(mesh: Mesh) -> None:
    """They come with the result and stay with the owner."""
    ada, bob = mesh.start("ada", "bob")
    text = "seq 1 30000; echo trouble >&2 #{}"
    ada.p2pc("run", "--on", "bob", text, ":::", "1").check()
    bob.stop()
    wanted = "".join(f"{number}\n" for number in range(1, 30001))
    assert ada.p2pc("logs", "last/0", "--raw", "--stdout").check().out == wanted
    assert ada.p2pc("logs", "last/0", "--raw", "--stderr").check().out == "trouble\n"
    ada.restart()
    assert ada.p2pc("logs", "last/0", "--raw", "--stdout").check().out == wanted


def test_run_prints_lines_as_they_come(pair: list[Daemon]) -> None:
    """With --lb: from tasks that run at once, with their tags, each line once, errors to standard error."""
    ada, _bob = pair
    text = "echo begun; echo trouble >&2; while ! test -e {}; do sleep 0.05; done; echo over; printf unfinished"
    gates = [str(ada.home / name) for name in ("one", "two")]
    running = ada.begin("run", "--on", "ada", "--lb", "--tag", text, ":::", *gates)
    wanted = [f"{gate}\tbegun\n".encode() for gate in gates]
    until(lambda: all(line in running.out for line in wanted), 20, "both are shown while they run")
    for gate in gates:
        (ada.home / gate).touch()
    done = running.finish().check()
    assert sorted(done.lines) == sorted(f"{gate}\t{word}" for gate in gates for word in ("begun", "over", "unfinished"))
    assert all(done.err.count(f"{gate}\ttrouble\n") == 1 for gate in gates)
    assert ada.p2pc("run", "--lb", "-k", "true", ":::", "1").code == 2


def test_the_log_of_a_node(pair: list[Daemon]) -> None:
    """Of this machine's, by its name; another one's is said to be elsewhere."""
    ada, _bob = pair
    assert "daemon" in ada.p2pc("logs", "--node", "ada", "-n", "500").check().out
    assert len(ada.p2pc("logs", "--node", "self", "-n", "1").check().lines) == 1
    assert "on its own machine" in ada.p2pc("logs", "--node", "bob").check(2).err
    ada.p2pc("logs", "--node", "ada", "--failed").check(2)


SILENT = """
import os, time

def work(kind, gate):
    print(kind, "begins", flush=True)
    while not os.path.exists(gate):
        if kind == "busy":
            sum(range(100000))
        else:
            time.sleep(0.05)
"""


def test_silent_tasks_on_a_node_that_is_killed(mesh: Mesh) -> None:
    """Of two that print nothing, one computes and one does not: both are said.  What they had printed outlives their
    node, though nobody else has heard of it; while they run it is not among what was lost, nor once they ended well."""
    (ada,) = mesh.start("ada")
    (ada.home / "silent.py").write_text(SILENT)
    gate = mesh.directory / "gate"
    ada.p2pc("run", "--detach", "silent.py::work", ":::", "busy", "idle", ":::", str(gate)).check()

    def idle_s() -> list[float] | None:
        found = [ada.p2pc("show", "--json", f"last/{index}").check().json().get("idle_s") for index in (0, 1)]
        return None if None in found else found

    until(lambda: (found := idle_s()) is not None and found[0] < 12.0 and found[1] > 15.0, 60, "one uses CPU, one not")
    assert ada.p2pc("logs", "last", "--json").check().json()["lost"] == []
    ada.kill()
    ada.start()
    lost = ada.p2pc("logs", "last", "--json").check().json()["lost"]
    assert [(one["attempt"], one["stdout"]) for one in lost] == [(1, "busy begins\n"), (1, "idle begins\n")], lost
    shown = ada.p2pc("logs", "last").check().out
    assert "attempt 1  its node was killed" in shown and "  busy begins\n" in shown, shown
    until(lambda: ada.job()["running"] == 2 or None, 20, "they run again")
    gate.touch()
    ada.wait_done(2, 30)
    lost = ada.p2pc("logs", "last", "--json").check().json()["lost"]
    assert [one["attempt"] for one in lost] == [1, 1], "the second one was not lost"


def test_what_a_lost_attempt_had_printed(mesh: Mesh) -> None:
    """Of a task whose node stops, is killed, or ends it for its time, what had come is shown, and said whose it is."""
    ada, bob, cat = mesh.start("ada", "bob", "cat", slots=1)
    ada.p2pc("pause").check()
    cat.p2pc("pause").check()
    script = mesh.directory / "talk.py"
    script.write_text(TALKING)
    command = ada.begin("run", "--timeout", "4s", "--retries", "0", f"{script}::talk", ":::", "1")
    ada.wait_done(0, 20)
    until(lambda: ada.get("/v1/jobs/last/tasks/0/tail")["stdout_b64"], 20, "it runs, and has printed")
    bob.p2pc("node", "stop", "--now").check()
    assert bob.process is not None and bob.process.wait(20) == 0
    bob.process = None
    text = until(lambda: ada.p2pc("logs", "last/0").check().out, 10, "its output is there")
    assert "last/0" not in text and "/0  bob  attempt 1  killed" in text and "  bob begins\n" in text, text
    cat.p2pc("resume").check()
    until(lambda: ada.get("/v1/jobs/last/tasks/0")["node"] == "cat", 20, "it runs again")
    command.finish().check(1)
    lines = ada.p2pc("logs", "last").check().out
    assert lines.index("bob begins") < lines.index("cat begins"), lines
    assert "did not end within 4 s" in lines
    document = ada.p2pc("logs", "last", "--json").check().json()
    assert [(one["attempt"], one["node"], one["stdout"]) for one in document["lost"]] == [(1, "bob", "bob begins\n")]
    assert "bob" not in ada.p2pc("logs", "last", "--raw").check().out
