"""What a worker has signed: never two good results under what a proof of a lie compares.

A proof is two claims of one signer, of one *life* of it, about one lease (job, task, generation, attempt), with
different digests (`bundles`).  Of each life all answers are remembered here.  When they are ANSWERED_MAX the life ends:
they are forgotten, and what is signed from then on names another life, as after a restart.  So no owner can have a
worker forget within a life what it has said, however much it leases, and none of its leases has to be refused.

Invariant: an envelope is made, and what it says is noted, in one step under one life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from p2pcompute.host.runs import OutcomeStatus
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import ANSWERED_MAX, RESULTS_BATCH_MAX
from p2pcompute.scheduler.messages import CLAIMS_CONTENT_TYPE

LIFE_BYTES: Final = 8
"""Two lives of one node are the same with 1 in 1.8e19, for each pair."""


class Answers:
    """The good results that this node has signed in its present life."""

    __slots__ = ("_digests", "_most", "_random_bytes", "life", "lives_count")

    def __init__(self, life: bytes, random_bytes: Callable[[int], bytes], *, most: int = ANSWERED_MAX) -> None:
        """Args:
        life: random, of this process and no other one.
        most: answers of one life; at least the claims of one call.
        """
        self.life = life
        """Named in what is signed next."""
        self._random_bytes = random_bytes
        self._digests: dict[tuple[bytes, int, int, int], bytes] = {}
        """(job, task, generation, attempt) → digest."""
        self._most = most
        self.lives_count = 1

    def __len__(self) -> int:
        return len(self._digests)

    def sign(
        self, identity: Identity, job_id: bytes, claims: Sequence[Sequence[Any]]
    ) -> tuple[bytes, list[Sequence[Any]]]:
        """Return the signed envelope of those claims that contradict nothing, b"" for none, and the others: good
        results of leases that were answered otherwise before.

        Args:
            claims: up to RESULTS_BATCH_MAX (task, generation, attempt, status, digest).
        """
        if len(self._digests) + len(claims) > self._most:
            self.life, self._digests = self._random_bytes(LIFE_BYTES), {}
            self.lives_count += 1
        kept: list[list[Any]] = []
        second: list[Sequence[Any]] = []
        for claim in claims:
            index, generation, attempt, status, digest = claim
            place = (job_id, index, generation, attempt)
            # Only good results are compared: that one could not be computed says nothing about what it is.
            if status == OutcomeStatus.OK and self._digests.setdefault(place, digest) != digest:
                second.append(claim)
            else:
                kept.append(list(claim))
        if not kept:
            return b"", second
        payload = {"job": job_id, "claims": kept, "boot": self.life}
        return identity.sign_envelope(CLAIMS_CONTENT_TYPE, payload), second


assert RESULTS_BATCH_MAX <= ANSWERED_MAX, "a message must fit one life"
