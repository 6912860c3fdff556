"""A daemon whose worker signs two results for each task of others, for `test_evidence`."""

from __future__ import annotations

import sys
from dataclasses import replace

from p2pcompute.daemon.__main__ import main
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.scheduler.owner_link import Finished, OwnerLink
from p2pcompute.scheduler.result_sender import ResultSender
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.worker import Held
from p2pcompute.scheduler.worker_service import WorkerService

_finish = WorkerService._finish


def lie_twice(self: WorkerService, held: Held, outcome: Outcome) -> None:
    """Finish a task twice, once with a result that nobody has computed."""
    _finish(self, held, outcome)
    if held.owner != LOCAL and outcome.status is OutcomeStatus.OK:
        _finish(self, held, replace(outcome, stdout=b"-1\n"))


def keep_second(self: ResultSender, link: OwnerLink, batch: list[Finished]) -> None:
    """Send both."""


if __name__ == "__main__":
    WorkerService._finish = lie_twice  # type: ignore[method-assign]
    ResultSender._drop_second = keep_second  # type: ignore[method-assign]
    sys.exit(main())
