"""Fences: whatever would reach the real world raises in a simulated run, and says which call it was."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from p2pcompute.simulation.fences import _BY_CALLER, _FOR_ALL, RealWorldCall, fences

CODE = "def call(function):\n    return function()\n"


def caller(name: str) -> Callable[[Any], Any]:
    space: dict[str, Any] = {"__name__": name}
    exec(CODE, space)
    found: Callable[[Any], Any] = space["call"]
    return found


def find(module: str, name: str) -> Any:
    """What a fence is around; None: this system has no such call."""
    owner: Any = importlib.import_module(module)
    for part in name.split("."):
        owner = getattr(owner, part, None)
    return owner


def calls(table: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(module, name) for module, names in table for name in names.split() if find(module, name) is not None]


@pytest.mark.parametrize(("module", "name"), calls(_BY_CALLER))
def test_clocks_and_randomness_raise_in_node_code(module: str, name: str) -> None:
    """If it broke: node code takes the real time or real randomness, and no seed can be replayed."""
    before = find(module, name)
    with fences():
        for node_code in ("p2pcompute.node.made_up", "p2pcompute.dht"):
            with pytest.raises(RealWorldCall, match=f"{module}.{name} was called"):
                caller(node_code)(find(module, name))
        fenced = find(module, name)
        assert fenced is not before and fenced.__wrapped__ is before
    assert find(module, name) is before


@pytest.mark.parametrize(("module", "name"), calls(_FOR_ALL))
def test_sockets_threads_processes_and_names_raise_whoever_asks(module: str, name: str) -> None:
    """If it broke: a simulated run waits for the real world."""
    before = find(module, name)
    with fences():
        for code in ("p2pcompute.node.made_up", "p2pcompute.simulation.world", "some_library"):
            with pytest.raises(RealWorldCall, match=f"{module}.{name} was called"):
                caller(code)(find(module, name))
    assert find(module, name) is before


def test_the_simulator_and_libraries_may_read_the_clock() -> None:
    with fences():
        for code in ("p2pcompute.simulation.world", "logging"):
            assert caller(code)(find("time", "perf_counter")) > 0


def test_other_threads_of_an_application_are_not_fenced() -> None:
    """Broken: a thread of the program that embeds both a node and a simulation fails while the simulation runs."""
    read, start = caller("p2pcompute.api.presence"), threading.Barrier(2, timeout=30)
    seen: list[Any] = []

    def beside() -> None:
        start.wait()
        seen.append(read(find("time", "monotonic")))
        start.wait()

    thread = threading.Thread(target=beside)
    thread.start()
    with fences():
        start.wait()
        start.wait()
        with pytest.raises(RealWorldCall):
            read(find("time", "monotonic"))
    thread.join()
    assert len(seen) == 1 and seen[0] > 0
