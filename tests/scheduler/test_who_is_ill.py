"""Tasks that cannot be started let a node rest, but not those of a single other installation.

If this fails, a member stops the work of all others by tasks that end as if they could not be started.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.runs import Outcome, OutcomeStatus
from tests.scheduler.test_room_for_results import made_worker

OWN, ADA, BOB = b"w" * 32, b"a" * 32, b"b" * 32
CANNOT = Outcome(OutcomeStatus.NOT_RUN, error="the disk is full")
RAN = Outcome(OutcomeStatus.OK)


@pytest.mark.parametrize(
    ("course", "is_ill"),
    [
        ([(OWN, CANNOT)], True),
        ([(ADA, CANNOT)] * 20, False),
        ([(ADA, CANNOT), (BOB, CANNOT)], True),
        ([(ADA, CANNOT), (BOB, RAN), (BOB, CANNOT)], False),
        ([(OWN, CANNOT), (ADA, CANNOT)], True),
    ],
)
async def test_a_node_rests_when_it_cannot_start_tasks(
    tmp_path: Path, course: list[tuple[bytes, Outcome]], is_ill: bool
) -> None:
    async with made_worker(FileBlobs(tmp_path / "blobs")) as worker:
        for submitter, outcome in course:
            worker._note_health([outcome], submitter)
        worker.rest(0.0, is_store_full=False)
        assert (worker.core.is_resting, bool(worker.health.ill_because)) == (is_ill, is_ill)
