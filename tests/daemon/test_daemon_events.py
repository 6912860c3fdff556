"""Following a job: order, resumption, slow readers, the end."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from daemon_fake_node import FakeNode, ok
from daemon_kit import Daemon, running, until

from p2pcompute.daemon.events import Backlog
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import EVENT_BACKLOG_BYTES_MAX, EVENT_BACKLOG_MAX, INLINE_BYTES_MAX, PROGRESS_S_MIN
from p2pcompute.node.facade import TaskView

Event = tuple[str, Any]


class Follower:
    """Reads events in a thread, as `p2pc` does."""

    def __init__(self, daemon: Daemon, query: str = "", until_event: str = "end") -> None:
        self.events: list[Event] = []
        self._task = asyncio.create_task(asyncio.to_thread(self._read, daemon, query, until_event))

    def _read(self, daemon: Daemon, query: str, until_event: str) -> None:
        for event in daemon.connection.stream_events(f"/v1/jobs/last/events{query}"):
            self.events.append(event)
            if event[0] == until_event:
                return

    async def done(self) -> list[Event]:
        await asyncio.wait_for(self._task, 15)
        return self.events

    @property
    def seqs(self) -> list[int]:
        return [data["seq"] for name, data in self.events if name == "task"]


async def test_follow_from_the_start_to_the_end(daemon: Daemon) -> None:
    """Every task end once, in order, with its output; then the job with its exit code, and the stream ends."""
    job_id = await daemon.new_job(3, seal=True)
    daemon.node.end(job_id, 2, ok(b"two\n"))
    follower = Follower(daemon)
    await until(lambda: follower.seqs == [1])
    daemon.node.end(job_id, 0, ok(b"\xff\x00", stderr=b"warn"))
    daemon.node.end(job_id, 1, Outcome(status=OutcomeStatus.FAILED, exit_code=2, error="no"))
    events = await follower.done()
    assert follower.seqs == [1, 2, 3]
    tasks = [data for name, data in events if name == "task"]
    assert [task["index"] for task in tasks] == [2, 0, 1]
    assert base64.b64decode(tasks[1]["stdout_b64"]) == b"\xff\x00"
    assert base64.b64decode(tasks[1]["stderr_b64"]) == b"warn"
    assert tasks[2]["state"] == "failed" and tasks[2]["error"] == "no"
    assert events[-1][0] == "end" and events[-1][1]["state"] == "failed" and events[-1][1]["exit_code"] == 1
    progress = [data for name, data in events if name == "progress"]
    assert progress[-1]["done"] == 2 and progress[-1]["failed"] == 1
    assert not daemon.node.by_id[job_id].listeners, "nobody follows, nothing is watched"


async def test_resume_after_a_position(daemon: Daemon) -> None:
    """A command that reconnects gets what it has not seen, and nothing twice."""
    job_id = await daemon.new_job(5, seal=True)
    for index in range(5):
        daemon.node.end(job_id, index, ok())
    follower = Follower(daemon, "?after=3")
    await follower.done()
    assert follower.seqs == [4, 5]


async def test_position_from_another_life_is_resynced(daemon: Daemon) -> None:
    """After the loss of a store the numbers begin anew; silence would hang the follower for ever."""
    job_id = await daemon.new_job(1, seal=True)
    daemon.node.end(job_id, 0, ok())
    follower = Follower(daemon, "?after=99")
    events = await follower.done()
    assert events[0] == ("resync", {"after": 0}) and follower.seqs == [1]


async def test_long_output_is_left_to_be_fetched(daemon: Daemon) -> None:
    """An event stays small whatever a task prints."""
    job_id = await daemon.new_job(1, seal=True)
    ref = await daemon.node.blobs.put(b"x" * (INLINE_BYTES_MAX + 1))
    daemon.node.end(job_id, 0, ok(b"tail", stdout_blob=tuple(ref)))
    events = await Follower(daemon).done()
    task = next(data for name, data in events if name == "task")
    assert task["stdout_b64"] is None and task["stdout_bytes"] == INLINE_BYTES_MAX + 1


async def test_progress_is_coalesced(daemon: Daemon) -> None:
    """A thousand results a second must not be a thousand redraws."""
    job_id = await daemon.new_job(300, seal=True)
    follower = Follower(daemon)
    await until(lambda: follower.events)
    started = daemon.node.clock.now()
    for index in range(300):
        daemon.node.end(job_id, index, ok())
        await asyncio.sleep(0.002)
    await follower.done()
    lasted = daemon.node.clock.now() - started
    progress = [data for name, data in follower.events if name == "progress"]
    assert len(progress) <= 3 + lasted / PROGRESS_S_MIN
    assert follower.seqs == list(range(1, 301))


async def test_slow_reader_loses_nothing_and_costs_no_memory(daemon: Daemon) -> None:
    """`p2pc run … | less`: a follower that does not read is served from the store later."""
    count = 400
    job_id = await daemon.new_job(count, seal=True)
    reader, writer = await asyncio.open_unix_connection(daemon.connection.path, limit=2**20)
    writer.write(b"GET /v1/jobs/last/events HTTP/1.1\r\nhost: p2pc\r\n\r\n")
    await until(lambda: daemon.api.job_events.follower_count == 1)
    backlog = daemon.api.job_events._backlogs[job_id]
    for index in range(count):
        daemon.node.end(job_id, index, ok(b"x" * 60_000))  # 32 MB of events
    assert backlog._bytes <= EVENT_BACKLOG_BYTES_MAX and len(backlog._entries) < count
    seqs = []
    async with asyncio.timeout(15):
        while True:
            line = await reader.readline()
            if line.startswith(b"id: "):
                seqs.append(int(line[4:]))
            if line.startswith(b"event: end"):
                break
    writer.close()
    await writer.wait_closed()
    assert seqs == list(range(1, count + 1))
    assert daemon.node.finished_calls, "the part that the backlog had dropped came from the store"


async def test_two_followers_share_one_watch(daemon: Daemon) -> None:
    """`attach` beside `run` must not double the node's work."""
    job_id = await daemon.new_job(2, seal=True)
    first, second = Follower(daemon), Follower(daemon)
    await until(lambda: daemon.api.job_events.follower_count == 2)
    assert len(daemon.node.by_id[job_id].listeners) == 1
    for index in range(2):
        daemon.node.end(job_id, index, ok())
    await first.done()
    await second.done()
    assert first.seqs == second.seqs == [1, 2]


async def test_follower_that_goes_away_is_forgotten(daemon: Daemon) -> None:
    """A closed terminal must not be watched for ever."""
    job_id = await daemon.new_job(1)
    _, writer = await asyncio.open_unix_connection(daemon.connection.path)
    writer.write(b"GET /v1/jobs/last/events HTTP/1.1\r\nhost: p2pc\r\n\r\n")
    await until(lambda: daemon.api.job_events.follower_count == 1)
    writer.close()
    await writer.wait_closed()
    await until(lambda: daemon.api.job_events.follower_count == 0)
    assert not daemon.node.by_id[job_id].listeners


async def test_retried_task_ends_again(daemon: Daemon) -> None:
    """The follower learns the second end of a task under a new number and its generation."""
    job_id = await daemon.new_job(2, seal=True)
    daemon.node.end(job_id, 0, Outcome(status=OutcomeStatus.FAILED, exit_code=1))
    follower = Follower(daemon)
    await until(lambda: follower.seqs == [1])
    await daemon.node.retry(job_id)
    daemon.node.end(job_id, 0, ok())
    daemon.node.end(job_id, 1, ok())
    events = await follower.done()
    tasks = [(data["index"], data["generation"], data["state"]) for name, data in events if name == "task"]
    assert tasks == [(0, 0, "failed"), (0, 1, "done"), (1, 0, "done")]
    assert events[-1][1]["exit_code"] == 0


async def test_job_forgotten_meanwhile_ends_the_stream(daemon: Daemon) -> None:
    """`prune` under a follower is an error event, not a broken stream."""
    job_id = await daemon.new_job(1)
    follower = Follower(daemon, until_event="error")
    await until(lambda: daemon.api.job_events.follower_count == 1)
    forgotten = daemon.node.by_id.pop(job_id)
    for listener in forgotten.listeners:
        listener([])
    events = await follower.done()
    assert events[-1][0] == "error" and events[-1][1]["code"] == "no-job"
    daemon.node.by_id[job_id] = forgotten


async def test_stopping_node_ends_streams_without_an_end_event(tmp_path: Path) -> None:
    """The follower can tell "the node stops" from "the job is over" and comes back later."""
    node = FakeNode(tmp_path)
    async with running(node, tmp_path) as daemon:
        await daemon.new_job(1)
        follower = Follower(daemon)
        await until(lambda: follower.events)
    events = await follower.done()
    assert [name for name, _ in events] == ["progress"]
    await node.close()


def _end(seq: int, stdout: bytes = b"") -> TaskView:
    return TaskView(seq, 0, "done", outcome=ok(stdout), seq=seq)


def test_backlog_is_bounded_by_count_and_bytes() -> None:
    """Memory of a followed job has a ceiling; one oversized event is still kept."""
    backlog = Backlog("command")
    backlog.add([_end(seq) for seq in range(1, EVENT_BACKLOG_MAX + 101)])
    assert backlog.first_seq == 101 and backlog.read(50) is None
    found = backlog.read(100)
    assert found is not None and found[1] > 100
    backlog.add([_end(seq, b"x" * 65_000) for seq in range(EVENT_BACKLOG_MAX + 101, EVENT_BACKLOG_MAX + 301)])
    assert backlog._bytes <= EVENT_BACKLOG_BYTES_MAX
    assert backlog.read(backlog.last_seq) is None


@pytest.mark.parametrize("start", [0, 5])
def test_backlog_after_a_jump_starts_anew(start: int) -> None:
    """Numbers in the backlog are always consecutive, so a position can be looked up by subtraction."""
    backlog = Backlog("command")
    backlog.add([_end(seq) for seq in range(start + 1, start + 4)])
    backlog.add([_end(start + 10)])
    assert backlog.first_seq == backlog.last_seq == start + 10
    text = backlog.read(start + 9)
    assert text is not None and json.loads(text[0].split(b"data: ")[1])["seq"] == start + 10
