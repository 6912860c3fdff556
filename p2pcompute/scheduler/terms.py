"""The terms of a job: what the submitter asks of the scheduler, signed in the job envelope.

The envelope also carries the execution spec as opaque bytes.  A job's id is the BLAKE2b-256 of its envelope, so
every node that holds the envelope holds exactly the job that the submitter signed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError, UsageError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.keys import Identity, check_delegation
from p2pcompute.ids import JOB_ID_BYTES, PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    CUSTODIANS_MAX,
    JOB_AGE_S_MAX,
    JOB_NAME_CHARS_MAX,
    JOB_SKEW_S_MAX,
    MOMENT_S_MAX,
    NODES_CHOSEN_MAX,
    PRIORITY_MAX,
    REPLICAS_MAX,
    REQUIREMENT_CHARS_MAX,
    REQUIREMENTS_MAX,
)
from p2pcompute.wire.envelope import Envelope, open_envelope
from p2pcompute.wire.fields import named

JOB_CONTENT_TYPE: Final = "p2pc/job"
GROUP_ID_BYTES: Final = 32


ERROR_PPB: Final = 100_000
"""One result in 10,000."""
TRUSTS: Final = ("", "trusted", "member", "any")
VERIFY_METHODS: Final = ("", "arbitrate", "credibility", "spotcheck", "majority", "boinc", "none")


def error_ppb_of(rate: float) -> int:
    """Return an accepted probability of a wrong result in billionths, as jobs carry it.

    Raises:
        UsageError: nothing accepts it.
    """
    if not 1e-9 <= rate < 1.0:
        raise UsageError(
            f"an error rate of {rate:g} cannot be accepted",
            "it is a probability, from 1e-9 to below 1",
            "for example: --error-rate 1e-6; to have results of members believed unchecked: --verify none",
            code="error-rate",
        )
    return round(rate * 1e9)


def check_demands(trust: str, verify: str, error_ppb: int | None, replicas: int | None) -> None:
    """Refuse demands on whose results are believed that exclude one another.

    Raises:
        UsageError: what, and why.
    """
    if trust not in TRUSTS or verify not in VERIFY_METHODS:
        known = ", ".join((TRUSTS if trust not in TRUSTS else VERIFY_METHODS)[1:])
        raise UsageError(f'"{trust if trust not in TRUSTS else verify}" is not known', f"there are {known}", None)
    if replicas is not None and error_ppb is not None:
        raise UsageError("--replicas and --error-rate exclude each other", "one sets the cost, the other what it buys")
    if replicas is not None and replicas > REPLICAS_MAX:
        raise UsageError(f"{replicas} replicas are too many", f"up to {REPLICAS_MAX} nodes compute a task")
    if replicas is not None and verify not in ("", "arbitrate", "majority"):
        raise UsageError(f"--replicas does not go with --verify {verify}", "that method has no number of replicas")


class HaltWhen(StrEnum):
    SOON = "soon"
    """Start no new tasks, let running ones finish."""
    NOW = "now"
    """Kill running tasks too."""


class HaltWhy(StrEnum):
    FAIL = "fail"
    SUCCESS = "success"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Halt:
    """When to stop a job early, in GNU parallel's words: ``now|soon,fail|success|done=N|N%``."""

    when: HaltWhen
    why: HaltWhy
    count: int
    """Threshold; a percentage of all tasks when `is_percent`."""
    is_percent: bool

    def __str__(self) -> str:
        return f"{self.when},{self.why}={self.count}{'%' if self.is_percent else ''}"


def parse_halt(text: str) -> Halt | None:
    """Return the rule that `text` names; None for "never".

    Raises:
        UsageError: it is not GNU parallel's syntax.
    """
    if text in ("", "never"):
        return None
    match = re.fullmatch(r"(now|soon),(fail|success|done)=(\d{1,9})(%?)", text)
    if match is None or int(match[3]) == 0 or (match[4] and int(match[3]) > 100):
        raise UsageError(
            f"--halt {text!r} is not a rule",
            "it reads now|soon,fail|success|done=N or N%",
            "for example: --halt soon,fail=1",
            code="halt",
        )
    return Halt(HaltWhen(match[1]), HaltWhy(match[2]), int(match[3]), bool(match[4]))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTerms:
    """What the scheduler needs to know of a job."""

    name: str = ""
    retries: int = 2
    """Extra attempts after a failure of the task itself, on other nodes where there are any."""
    python: tuple[int, int] | None = None
    """Python minor that the job's code needs; None when it does not matter."""
    local_only: bool = False
    """Only the owner's own slots."""
    slots_max: int | None = None
    """At most so many tasks leased at once over the whole group (-j)."""
    halt: str = ""
    priority: int = 0
    """Among the jobs of one submitter: higher is served earlier; within ±PRIORITY_MAX."""
    deadline_ms: int = 0
    """When the job is given up, Unix milliseconds; 0: never.  Of equal jobs, that with the earlier one comes first."""
    require: tuple[str, ...] = ()
    """Conditions that a node must meet, in the language of `resources.expressions`; carried unread here."""
    prefer: tuple[str, ...] = ()
    """What orders the nodes that do; the same."""
    on: tuple[bytes, ...] = ()
    """Only these nodes: keys of theirs, or of their installations; empty: all."""
    not_on: tuple[bytes, ...] = ()
    """Not these."""
    custodians: tuple[bytes, ...] = ()
    """Keys of the installations that keep the job too and coordinate it while its owner is away, by rank from 1."""
    trust: str = ""
    """Lowest level of a node that may run it: "trusted", "member", or "any": also strangers in an open group; "":
    "member"."""
    verify: str = ""
    """How results of members are checked: a method of `trust.verification`, or "none"; "": "arbitrate"."""
    error_ppb: int | None = None
    """Accepted probability that a result of members is wrong, in billionths; None: ERROR_PPB."""
    replicas: int | None = None
    """Instead of that: so many members compute each task, and their results are compared."""
    group: bytes = b""
    """Id of the group in which it was submitted; members of other groups are given nothing of it, and take nothing."""
    created_ms: int = 0
    """Wall clock of the submitter, Unix milliseconds."""


@dataclass(frozen=True, slots=True)
class JobEnvelope:
    """A verified job."""

    job_id: bytes
    terms: JobTerms
    spec: bytes
    submitter: bytes
    """Installation that submitted it."""
    signer: bytes
    """Key that signed: the installation's or a delegate's."""
    raw: bytes

    @property
    def coordinators(self) -> tuple[bytes, ...]:
        """Keys of the nodes that may lease its tasks, by rank: its owner, which signed it, then its custodians."""
        return (self.signer, *self.terms.custodians)


def job_id_of(raw: bytes) -> bytes:
    """Return the id of the job with this envelope."""
    return hashlib.blake2b(raw, digest_size=JOB_ID_BYTES).digest()


def seal_job(identity: Identity, terms: JobTerms, spec: bytes, nonce: bytes) -> bytes:
    """Return the signed envelope of a job."""
    # By identity: 0 retries are not the default, and 0 equals False.
    packed = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(terms).items()
        if value is not None and value is not False and value not in ("", b"", ())
    }
    return identity.sign_envelope(
        JOB_CONTENT_TYPE,
        {"terms": packed, "spec": spec, "nonce": nonce, "delegation": identity.delegation},
    )


_KINDS: Final[dict[str, type]] = {
    "name": str,
    "retries": int,
    "local_only": bool,
    "slots_max": int,
    "halt": str,
    "priority": int,
    "deadline_ms": int,
    "trust": str,
    "verify": str,
    "error_ppb": int,
    "replicas": int,
    "created_ms": int,
    "group": bytes,
}


_KEYS: Final = frozenset({"terms", "spec", "nonce", "delegation"})
_LEAST: Final = {"priority": -PRIORITY_MAX}
"""Lowest number where it is not 0."""
_LISTS: Final[dict[str, type]] = {"require": str, "prefer": str, "on": bytes, "not_on": bytes, "custodians": bytes}


def _items(value: Any, kind: type) -> tuple[Any, ...]:
    if not (isinstance(value, list) and value and all(type(item) is kind for item in value)):
        raise RemoteProtocolError("bad terms of a job: a list")
    return tuple(value)


def _check_choice(terms: JobTerms) -> None:
    """Bound what is asked of nodes."""
    expressions, keys = terms.require + terms.prefer, terms.on + terms.not_on
    if max(len(terms.require), len(terms.prefer)) > REQUIREMENTS_MAX:
        raise RemoteProtocolError("bad terms of a job: too many requirements")
    if sum(map(len, expressions)) > REQUIREMENT_CHARS_MAX or len(keys) > NODES_CHOSEN_MAX:
        raise RemoteProtocolError("bad terms of a job: too long requirements")
    if len(terms.custodians) > CUSTODIANS_MAX or len(set(terms.custodians)) < len(terms.custodians):
        raise RemoteProtocolError("bad terms of a job: custodians")
    if any(len(key) != PUBLIC_KEY_BYTES for key in keys + terms.custodians):
        raise RemoteProtocolError("bad terms of a job: not the key of a node")


def _terms(value: Any) -> JobTerms:
    names = {field.name for field in fields(JobTerms)}
    if not isinstance(value, dict) or any(name not in names for name in value):
        raise RemoteProtocolError("unknown terms of a job")
    for name, kind in _KINDS.items():
        if name in value and (type(value[name]) is not kind or (kind is int and value[name] < _LEAST.get(name, 0))):
            raise RemoteProtocolError(f"bad terms of a job: {name}")
    python = value.get("python")
    if python is not None:
        if not (isinstance(python, list) and len(python) == 2 and all(type(n) is int for n in python)):
            raise RemoteProtocolError("bad terms of a job: python")
        value = {**value, "python": (python[0], python[1])}
    value = {**value, **{name: _items(value[name], kind) for name, kind in _LISTS.items() if name in value}}
    terms = JobTerms(**value)
    _check_choice(terms)
    if terms.group and len(terms.group) != GROUP_ID_BYTES:
        raise RemoteProtocolError("bad terms of a job: group")
    if terms.priority > PRIORITY_MAX:
        raise RemoteProtocolError("bad terms of a job: priority")
    if max(terms.deadline_ms, terms.created_ms) > MOMENT_S_MAX * 1000:
        raise RemoteProtocolError("bad terms of a job: a moment")
    if terms.trust not in TRUSTS or terms.verify not in VERIFY_METHODS:
        raise RemoteProtocolError("bad terms of a job: trust")
    if not 0 < (terms.error_ppb or 1) < 10**9 or not 0 < (terms.replicas or 1) <= REPLICAS_MAX or terms.replicas == 0:
        raise RemoteProtocolError("bad terms of a job: checks")
    if len(terms.name) > JOB_NAME_CHARS_MAX:
        raise RemoteProtocolError("bad terms of a job: name is too long")
    try:
        parse_halt(terms.halt)
    except UsageError as error:
        raise RemoteProtocolError("bad terms of a job: halt") from error
    return terms


STALE: Final = "stale"
"""Code of the error when a job is too old to be begun, from the future, or of a delegate whose time is over."""


def _check_fresh(terms: JobTerms, wall: float) -> None:
    age_s = wall - terms.created_ms / 1000
    if not -JOB_SKEW_S_MAX <= age_s <= JOB_AGE_S_MAX:
        when = "from the future" if age_s < 0 else "too old to be begun"
        raise RemoteProtocolError(f"a job {when}", f"by {abs(round(age_s))} s", code=STALE)


def open_job(crypto: Crypto, raw: bytes, *, wall: float, is_new: bool = False) -> JobEnvelope:
    """Return the verified job.  Nothing of it is decoded before its signature is known to be right.

    Args:
        wall: Unix seconds.
        is_new: somebody asks to begin it here: it must be fresh, and the delegation of who signed it valid now.  Else
            the delegation must have been valid when the job was made, so a job outlives it.

    Raises:
        RemoteProtocolError: malformed, forged, signed by an expired or foreign delegate or one that may not submit, or
            not fresh (code STALE).
    """
    envelope: Envelope = open_envelope(crypto, raw, JOB_CONTENT_TYPE)
    payload = named(envelope.payload, _KEYS, "job")
    spec, delegation = payload["spec"], payload["delegation"]
    if not isinstance(spec, bytes) or not isinstance(payload["nonce"], bytes):
        raise RemoteProtocolError("not a job")
    if delegation is not None and not isinstance(delegation, bytes):
        raise RemoteProtocolError("not a delegation")
    terms = _terms(payload["terms"])
    if is_new:
        _check_fresh(terms, wall)
    submitter = envelope.signer
    if delegation is not None:
        made = wall if is_new else min(wall, terms.created_ms / 1000)
        session_key, submitter, roles = check_delegation(crypto, delegation, wall=made)
        if session_key != envelope.signer:
            raise RemoteProtocolError("a job signed by another key than its delegation names")
        if "submit" not in roles:
            raise RemoteProtocolError("a job of a delegate that may not submit")
    return JobEnvelope(job_id_of(raw), terms, spec, submitter, envelope.signer, raw)
