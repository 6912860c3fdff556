"""Which nodes a job may run on, which of them it prefers, and which jobs a node takes.  Pure.

Bilateral, after the ClassAds of Condor: a job's requirement is a condition over ``node.*``, a node's acceptance one
over ``job.*``.  Amounts (cores, memory, GPUs, disk of one task) are clauses like any other.  A clause that is false
stays so ("never") when it is false whatever the values are that change; otherwise time may help ("later").

Source: Raman, Livny & Solomon, Matchmaking: Distributed Resource Management for High Throughput Computing, HPDC 1998.
Deviations: one condition for each clause instead of nested ads; unknown is not an error of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from p2pcompute.errors import ConfigError, UsageError
from p2pcompute.host.interfaces import Value
from p2pcompute.limits import ATTRIBUTE_TEXT_CHARS_MAX, REQUIREMENT_CHARS_MAX, REQUIREMENTS_MAX
from p2pcompute.resources.attributes import Attributes, values
from p2pcompute.resources.expressions import Expression, View, check_condition, check_rank, compile_expression

LASTING_S: Final = 300.0
"""A value that may be believed for so long is taken for a lasting one: what follows from it is not said to pass."""
REQUIRE: Final = "--require"
KIND: Final = "--kind"
DEPS: Final = "--deps"
CONTAINER: Final = "container"
CONTAINER_ENGINES: Final = ("podman", "docker", "apptainer")
ONLY_WASM: Final = "job.kind=='wasm'"
"""Condition of a node that takes WASM modules of others, and nothing else."""


class Verdict(StrEnum):
    """Whether a node can run a task of a job, worst last."""

    NOW = "now"
    LATER = "later"
    UNKNOWN = "unknown"
    NEVER = "never"


_ORDER: Final = tuple(Verdict)


def worst(verdicts: Mapping[object, Verdict] | list[Verdict]) -> Verdict:
    """Return the worst verdict, NOW of none."""
    found = list(verdicts.values()) if isinstance(verdicts, Mapping) else verdicts
    return max(found, key=_ORDER.index, default=Verdict.NOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one task of a job asks of a node."""

    require: tuple[str, ...] = ()
    """Conditions; all must be true."""
    prefer: tuple[str, ...] = ()
    """Ranks; what they add up to orders the nodes that fit, highest first."""
    cpus: float = 1.0
    mem_bytes: int | None = None
    gpus: float = 0.0
    disk_bytes: int | None = None
    runtime: str = ""
    """What the kind of its tasks needs there, as in has=wasm."""
    has_packages: bool = False
    """It brings a list of Python packages, which a node must be able to install."""
    platforms: tuple[str, ...] = ()
    """Systems and machines for which there are wheels of them, like ``linux/x86_64``; empty: all."""

    @property
    def is_plain(self) -> bool:
        """Whether any node will do."""
        return self == _PLAIN


_PLAIN: Final = Needs()


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing that must be true of a node."""

    flag: str
    """Which flag of `run` asks for it."""
    index: int
    """Which of the flags of that name it is in."""
    expression: Expression

    def judge(self, known: Known) -> Verdict:
        """Return what it is on a node of which so much is known."""
        value = self.expression.evaluate(known.view)
        if value is None:
            return Verdict.UNKNOWN
        if value:
            return Verdict.NOW
        return Verdict.LATER if self.expression.evaluate(known.lasting) is None else Verdict.NEVER


class Known:
    """What is known of one node at one moment.

    Args:
        attributes: what it said.
        wall_s: the clock by which they were measured, now.
        has_is_known: False when it did not say whether the applications are there that matter.
    """

    __slots__ = ("_attributes", "_lasting", "values", "view")

    def __init__(self, attributes: Attributes, wall_s: float, *, has_is_known: bool = True) -> None:
        self.values: dict[str, Value] = values(attributes, wall_s)
        if not has_is_known:
            self.values.pop("has", None)
        self.view = View(self.values)
        self._attributes = attributes
        self._lasting: View | None = None

    @property
    def lasting(self) -> View:
        """Only what does not change from one minute to the next."""
        if self._lasting is None:
            found = self._attributes
            self._lasting = View({name: value for name, value in self.values.items() if is_lasting(found, name)})
        return self._lasting

    def is_lasting(self, name: str) -> bool:
        """Whether the value of a known attribute is not expected to change soon."""
        return is_lasting(self._attributes, name)

    def moment(self, name: str) -> float | None:
        """Return the wall time of what a node expects in so many seconds; None where it does not say."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return self._attributes[name].measured_s + value


def is_lasting(attributes: Attributes, name: str) -> bool:
    """Return whether the value of an attribute is not expected to change soon."""
    lifetime_s = attributes[name].lifetime_s
    return lifetime_s is None or lifetime_s >= LASTING_S


@dataclass(frozen=True, slots=True)
class Requirement:
    """A job's needs, compiled."""

    needs: Needs
    clauses: tuple[Clause, ...]
    ranks: tuple[Expression, ...]
    words: tuple[str, ...]
    """Applications that it asks for."""

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes of a node that it is about, each once."""
        parts = [*(clause.expression for clause in self.clauses), *self.ranks]
        return tuple(dict.fromkeys(name for part in parts for name in part.names))

    def fits(self, view: View) -> bool | None:
        """Return whether a node fits now; None when that is not known."""
        found: bool | None = True
        for clause in self.clauses:
            value = clause.expression.evaluate(view)
            if value is False:
                return False
            if value is None:
                found = None
        return found

    def judge(self, known: Known) -> Verdict:
        """Return whether and when a node fits."""
        return worst([clause.judge(known) for clause in self.clauses])

    def rank(self, view: View) -> float:
        """Return how much a node is preferred; what is not known of it counts as 0."""
        return math.fsum(rank for one in self.ranks if (rank := one.rank(view)) is not None and math.isfinite(rank))


@lru_cache(maxsize=256)
def compile_needs(needs: Needs) -> Requirement:
    """Return the requirement that a job's needs are.

    Raises:
        UsageError: an expression is none, or they are beyond a limit.
    """
    for flag, texts in ((REQUIRE, needs.require), ("--prefer", needs.prefer)):
        if len(texts) > REQUIREMENTS_MAX:
            raise UsageError(f"{flag} {len(texts)} times is too often", f"{REQUIREMENTS_MAX} times", "join them by &&")
    if sum(map(len, needs.require + needs.prefer)) > REQUIREMENT_CHARS_MAX:
        raise UsageError("the requirements of a job are too long", f"they may have {REQUIREMENT_CHARS_MAX} characters")
    clauses = [
        Clause(REQUIRE, index, part)
        for index, text in enumerate(needs.require)
        for part in compile_expression(text.strip()).parts()
    ]
    for flag, text in amounts(needs).items():
        clauses += [Clause(flag, 0, part) for part in compile_expression(text).parts()]
    if needs.runtime:
        names = CONTAINER_ENGINES if needs.runtime == CONTAINER else (needs.runtime,)
        clauses.append(Clause(KIND, 0, compile_expression(" || ".join(f"has={name}" for name in names))))
    if needs.has_packages:
        clauses.append(Clause(DEPS, 0, compile_expression("has=uv")))
    if needs.platforms:
        pairs = [platform.partition("/")[::2] for platform in needs.platforms]
        conditions = [f"node.os == '{system}' && node.arch == '{arch}'" for system, arch in pairs]
        clauses.append(Clause(DEPS, 0, compile_expression(" || ".join(conditions))))
    ranks = tuple(compile_expression(text.strip()) for text in needs.prefer)
    words = dict.fromkeys(word for clause in clauses for word in clause.expression.words)
    words |= dict.fromkeys(word for rank in ranks for word in rank.words)
    return Requirement(needs, tuple(clauses), ranks, tuple(words))


def amounts(needs: Needs) -> dict[str, str]:
    """Return the conditions that the amounts of one task are, by flag.  Of memory and disk so much must be free."""
    found: dict[str, str] = {}
    if needs.cpus > 1:
        found["--cpus"] = f"node.cpus >= {needs.cpus!r}"
    if needs.mem_bytes:
        found["--mem"] = f"node.mem.total >= {needs.mem_bytes} && node.mem.free >= {needs.mem_bytes}"
    if needs.gpus > 0:
        found["--gpus"] = f"node.gpu.count >= {needs.gpus!r}"
    if needs.disk_bytes:
        found["--disk"] = f"node.disk.total >= {needs.disk_bytes} && node.disk.free >= {needs.disk_bytes}"
    return found


def slots_taken(needs: Needs, values: Mapping[str, Value], slot_count: int) -> int:
    """Return how many of a node's slots one task takes, from 1 to all: those of its cores, and as large a part of them
    as of the node's memory and GPUs.

    Args:
        values: of the node.
    """
    slots = math.ceil(needs.cpus)
    for amount, name in ((needs.mem_bytes, "mem.total"), (needs.gpus, "gpu.count")):
        total = values.get(name)
        if amount and isinstance(total, int | float) and total > 0:
            slots = max(slots, math.ceil(min(1.0, amount / total) * slot_count))
    return max(1, min(slots, slot_count))


def check_needs(needs: Needs) -> None:
    """Refuse, for the person who wrote them, needs that no node could ever answer.

    Raises:
        UsageError: an expression is none, or can be neither true nor false; it points at the column.
    """
    compile_needs(needs)
    for text in needs.require:
        check_condition(compile_expression(text.strip()))
    for text in needs.prefer:
        check_rank(compile_expression(text.strip()))


@lru_cache(maxsize=256)
def _acceptance(text: str) -> Expression:
    return compile_expression(text)


def check_acceptance(text: str, *, what: str = "node.accept_if", chars_max: int = ATTRIBUTE_TEXT_CHARS_MAX) -> str:
    """Refuse, for the machine's owner, a condition on jobs that means nothing; return it.

    Args:
        what: how it is called where it was written.

    Raises:
        ConfigError: it is none, or longer than what peers may be told.
    """
    if len(text) > chars_max:
        raise ConfigError(f"{what} may have {chars_max} characters", f"it has {len(text)}")
    if text:
        try:
            check_condition(_acceptance(text))
        except UsageError as error:
            raise ConfigError(f"{what}: {error.what}", error.why, error.fix) from error
    return text


def only_wasm(condition: str) -> str:
    """Return the condition on jobs that takes what this one does, and WASM modules only."""
    return f"{ONLY_WASM} && ({condition})" if condition.strip() else ONLY_WASM


def acceptance_names(acceptance: str) -> tuple[str, ...]:
    """Return the attributes of the node that a condition on jobs names."""
    try:
        return _acceptance(acceptance).names if acceptance else ()
    except UsageError:
        return ()


def is_accepted(acceptance: str, node: Mapping[str, Value], job: Mapping[str, Value]) -> bool | None:
    """Return whether a node takes a job; None when its condition cannot be told, or is none.

    Args:
        acceptance: condition over ``job.*`` (and ``node.*``); empty: it takes every job.
    """
    if not acceptance:
        return True
    try:
        return _acceptance(acceptance).evaluate(View(node, job))
    except UsageError:
        return None
