"""For how long a running task has said nothing.  If these fail, one that hangs looks like one that works."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.scheduler.messages import parse_tail
from p2pcompute.scheduler.quiet import NOTHING, QUIET_LOOK_S, Quiet, Silence
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from tests.node.test_placement import submit


def test_output_and_progress_end_a_silence() -> None:
    quiet = Quiet()
    assert quiet.look(50.0, 1, NOTHING, 20.0) == 30.0, "it has printed nothing since it began"
    assert quiet.look(60.0, 1, (5, 0, b""), 20.0) == 0.0
    assert quiet.look(90.0, 1, (5, 0, b""), 20.0) == 30.0
    assert quiet.look(91.0, 1, (5, 0, b"half"), 20.0) == 0.0
    assert quiet.look(95.0, 2, (9, 9, b""), 20.0) == 0.0, "when it printed that is not known"
    quiet.keep([2])
    assert quiet.look(100.0, 1, (5, 0, b"half"), 99.0) == 0.0


def test_who_computes_is_told_from_who_waits() -> None:
    """The watching of a sandbox counts as the work of its task, or a task that uses half a core seems to hang."""
    quiet = Quiet()
    for look in range(7):
        now = 100.0 + 10 * look
        quiet.note_used(now, 1, 5.0 + 5.0 * look)
        quiet.note_used(now, 2, 5.0 + 0.06 * look)
        quiet.note_used(now, 3, 5.0 + 5.0 * min(look, 3))
        idle = [quiet.idle_s(now + 4, run_id) for run_id in (1, 2, 3, 4)]
        assert idle == ([None] * 4 if look == 0 else [4.0, 4.0 + 10 * look, 4.0 + 10 * max(0, look - 3), None])
    quiet.keep([2])
    assert quiet.idle_s(200.0, 1) is None


def test_nodes_look_now_and_then() -> None:
    quiet = Quiet()
    assert quiet.is_due(100.0) and not quiet.is_due(100.0 + QUIET_LOOK_S - 1) and quiet.is_due(100.0 + QUIET_LOOK_S)


@pytest.mark.parametrize("quiet_s", [-1, 1 << 63, 0.5, b"5", None, True])
def test_nodes_that_tell_nonsense_are_refused_or_not_believed(quiet_s: Any) -> None:
    body = [0, b"", 0, b"", b"", quiet_s]
    if quiet_s is None:
        assert parse_tail(body) == (((0, b""), (0, b""), b""), None)
        return
    with pytest.raises(RemoteProtocolError):
        parse_tail(body)


@pytest.mark.parametrize("idle_s", [-1, 0.5, "5"])
def test_so_are_those_that_tell_nonsense_of_cpu(idle_s: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_tail([0, b"", 0, b"", b"", 5, idle_s])


def test_nodes_that_do_not_tell_are_understood() -> None:
    assert parse_tail([0, b"", 0, b"", b"", 5]) == (((0, b""), (0, b""), b""), Silence(5))
    assert parse_tail([0, b"", 0, b"", b"", 5, 3, "later"]) == (((0, b""), (0, b""), b""), Silence(5, 3))
    assert parse_tail([0, b"o", 0, b"e", b"far"]) == (((0, b"o"), (0, b"e"), b"far"), None)


@pytest.mark.parametrize("worker", [0, 1], ids=["here", "elsewhere"])
def test_the_owner_is_told(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task prints at second 30 of 200, and then nothing more."""
    with Simulation(1) as simulation:
        slots = [int(worker == number) for number in range(2)]
        mesh = Mesh(simulation, 2, runner=[RunnerModel(slot_count=count) for count in slots])
        seen: list[float | None] = []

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            clock, runner = mesh.members[0].host.clock, mesh.members[worker].host.runner
            job_id = await submit(mesh.members[0], [200.0])
            began = clock.now()

            async def tail(_run_id: int, offsets: tuple[int, int]) -> Any:
                size = 7 if clock.now() - began >= 30 else 0
                return (min(size, offsets[0]), b"x" * max(0, size - offsets[0])), (0, b""), b""

            monkeypatch.setattr(runner, "tail", tail)
            for pause_s in (25.0, 15.0, 80.0):
                await asyncio.sleep(pause_s)
                node = mesh.members[0].running
                found = await mesh.members[0].host.call(node.tail(job_id, 0, attempt=0, offsets=(0, 0)))
                seen.append(None if found is None else found.quiet_s)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
    silent, after, long = seen
    assert silent is not None and 24 <= silent < 26
    assert after is not None and after <= 40 - 30 and long is not None and 80 <= long <= 90


def test_tasks_that_do_not_answer_are_not_asked_by_ever_more_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 1, runner=RunnerModel(slot_count=4))
        under_way, most = 0, 0

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            await submit(mesh.members[0], [200.0] * 4)

            async def tail(_run_id: int, _offsets: tuple[int, int]) -> None:
                nonlocal under_way, most
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(3 * QUIET_LOOK_S)
                under_way -= 1

            monkeypatch.setattr(mesh.members[0].host.runner, "tail", tail)
            await asyncio.sleep(150)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
    assert most == 1
