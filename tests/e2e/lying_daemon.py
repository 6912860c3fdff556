"""A daemon whose worker lies about the tasks of others: `test_verification` starts it in place of an honest one.

All of them tell the same lie about a task, which is the hardest to find out.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from p2pcompute.daemon.__main__ import main
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.worker import Held
from p2pcompute.scheduler.worker_service import WorkerService

_finish = WorkerService._finish


def lie(self: WorkerService, held: Held, outcome: Outcome) -> None:
    """Finish a task with a result that nobody has computed."""
    if held.owner != LOCAL and outcome.status is OutcomeStatus.OK:
        outcome = replace(outcome, stdout=b"-1\n")
    _finish(self, held, outcome)


if __name__ == "__main__":
    WorkerService._finish = lie  # type: ignore[method-assign]
    sys.exit(main())
