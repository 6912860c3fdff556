"""What an owner keeps about results that members claim: the rule by which they are checked, and what is known of nodes.

Data only; `acceptance` decides, and `books.CheckedJob` has what is claimed of one job.  A node's `Record` outlives this
life of the owner (`pack`, `unpack`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from p2pcompute.host.runs import Outcome
from p2pcompute.limits import EVIDENCE_MAX
from p2pcompute.scheduler.terms import ERROR_PPB, JobTerms
from p2pcompute.trust.verification import METHODS, Method


@dataclass(frozen=True, slots=True)
class Rule:
    """How results are checked: jobs with the same one share what is known of workers."""

    method: Method
    error_ppb: int
    """Accepted probability of a wrong result, in billionths."""
    replicas: int | None
    """Instead of that: so many claims have to agree."""

    @classmethod
    def of(cls, terms: JobTerms) -> Rule | None:
        """Return the rule that a job asks for; None: members are believed."""
        if terms.verify == "none":
            return None
        method = next(known for known in METHODS if known == (terms.verify or "arbitrate"))  # terms are checked
        return cls(method, ERROR_PPB if terms.error_ppb is None else terms.error_ppb, terms.replicas)


@dataclass(frozen=True, slots=True)
class Event:
    """Something remarkable about a node."""

    at: int
    """Unix seconds."""
    job_id: bytes
    index: int
    what: str


@dataclass(slots=True)
class Record:
    """What is known here of a node whose results were checked."""

    claims: int = 0
    agreed: int = 0
    """Of its claims, those that agreed with another one, or with a trusted node."""
    wrong: int = 0
    """Those that a trusted node contradicted."""
    banned: str = ""
    """Why it gets no more work."""
    banned_at: int = 0
    """Unix seconds."""
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVIDENCE_MAX))
    memory: dict[Rule, list[int]] = field(default_factory=dict)
    """What the verifiers of an earlier life knew of it."""
    pardons: int = 0
    """Bans that were ended.  The facts of a job still have what was erased then: claims of such a node are not taken up
    after a restart."""

    def pack(self) -> list[Any]:
        """Return what is stored."""
        events = [[event.at, event.job_id, event.index, event.what] for event in self.events]
        memory = [[rule.method, rule.error_ppb, rule.replicas, known] for rule, known in self.memory.items()]
        return [self.claims, self.agreed, self.wrong, self.banned, self.banned_at, events, memory, self.pardons]

    @classmethod
    def unpack(cls, row: list[Any]) -> Record:
        """Return what was stored."""
        claims, agreed, wrong, banned, banned_at, events, memory, *later = row
        return cls(
            claims,
            agreed,
            wrong,
            banned,
            banned_at,
            deque((Event(*event) for event in events), maxlen=EVIDENCE_MAX),
            {Rule(method, ppb, replicas): known for method, ppb, replicas, known in memory},
            later[0] if later else 0,
        )


@dataclass(slots=True)
class Output:
    """What somebody claims."""

    outcome: Outcome
    thief: bytes
    size: int
