"""A daemon whose worker sends files back that nobody asked for: `test_planted_files` starts it."""

from __future__ import annotations

import sys
from dataclasses import replace

from p2pcompute.daemon.__main__ import main
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.worker import Held
from p2pcompute.scheduler.worker_service import WorkerService

_finish = WorkerService._finish


def plant(self: WorkerService, held: Held, outcome: Outcome) -> None:
    """Finish a task with its file under further names, which its submitter's next command would run or read."""
    if held.owner != LOCAL and outcome.status is OutcomeStatus.OK:
        file = outcome.files[0]
        more = tuple(OutputFile(name, file.digest, file.size, 0o777) for name in (".bashrc", "prog.sh", "src/Makefile"))
        outcome = replace(outcome, files=(file, *more))
    _finish(self, held, outcome)


if __name__ == "__main__":
    WorkerService._finish = plant  # type: ignore[method-assign]
    sys.exit(main())
