"""What is printed and shown: order within bounded memory, tags, equal errors once, progress, tables."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.cli import job_output, output, printing
from p2pcompute.cli.follow import batches_of, job_exit_code
from p2pcompute.cli.printing import Contents, Errors, Failures, Printer, format_value
from p2pcompute.cli.progress import Bar, JsonLines, Plain, Progress, summary_text


class Kept(Contents):
    """The node's store, as a dict."""

    is_trusted = True

    def __init__(self, tasks: dict[int, dict[str, Any]]) -> None:
        self.tasks = tasks
        self.fetched: list[int] = []

    def task(self, index: int) -> dict[str, Any]:
        self.fetched.append(index)
        return self.tasks[index]


def task(index: int, stdout: bytes = b"", **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "state": "done",
        "inputs": [f"in{index}"],
        "node": "nova",
        "attempts": 1,
        "stdout_b64": base64.b64encode(stdout).decode(),
        "stdout_bytes": len(stdout),
        "stderr_b64": "",
        "stderr_bytes": 0,
        **more,
    }


def printer(contents: Contents, **more: Any) -> tuple[Printer, io.BytesIO, io.BytesIO]:
    out, err = io.BytesIO(), io.BytesIO()
    settings: dict[str, Any] = {"mode": "text", "kind": "command", "keep_order": False, "tag": False, **more}
    return Printer(contents, out=out, err=err, **settings), out, err


@given(st.permutations(range(12)), st.integers(0, 200))
def test_input_order_is_kept_within_bounded_memory(order: list[int], limit: int) -> None:
    """Output that had to be let go comes back from the node, at its turn and once."""
    tasks = {index: task(index, b"%d\n" % index * 5) for index in range(12)}
    contents = Kept(tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printing, "HELD_BYTES_MAX", limit)
        prints, out, _ = printer(contents, keep_order=True)
        for index in order:
            prints.take(tasks[index])
            assert prints._held_bytes <= limit
            prints.take(tasks[index])
        prints.finish()
    assert out.getvalue() == b"".join(b"%d\n" % index * 5 for index in range(12))


def test_tasks_that_will_not_come_do_not_hold_up_the_others_for_ever() -> None:
    prints, out, _ = printer(Kept({}), keep_order=True)
    prints.take(task(2, b"2\n"))
    prints.take(task(0, b"0\n"))
    prints.take(task(1, b"never\n", state="cancelled"))
    prints.take(task(5, b"5\n"))
    assert out.getvalue() == b"0\n2\n"
    prints.finish()
    assert out.getvalue() == b"0\n2\n5\n"


def test_each_task_is_printed_once_however_often_it_is_told() -> None:
    prints, out, _ = printer(Kept({}))
    for _ in range(3):
        prints.take(task(0, b"x\n"))
    prints.take(task(1, b"y\n", state="running"))
    assert out.getvalue() == b"x\n"


def test_tags_stand_before_every_line_of_both_streams() -> None:
    prints, out, err = printer(Kept({}), tag=True)
    prints.take(task(0, b"a\nb", stderr_b64=base64.b64encode(b"e\n").decode(), inputs=["x y", "z"]))
    assert out.getvalue() == b"x y z\ta\nx y z\tb" and err.getvalue() == b"x y z\te\n"


def test_function_values_are_lines() -> None:
    values = {"text": "text", '{"a": [1]}': {"a": [1]}, "1.5": 1.5, "{1}": {1}}
    prints, out, _ = printer(Kept({}), kind="function", tag=True)
    for index, value in enumerate([*values.values(), None]):
        prints.take(task(index, value_b64=base64.b64encode(pickle.dumps(value)).decode(), value_bytes=9))
    assert out.getvalue().decode() == "".join(f"in{index}\t{text}\n" for index, text in enumerate(values))
    assert format_value(None) == ""


def test_a_value_that_cannot_be_shown_is_said_to_be_one() -> None:
    prints, out, _ = printer(Kept({}), kind="function")
    prints.take(task(0, value_b64=base64.b64encode(b"cno_such_module\nthing\n.").decode(), value_bytes=9))
    assert b"cannot be shown here" in out.getvalue()


def test_json_lines_hold_what_was_printed() -> None:
    prints, out, _ = printer(Kept({}), mode="jsonl", kind="function")
    prints.take(task(0, b"\xff", value_b64=base64.b64encode(pickle.dumps([1])).decode(), value_bytes=9, seq=4))
    record = json.loads(out.getvalue())
    assert record["stdout_b64"] == "/w==" and record["stderr"] == "" and record["value"] == [1]
    assert record["schema"] == "p2pc.task/1" and "seq" not in record


def test_equal_errors_are_told_once_and_counted() -> None:
    said: list[str] = []
    errors = Errors("j7k3", "function", said.append)
    for index in range(4):
        errors.take(task(index, state="failed", status="failed", error="Boom\n  at line 1", node=f"n{index % 2}"))
    errors.take(task(9, state="failed", status="timeout", error="too slow"))
    errors.close()
    assert said == [
        "j7k3/0 (in0) failed on n0:\n  Boom\n    at line 1",
        "j7k3/9 (in9) failed on nova: too slow",
        "the same error as j7k3/0 on 3 more on 2 nodes",
    ]


def test_a_command_that_says_itself_why_it_failed_is_not_commented() -> None:
    said: list[str] = []
    errors = Errors("j7k3", "command", said.append)
    errors.take(task(0, state="failed", status="failed", exit_code=3, error="the command ended with exit code 3"))
    assert said == []
    error = "the command ended with exit code 85 (it has saved its state), but there is no file in P2PC_CHECKPOINT"
    errors.take(task(2, state="failed", status="failed", exit_code=85, error=error))
    assert said == [f"j7k3/2 (in2) failed on nova: {error}"]
    said.clear()
    errors.take(task(1, state="failed", status="failed", exit_code=127, error="the command 'x' was not found"))
    assert len(said) == 1


def test_hostile_text_never_reaches_the_terminal_raw() -> None:
    """Names of nodes and inputs come from elsewhere."""
    assert output.one_line("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert output.one_line("日本語テキスト", 7) == "日本語…"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (output.count_text(12345678), "12 345 678"),
        (output.bytes_text(999), "999 B"),
        (output.bytes_text(1.3e9), "1.3 GB"),
        (output.bytes_text(999_960), "1.0 MB"),
        (output.duration_text(0.0123), "12 ms"),
        (output.duration_text(4.13), "4.1 s"),
        (output.duration_text(59.97), "1 min 0 s"),
        (output.duration_text(7500), "2 h 5 min"),
        (output.clock_text(17), "0:00:17"),
        (output.clock_text(float("nan")), "–"),
        (output.rate_text(18.13), "18.1/s"),
        (output.rate_text(0.05), "3.0/min"),
        (output.rate_text(None), "–"),
        (output.plural(1, "task"), "1 task"),
        (output.time_text("nonsense"), "–"),
    ],
)
def test_quantities_for_people(value: str, text: str) -> None:
    assert value == text


def test_tables_leave_out_empty_columns_and_align_wide_text() -> None:
    text = output.table(["A", "B", "N"], [["日本", "", "1"], ["x", "", "10"]], right=["N"], indent=0)
    assert text == "A      N\n日本   1\nx     10"
    assert output.table(["A"], []) == ""


@pytest.mark.parametrize(
    ("environ", "is_colored"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, False),
    ],
)
def test_colour_rules(environ: dict[str, str], is_colored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert output.has_color(io.StringIO(), "auto") is is_colored
    assert output.has_color(io.StringIO(), "always") and not output.has_color(io.StringIO(), "never")


def progress(**data: Any) -> Progress:
    state: dict[str, Any] = {"total": 100, "by_node": []}
    state |= dict.fromkeys(("done", "failed", "running", "waiting", "cancelled", "retried"), 0)
    shown = Progress("thumbs j7k3", this_node="AAAA-BBBB", data={**state, **data})
    shown.started -= 60
    return shown


def test_plain_progress_comes_every_tenth_or_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("p2pcompute.cli.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    plain = Plain(stream)
    for done in range(0, 101, 1):
        now[0] += 2.0
        plain.update(progress(done=done))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10 and lines[0].startswith("thumbs j7k3  10/100  10 %")
    now[0] += 31
    plain.update(progress(done=100))
    assert len(stream.getvalue().splitlines()) == 10, "nothing has changed"
    now[0] += 31
    plain.update(progress(done=100, retried=1))
    assert len(stream.getvalue().splitlines()) == 11


def test_json_progress_is_one_document_a_line() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    shown = progress(done=3)
    lines.update(shown)
    lines.update(shown)
    lines.close(progress(done=4))
    documents = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [document["done"] for document in documents] == [3, 4]
    assert documents[0]["schema"] == "p2pc.progress/1" and documents[0]["eta_s"] is None


def test_rates_are_of_the_last_ten_seconds_and_lead_to_the_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("p2pcompute.cli.progress.time.monotonic", lambda: now[0])
    shown = Progress("x", started=0.0)
    for second in range(31):
        now[0] = float(second)
        done = second * 2 if second < 15 else 30 + (second - 15) * 4
        shown.take({"total": 110, "done": done, "by_node": [{"node": "nova", "short_id": "N", "done": done}]})
    assert shown.rate == pytest.approx(4.0) and shown.rate_of(shown.nodes[0]) == pytest.approx(4.0)
    assert shown.eta_s == pytest.approx(5.0)
    now[0] += 30
    assert shown.rate < 1.5, "without news the rate falls"


def test_the_bar_fits_eighty_columns_and_erases_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    bar = Bar(stream)
    nodes = [
        {
            "node": f"node{n}",
            "short_id": "AAAA-BBBB" if n == 3 else "x",
            "running": n,
            "done": n * 10,
            "failed": 0,
            "rate": 1.0,
            "note": "paused: on battery since 14:02 " * 4,
        }
        for n in range(12)
    ]
    shown = progress(done=42, failed=3, running=5, by_node=nodes)
    bar.update(shown)
    text = stream.getvalue()
    drawn = [line for line in text.split("\n") if line]
    plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in drawn]
    assert "42/100" in text and "45 %" in text and "  +4 more" in plain
    assert all(len(line) <= 80 for line in plain[1:])
    assert len([line for line in plain if line.startswith("  node")]) == 8
    with bar.aside():
        pass
    assert stream.getvalue().endswith(f"\r\x1b[{len(drawn)}A\x1b[J")


def test_the_summary_names_what_matters() -> None:
    job = {
        "total": 2000,
        "done": 1997,
        "failed": 3,
        "retried": 5,
        "halted": None,
        "by_node": [{"node": "nova", "done": 912}, {"node": "atlas", "done": 1085}, {"node": "pi", "done": 0}],
    }
    assert summary_text(job, 49.3, where=["out/"]) == (
        "done 1 997/2 000 in 49.3 s · atlas 1 085, nova 912 · 3 failed · 5 retried · results in out/"
    )
    twins = [{"node": "vm", "short_id": "CHAF-XYWU", "done": 3}, {"node": "vm", "short_id": "NOUR-W3TY", "done": 2}]
    resumed = summary_text({"total": 2, "done": 2}, 1.0, done_before=3, failed_before=1)
    assert resumed == "done 2/2 in 1.0 s · 3 done before · 1 failed before", "what made the exit code 1 is there"
    assert summary_text({"total": 5, "done": 5, "by_node": twins}, 1.0) == "done 5/5 in 1.0 s · vm CHAF 3, vm NOUR 2"


@pytest.mark.parametrize(
    ("job", "style", "before", "code"),
    [
        ({"exit_code": 0}, "p2pc", 0, 0),
        ({"exit_code": 1, "failed": 2}, "p2pc", 0, 1),
        ({"exit_code": 0}, "p2pc", 2, 1),
        ({"exit_code": 3, "failed": 1}, "p2pc", 0, 3),
        ({"exit_code": 1, "failed": 7}, "gnu", 1, 8),
        ({"exit_code": 1, "failed": 500}, "gnu", 0, 101),
        ({"exit_code": 4}, "gnu", 0, 255),
        ({"exit_code": None, "state": "cancelled"}, "p2pc", 0, 3),
    ],
)
def test_exit_codes_of_jobs(job: dict[str, Any], style: str, before: int, code: int) -> None:
    assert job_exit_code(job, failed_before=before, style=style) == code


def test_batches_hold_what_is_there_and_errors_come_after_the_lines_before_them() -> None:
    def lines() -> Any:
        for number in range(10):
            yield {"argv": [str(number)]}
        raise ValueError("bad input")

    taken: list[dict[str, Any]] = []
    with pytest.raises(ValueError, match="bad input"):
        for batch in batches_of(lines(), count_max=4, bytes_max=10**6, is_stopped=lambda: False):
            assert 1 <= len(batch) <= 4
            taken += batch
    assert [line["argv"] for line in taken] == [[str(number)] for number in range(10)]


def test_failures_are_grouped_by_what_the_command_ended_with() -> None:
    """The end of a run says why, also where no node stays to be asked."""

    class Nothing:
        def lines(self, task: Any, name: str) -> Iterator[bytes]:
            yield from (b"%d\n" % at for at in range(9))

    failures = Failures(cast(Any, Nothing()), is_stderr_shown=False, is_error_shown=True)
    for index in range(8):
        failures.take({"state": "failed", "status": "failed", "exit_code": 3, "index": index, "node": "nova"})
    failures.take({"state": "failed", "status": "timeout", "index": 8, "error": "told already"})
    failures.take({"state": "done", "status": "ok", "exit_code": 0, "index": 9})
    assert failures.lines("ksun") == [
        "exit 3 on 8 tasks (ksun/0,1,2,3,4 …), run by nova",
        *(f"  {at}" for at in range(4, 9)),
    ]


def test_what_was_cancelled_is_no_progress() -> None:
    progress = Progress("job", data={"total": 10, "done": 2, "failed": 0, "cancelled": 8})
    assert (progress.percent(), progress.ended) == ("20 %", 10)


def test_many_different_failures_are_not_all_held(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A million tasks that each fail in their own way would fill the memory before a line is shown."""
    monkeypatch.setattr(job_output, "FAILURES_HELD_MAX", 2)
    tasks = {index: task(index, b"%d\n" % (index % 3), state="failed") for index in range(6)}
    shown = job_output._LogPrinter({"alias": "j7k3"}, Kept(tasks), ("stdout",), tail=None, timestamps=False, raw=False)
    for one in tasks.values():
        shown.take(one, merge=True)
    shown.finish()
    said = [line.split(b"  nova")[0].strip() for line in capfdbinary.readouterr().out.splitlines()]
    assert said[:4] == [b"j7k3/2", b"2", b"j7k3/5", b"2"], "there was no room to hold it"
    assert said[4:7] == [b"j7k3/0", b"0", b"(the same error on 1 more task: 3)"]
