"""What is taken of results that other nodes send: what they signed, and nothing that could become a program here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import BlobRef, Host
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import CLAIMS_BYTES_MAX
from p2pcompute.scheduler.messages import (
    CLAIMS_CONTENT_TYPE,
    Claim,
    decode_outcome,
    output_digest,
    parse_claims,
)
from p2pcompute.wire.envelope import open_envelope

VALUE_HEAD_BYTES: Final = 16
"""Of a value: enough to tell what form it has."""


@dataclass(slots=True)
class CheckCounters:
    """What was not taken."""

    forged_claims_count: int = 0
    refused_files_count: int = 0
    """Results with files that their tasks were not asked for."""
    refused_pickles_count: int = 0
    """Values that were no data, of nodes that are not trusted."""


class ResultChecks:
    """Checks results before anything is done with them."""

    def __init__(self, host: Host, counters: CheckCounters) -> None:
        self._host = host
        self.counters = counters
        self.is_data: Callable[[bytes, bytes], bool] = lambda _spec, _head: True
        """Whether a value that begins so, of a job with this spec, can be read without running code."""
        self.are_outputs: Callable[[bytes, Sequence[str]], bool] = lambda _payload, _names: True
        """Whether a task with this payload may bring back files of these names."""

    def open_claims(self, signer: bytes, raw: bytes, bodies: Any) -> tuple[bytes, list[tuple[Claim, Outcome]]]:
        """Return (job, claims with their outcomes) of a RESULTS message.

        Raises:
            RemoteProtocolError: forged, malformed, or an outcome is not the one that was signed.
        """
        try:
            crypto = self._host.crypto
            envelope = open_envelope(crypto, raw, CLAIMS_CONTENT_TYPE, signer=signer, bytes_max=CLAIMS_BYTES_MAX)
            job_id, claims = parse_claims(envelope.payload)
            if not envelope.payload.get("boot"):
                raise RemoteProtocolError("claims of a worker that does not say in which life it signs")
            if not isinstance(bodies, list) or len(bodies) != len(claims):
                raise RemoteProtocolError("claims and outcomes differ in number")
            pairs = []
            for claim, body in zip(claims, bodies, strict=True):
                outcome = decode_outcome(body)
                if str(outcome.status) != claim[3] or output_digest(outcome) != claim[4]:
                    raise RemoteProtocolError("an outcome is not the one that was claimed")
                pairs.append((claim, outcome))
        except RemoteProtocolError:
            self.counters.forged_claims_count += 1
            raise
        return job_id, pairs

    def with_files_asked_for(
        self, payloads: Mapping[int, bytes], pairs: Sequence[tuple[Claim, Outcome]]
    ) -> list[tuple[Claim, Outcome]]:
        """Return results of which those with other files than their tasks name have failed.

        Files are put where the submitter works: what a worker could add or choose there would be a program of its own
        before long, so it does not depend on trust.

        Args:
            payloads: of the tasks with files, by index; of one that is not known nothing was asked for.
        """
        checked = []
        for claim, outcome in pairs:
            names = [file.name for file in outcome.files]
            if names and not self.are_outputs(payloads.get(claim[0], b""), names):
                self.counters.refused_files_count += 1
                outcome = _refused(outcome, "its node sent files that the task was not asked for")
            checked.append((claim, outcome))
        return checked

    async def as_data(self, spec: bytes, outcome: Outcome) -> Outcome:
        """Return a result of a node that is not trusted: one whose value could run code here has failed."""
        if outcome.status is not OutcomeStatus.OK:
            return replace(outcome, value=b"", value_blob=None)
        head = outcome.value[:VALUE_HEAD_BYTES]
        if outcome.value_blob is not None:
            ref = BlobRef(*outcome.value_blob)
            if not await self._host.store.blobs.has(ref):
                return outcome  # it is only compared
            head = await self._host.store.blobs.read(ref, 0, VALUE_HEAD_BYTES)
        if self.is_data(spec, head):
            return outcome
        self.counters.refused_pickles_count += 1
        why = f": {outcome.error}" if outcome.error else ""
        return _refused(
            outcome,
            f"its value came as a pickle, which could run code here, and its node is not trusted{why}; "
            "or run it on nodes that you trust: p2pc trust set NODE trusted",
        )


def _refused(outcome: Outcome, why: str) -> Outcome:
    """Return a result that is not taken: it has failed, and what it cost and printed is as it was."""
    return Outcome(
        OutcomeStatus.FAILED,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        error=why,
        started_wall=outcome.started_wall,
        runtime_s=outcome.runtime_s,
        cpu_s=outcome.cpu_s,
        peak_rss_bytes=outcome.peak_rss_bytes,
    )
