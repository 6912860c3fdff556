"""Priorities of the library's jobs.  If these fail, what is urgent waits behind what is not."""

from __future__ import annotations

from typing import Any

import pytest

import p2pcompute
from p2pcompute import TaskOptions
from p2pcompute.errors import BadValue


def test_priorities_reach_the_terms_of_a_job() -> None:
    with p2pcompute.MeshExecutor(local=True, max_workers=1) as executor:
        urgent = executor.with_options(priority=7)
        assert [urgent.submit(abs, -1).result(), executor.submit(abs, -2).result()] == [1, 2]
    assert TaskOptions(priority=7).demands == {"priority": 7} and not TaskOptions().demands


@pytest.mark.parametrize("priority", [1001, -1001, True, 1.5, "high"])
def test_priorities_have_limits(priority: Any) -> None:
    with pytest.raises(BadValue, match="priority"):
        TaskOptions(priority=priority)
