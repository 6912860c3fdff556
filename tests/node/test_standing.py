"""What others have shown by the work that they were given, as searches of the index see it."""

from __future__ import annotations

from typing import Any, cast

from p2pcompute.host.tasks import TaskScope
from p2pcompute.node.capacity import Capacity
from p2pcompute.simulation.host import Simulation


def test_who_did_such_work_has_shown_it_and_who_only_refused_it_the_opposite() -> None:
    """If it broke: nodes that refuse each task are found again and again, and those that work are not preferred."""
    simulation = Simulation(1)
    absent = cast(Any, None)
    capacity = Capacity(simulation.add_host().host, TaskScope("index"), absent, absent)
    capacity.worked = lambda: [(0b11, [b"did"], [b"refused", b"both"]), (0b10, [b"both"], []), (0b01, [b"other"], [])]
    standing = capacity._standing(0b10)
    shown = {key: standing(key) for key in (b"did", b"both", b"refused", b"other", b"nobody")}
    assert shown == {b"did": True, b"both": True, b"refused": False, b"other": None, b"nobody": None}
    simulation.close()
