"""Nodes as a program finds them."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from p2pcompute import MeshExecutor, NodeInfo, NodeUnavailable, UsageError
from p2pcompute.api.nodes import _info, wait_for_members
from p2pcompute.ids import format_device_id
from p2pcompute.node.facade import PeerView
from p2pcompute.trust.levels import Level


def test_a_program_learns_what_its_node_has(executor: MeshExecutor) -> None:
    """Programs cannot choose where to run, or get values of another type than they are told."""
    [own] = executor.nodes
    assert (own.state, own.slots, own.trust) == ("self", 2, "self")
    [found] = executor.find("cpus>=1 && has=sh", rank="mem.free", max_time="10s", max_age=0)
    assert isinstance(found, NodeInfo) and (found.id, found.name, found.state) == (own.id, own.name, "self")
    assert found.cpus is not None and found.cpus >= 1 and found.mem is not None and found.mem > 2**20
    assert found.age == 0.0 and found.rank == found.attributes["mem.free"]
    assert "sh" in found.attributes["has"] and found.attributes["slots.total"] == 2
    assert executor.find("cpus>=1000000") == []
    with pytest.warns(RuntimeWarning, match=r"no node that answers has ram; did you mean mem.total\?"):
        assert executor.find("ram>=1GiB") == []
    assert executor.when("cpus>=1", timeout=5).id == own.id
    with pytest.raises(TimeoutError, match=r"no node met 'cpus>=1000000' within 0.05 s"):
        executor.when("cpus>=1000000", timeout=0.05)


def test_the_level_of_a_node_is_the_one_that_the_command_shows() -> None:
    """A program that may use trusted nodes only leaves them out, and `p2pc trust list` says otherwise."""
    node: Any = SimpleNamespace(clock=SimpleNamespace(wall=lambda: 0.0), name_of=lambda _key: "atlas")
    peer = PeerView(name="atlas", public_key=b"k" * 32, state="up", level="trusted")
    assert _info(node, peer, peer.public_key, {}, None).trust == "trusted"
    node.credentials = SimpleNamespace(level_of=lambda _key: Level.MEMBER)
    assert _info(node, None, peer.public_key, {}, None).trust == "member", "it was just lost sight of"


@pytest.mark.parametrize("expr", ["cpus>=", "cpus", "cpuss>=1", ""])
def test_what_is_no_condition_is_refused(executor: MeshExecutor, expr: str) -> None:
    """A mistyped condition is waited for until the end of days."""
    with pytest.raises(UsageError):
        executor.find(expr)
    with pytest.raises(UsageError):
        executor.when(expr)


def test_impossible_limits_are_refused(executor: MeshExecutor) -> None:
    with pytest.raises(UsageError):
        executor.find("cpus>=1", max_answers=0)
    with pytest.raises(UsageError):
        executor.find("cpus>=1", max_time=-1.0)
    with pytest.raises(UsageError):
        executor.find("cpus>=1", max_age="soon")
    with pytest.raises(UsageError):
        executor.find("cpus>=1", rank="name")


async def _asked_at(arrivals: list[tuple[float, str]], *, told: int, is_open: bool) -> float:
    """Seconds after which nodes are asked, when members (by name) are met at these moments; `told` of them expected."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def peers() -> list[SimpleNamespace]:
        own = SimpleNamespace(public_key=bytes(32), state="self")
        return [own, *(SimpleNamespace(public_key=key.encode() * 32, state="up") for at, key in arrivals if at <= now)]

    node: Any = SimpleNamespace(
        clock=SimpleNamespace(now=lambda: now, sleep=sleep),
        peers=peers,
        credentials=SimpleNamespace(group=SimpleNamespace(is_open_to_others=is_open)),
    )
    ids = [format_device_id(key.encode() * 32) for _, key in arrivals]
    await wait_for_members(node, ids[:told], 2.0)
    return now


async def test_a_question_waits_a_moment_for_the_members_of_the_group() -> None:
    """Broken: the first answer of a program that has just started leaves members out, or the last comes late."""
    beside = (0.0, "a")
    assert await _asked_at([beside], told=1, is_open=False) == 0.0
    assert await _asked_at([beside, (0.1, "b"), (0.5, "c")], told=3, is_open=True) == pytest.approx(0.5, abs=0.06)
    assert await _asked_at([beside, (0.5, "b")], told=1, is_open=True) == pytest.approx(0.5, abs=0.06)
    assert await _asked_at([beside, (9.0, "b")], told=2, is_open=True) == pytest.approx(2.0, abs=0.06)


def test_who_waits_when_the_executor_ends_is_told() -> None:
    """A thread waits for ever for a node that nobody looks for any more."""
    executor = MeshExecutor(max_workers=1, local=True)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            executor.when("cpus>=1000000")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    executor.find("cpus>=1")
    time.sleep(0.2)
    executor.shutdown()
    thread.join(10)
    assert not thread.is_alive() and isinstance(errors[0], NodeUnavailable)
    with pytest.raises(NodeUnavailable):
        executor.find("cpus>=1")
