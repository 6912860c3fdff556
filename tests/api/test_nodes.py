"""Nodes as a program finds them."""

from __future__ import annotations

import threading
import time

import pytest

from p2pcompute import MeshExecutor, NodeInfo, NodeUnavailable, UsageError


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
    assert executor.when("cpus>=1", timeout=5).id == own.id
    with pytest.raises(TimeoutError):
        executor.when("cpus>=1000000", timeout=0.05)


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
