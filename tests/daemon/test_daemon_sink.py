"""Results on disk: written by the node, complete, once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemon_fake_node import FakeNode, ok
from daemon_kit import running, until

from p2pcompute.api.result_target import ResultsTarget, hold
from p2pcompute.api.results import ResultsWriter
from p2pcompute.errors import UsageError
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


async def test_results_are_there_before_the_end_event(tmp_path: Path) -> None:
    """`p2pc run --results out` exits on the end event: everything must be on disk by then."""
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as daemon:
        out = tmp_path / "out"
        job_id = await daemon.new_job(3, seal=True, results={"dir": str(out), "joblog": str(tmp_path / "log")})
        ref = await node.blobs.put(b"png" * 300_000)
        node.end(job_id, 0, ok(b"zero\n", files=(OutputFile("a.png", ref.digest, ref.size, 0o644),)))
        node.end(job_id, 1, Outcome(status=OutcomeStatus.FAILED, exit_code=4, stderr=b"bad"))
        node.end(job_id, 2, None, state="cancelled")
        events = await daemon.call(lambda: list(daemon.connection.stream_events("/v1/jobs/last/events")))
        assert events[-1][0] == "end" and events[-1][1]["results"]["state"] == "written"
        assert (out / "tasks/000/000000/stdout").read_bytes() == b"zero\n"
        assert (out / "tasks/000/000000/files/a.png").read_bytes() == b"png" * 300_000
        assert [line.split("\t")[6] for line in lines(tmp_path / "log")[1:]] == ["0", "4"]
        assert json.loads((out / "summary.json").read_text())["failed"] == 1
        assert not list((tmp_path / "sinks").iterdir()), "a finished sink leaves no marker"
    await node.close()


async def test_results_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    """A directory with other results: said before the job exists, not after hours of work."""
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as daemon:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/joblog").write_text("mine")
        for results in (
            {"dir": str(tmp_path / "out")},
            {"dir": "relative"},
            {"file": str(tmp_path / "x.pdf")},
            {"dir": "/proc/x"},  # root has permission there, and yet no file can be made
        ):
            with pytest.raises(UsageError):
                await daemon.new_job(results=results)
        assert not node.by_id
    await node.close()


async def test_restart_in_the_middle_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """kill -9 between two results, more results while nobody wrote, a retry afterwards."""
    node = FakeNode(tmp_path)
    out = tmp_path / "out.jsonl"
    async with running(node, tmp_path) as daemon:
        job_id = await daemon.new_job(4, seal=True, results={"file": str(out)})
        node.end(job_id, 0, ok(b"0"))
        node.end(job_id, 1, Outcome(status=OutcomeStatus.FAILED, exit_code=1))
        await until(lambda: out.exists() and len(lines(out)) == 2)
    with out.open("a") as torn:
        torn.write('{"job":"torn')
    node.end(job_id, 2, ok(b"2"))
    async with running(node, tmp_path) as daemon:
        await until(lambda: len(lines(out)) == 3)
        node.end(job_id, 3, ok(b"3"))
        await until(lambda: not list((tmp_path / "sinks").iterdir()))
        assert [json.loads(line)["index"] for line in lines(out)] == [0, 1, 2, 3]
        await daemon.call(lambda: daemon.connection.request("POST", "/v1/jobs/last/retry", {}))
        node.end(job_id, 1, ok(b"now"))
        await until(lambda: len(lines(out)) == 5)
        again = json.loads(lines(out)[-1])
        assert (again["index"], again["generation"], again["state"]) == (1, 1, "done")
    await node.close()


async def test_finished_jobs_get_no_sink_at_the_next_start(tmp_path: Path) -> None:
    """A start must not read thirty days of results again."""
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as daemon:
        job_id = await daemon.new_job(1, seal=True, results={"joblog": str(tmp_path / "log")})
        node.end(job_id, 0, ok())
        await until(lambda: (tmp_path / "log").exists() and not list((tmp_path / "sinks").iterdir()))
    node.finished_calls.clear()
    (tmp_path / "sinks" / ("ab" * 32)).touch()
    async with running(node, tmp_path):
        assert not node.finished_calls
        assert not list((tmp_path / "sinks").iterdir()), "a marker of a job that is gone goes too"
    await node.close()


async def test_what_was_written_long_ago_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that runs for months has hundreds of thousands of jobs; one whose results are open is never forgotten."""
    monkeypatch.setattr("p2pcompute.daemon.sink.SINKS_REMEMBERED", 2)
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as daemon:

        def state(job_id: bytes) -> str | None:
            return daemon.connection.request("GET", f"/v1/jobs/{job_id.hex()}")["results"].get("state")

        job_ids = [
            await daemon.new_job(1, seal=True, results={"joblog": str(tmp_path / f"log{number}")})
            for number in range(2)
        ]
        node.end(job_ids[1], 0, ok())
        await until(lambda: len(list((tmp_path / "sinks").iterdir())) == 1)
        assert [await daemon.call(lambda one=one: state(one)) for one in job_ids] == ["writing", "written"]
        job_ids.append(await daemon.new_job(1, seal=True, results={"joblog": str(tmp_path / "log2")}))
        found = [await daemon.call(lambda one=one: state(one)) for one in job_ids]
        assert found == ["writing", None, "writing"]
    await node.close()


async def test_disk_that_refuses_stops_the_sink_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end event comes with the error, the log says it once; when there is room again, everything is written."""
    caplog.set_level("WARNING")
    monkeypatch.setattr("p2pcompute.daemon.sink.SINK_RETRY_S", 0.05)
    node = FakeNode(tmp_path)
    out = tmp_path / "out"
    async with running(node, tmp_path) as daemon:
        job_id = await daemon.new_job(2, seal=True, results={"dir": str(out)})
        await until((out / "tasks").is_dir)
        (out / "tasks").rename(out / "moved")
        (out / "tasks").write_text("in the way")
        node.end(job_id, 0, ok(b"0"))
        node.end(job_id, 1, ok(b"1"))
        events = await daemon.call(lambda: list(daemon.connection.stream_events("/v1/jobs/last/events")))
        results = events[-1][1]["results"]
        assert results["state"] == "failing" and results["error"]["code"] == "results-disk"
        assert f"p2pc result {events[-1][1]['alias']} -o DIR" in results["error"]["fix"]
        await asyncio.sleep(0.3)  # several tries
        assert len([one for one in caplog.records if one.levelname == "WARNING" and "results of" in one.message]) == 1
        (out / "tasks").unlink()
        await until(lambda: (out / "summary.json").exists() and not list((tmp_path / "sinks").iterdir()))
        assert (out / "tasks/000/000001/stdout").read_bytes() == b"1"
        document = await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last"))
        assert document["results"]["state"] == "written" and "error" not in document["results"]
    await node.close()


async def test_an_error_ends_when_a_later_try_has_worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a long job says until its end that its results cannot be written, though all of them are."""
    monkeypatch.setattr("p2pcompute.daemon.sink.SINK_RETRY_S", 0.02)
    node = FakeNode(tmp_path)
    out = tmp_path / "out"
    async with running(node, tmp_path) as daemon:

        async def results() -> dict[str, Any]:
            found: dict[str, Any] = await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last"))
            return found["results"]

        job_id = await daemon.new_job(2, seal=True, results={"dir": str(out)})
        await until((out / "tasks").is_dir)
        (out / "tasks").rename(out / "moved")
        (out / "tasks").write_text("in the way")
        node.end(job_id, 0, ok(b"0"))
        async with asyncio.timeout(10):
            while (await results())["state"] != "failing":
                await asyncio.sleep(0.01)
            (out / "tasks").unlink()
            while (await results())["state"] != "writing":
                await asyncio.sleep(0.01)
        assert "error" not in await results() and (out / "tasks/000/000000").is_dir()
        node.end(job_id, 1, ok(b"1"))
        await until(lambda: not list((tmp_path / "sinks").iterdir()))
    await node.close()


async def test_a_place_that_refuses_is_given_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever write there again, and its job is over."""
    monkeypatch.setattr("p2pcompute.daemon.sink.SINK_RETRY_S", 0.02)
    node = FakeNode(tmp_path)
    out, log = tmp_path / "out", tmp_path / "log"
    async with running(node, tmp_path) as daemon:
        job_id = await daemon.new_job(1, seal=True, results={"dir": str(out), "joblog": str(log)})
        await until((out / "tasks").is_dir)
        (out / "tasks").rename(out / "moved")
        (out / "tasks").write_text("in the way")
        node.end(job_id, 0, ok(b"0"))
        document = await daemon.call(lambda: list(daemon.connection.stream_events("/v1/jobs/last/events")))
        assert document[-1][1]["results"]["state"] == "failing"
        (out / "tasks").unlink()
        (out / "tasks").mkdir()
        (out / "tasks/000").write_text("in the way")
        await daemon.new_job(1, results={"joblog": str(log)})  # another one may write there now
        document = await daemon.call(lambda: daemon.connection.request("GET", f"/v1/jobs/{job_id.hex()}"))
        assert document["results"]["state"] == "failed" and document["results"]["error"]
        assert not (out / ".p2pc-writer").exists()
        monkeypatch.setattr("p2pcompute.daemon.sink.SINK_TRIES_S", 0.0)
        other = tmp_path / "other"
        job_id = await daemon.new_job(1, seal=True, results={"dir": str(other)})
        await until((other / "tasks").is_dir)
        (other / "tasks/000").write_text("in the way")
        node.end(job_id, 0, ok(b"0"))
        await until(lambda: not (other / ".p2pc-writer").exists())
    await node.close()


async def test_a_fifo_holds_up_nobody(tmp_path: Path) -> None:
    """Results of all jobs are written by one thread."""
    node = FakeNode(tmp_path)
    fifo = tmp_path / "fifo"
    async with running(node, tmp_path) as daemon:
        os.mkfifo(fifo)
        with pytest.raises(UsageError, match="a pipe"):
            await daemon.new_job(1, results={"joblog": str(fifo)})
        second = await daemon.new_job(1, seal=True, results={"joblog": str(tmp_path / "log")})
        node.end(second, 0, ok(b"0"))
        await until(lambda: (tmp_path / "log").exists() and len(lines(tmp_path / "log")) == 2)
    await node.close()


async def test_a_moment_that_no_calendar_has_hides_no_result(tmp_path: Path) -> None:
    """Another node tells when it began; the results of the others have to be readable too."""
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as daemon:
        job_id = await daemon.new_job(1, seal=True, results={"joblog": str(tmp_path / "log")})
        node.end(job_id, 0, replace(ok(b"zero\n"), started_wall=9.9e14, runtime_s=9e14))
        events = await daemon.call(lambda: list(daemon.connection.stream_events("/v1/jobs/last/events")))
        assert events[-1][1]["results"]["state"] == "written"
        assert len(lines(tmp_path / "log")) == 2
    await node.close()


async def test_no_second_job_writes_where_an_unfinished_one_does(tmp_path: Path) -> None:
    """After a restart as well: the first job carries on and the second would run its tasks again."""
    node = FakeNode(tmp_path)
    results = {"dir": str(tmp_path / "out"), "resume": True}
    async with running(node, tmp_path) as daemon:
        job_id = await daemon.new_job(1, seal=True, results=results)
        await until((tmp_path / "out/.p2pc-writer").exists)
    async with running(node, tmp_path) as daemon:
        with pytest.raises(UsageError, match="unfinished job"):
            await daemon.new_job(results=results)
        node.end(job_id, 0, ok())
        await until((tmp_path / "out/summary.json").exists)
        await until(lambda: not list((tmp_path / "sinks").iterdir()))
        assert not (tmp_path / "out/.p2pc-writer").exists()
        await daemon.new_job(results=results)
    await node.close()


async def test_numbers_are_given_when_the_place_is_taken(tmp_path: Path) -> None:
    """Broken: whoever looked for free numbers before another job had written there writes over its results."""
    node = FakeNode(tmp_path)
    out = tmp_path / "out"
    results = {"dir": str(out), "first": 0, "resume": True}
    async with running(node, tmp_path) as daemon:
        for index, text in enumerate((b"one", b"two")):
            job_id = await daemon.new_job(1, seal=True, results=results)
            node.end(job_id, 0, ok(text))
            await until(lambda: not list((tmp_path / "sinks").iterdir()))
            assert (await daemon.call(lambda: daemon.connection.request("GET", "/v1/jobs/last")))["results"][
                "first"
            ] == index
    assert [(out / f"tasks/000/00000{number}/stdout").read_bytes() for number in (0, 1)] == [b"one", b"two"]
    await node.close()


async def test_where_a_program_writes_no_job_does(tmp_path: Path) -> None:
    """Broken: a job writes into the folder of a program that runs, or a submission that failed keeps the folder."""
    node = FakeNode(tmp_path)
    target = ResultsTarget(dir=tmp_path / "out", resume=True)
    async with running(node, tmp_path) as daemon:
        with hold(target), pytest.raises(UsageError, match="another program"):
            await daemon.new_job(1, results=target.to_json())
        node.submit_error = UsageError("too many jobs", code="jobs-full")
        with pytest.raises(UsageError, match="too many jobs"):
            await daemon.new_job(1, results=target.to_json())
        node.submit_error = None
        hold(target).release()
        job_id = await daemon.new_job(1, seal=True, results=target.to_json())
        with pytest.raises(UsageError, match="unfinished job"):
            hold(target)
        node.end(job_id, 0, ok(b"text"))
        await until(lambda: not list((tmp_path / "sinks").iterdir()))
    assert not (tmp_path / "out" / ".p2pc-writer").exists()
    await node.close()


async def test_a_writer_that_is_made_while_the_daemon_ends_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: its files stay open, and what it had not flushed is lost."""
    begun, go_on, made = threading.Event(), threading.Event(), []

    def create(*args: Any, **more: Any) -> ResultsWriter:
        begun.set()
        go_on.wait(10)
        made.append(real(*args, **more))
        return made[-1]

    real = ResultsWriter.create
    monkeypatch.setattr(ResultsWriter, "create", create)
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as daemon:
        await daemon.new_job(1, results={"dir": str(tmp_path / "out")})
        await until(begun.is_set)
        asyncio.get_running_loop().call_later(0.1, go_on.set)
    assert made[0]._truth is None, "it is closed"
    await node.close()
