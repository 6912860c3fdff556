"""A daemon whose worker signs two results for each task of others, for `test_evidence`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from p2pcompute.daemon.__main__ import main
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.identity.keys import Identity
from p2pcompute.scheduler.answers import Answers
from p2pcompute.scheduler.messages import CLAIMS_CONTENT_TYPE
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.worker import Held
from p2pcompute.scheduler.worker_service import WorkerService

_finish = WorkerService._finish


def lie_twice(self: WorkerService, held: Held, outcome: Outcome) -> None:
    """Finish a task twice, once with a result that nobody has computed."""
    _finish(self, held, outcome)
    if held.owner != LOCAL and outcome.status is OutcomeStatus.OK:
        _finish(self, held, replace(outcome, stdout=b"-1\n"))


def sign_both(
    self: Answers, identity: Identity, job_id: bytes, claims: Sequence[Sequence[Any]]
) -> tuple[bytes, list[Sequence[Any]]]:
    """Sign whatever there is."""
    payload = {"job": job_id, "claims": [list(claim) for claim in claims], "boot": self.life}
    return identity.sign_envelope(CLAIMS_CONTENT_TYPE, payload), []


if __name__ == "__main__":
    WorkerService._finish = lie_twice  # type: ignore[method-assign]  # the node is changed as a liar would change it
    Answers.sign = sign_both  # type: ignore[method-assign]  # likewise
    sys.exit(main())
