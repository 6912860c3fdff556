"""Where jobs may run: what a job asks of nodes, tried on what is known of them.

A node runs only what it fits itself, whatever the owner believes: `JobFit.fits_here` measures before tasks are taken.
The owner uses what nodes said of themselves, as long as that may be believed, to leave out those that do not fit; of
whom nothing is known may try.  A job that asks for nothing has no `JobFit`, and costs nothing.

Bounds: fits of JOBS_KNOWN_MAX jobs of others; one verdict for each node that asks, as long as its knowledge is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pcompute.errors import P2pcError, RemoteProtocolError, UsageError
from p2pcompute.execution.codec import is_encoded
from p2pcompute.execution.spec import JobSpec, TaskKind, decode_payload, decode_spec, is_output
from p2pcompute.host.interfaces import Host, Value
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import format_device_id
from p2pcompute.limits import (
    CLASS_BYTES,
    JOBS_KNOWN_MAX,
    NODES_KNOWN_MAX,
    QUESTION_LANES,
    QUESTION_WORDS_MAX,
    SEEK_AGAIN_S,
)
from p2pcompute.resources.classes import features_asked, mask_of
from p2pcompute.resources.expressions import View
from p2pcompute.resources.known import HAS, Knowledge
from p2pcompute.resources.matching import (
    Known,
    Needs,
    Requirement,
    acceptance_names,
    compile_needs,
    is_accepted,
    slots_taken,
)
from p2pcompute.resources.service import Resources
from p2pcompute.scheduler.stealing import LOCAL, Fit
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms

CLASS_MASK: Final = (1 << 8 * CLASS_BYTES) - 1
OWN_AGE_S: Final = 5.0
"""What was measured here so long ago is measured again, in the background, while it is used."""
OWN_AGE_S_MAX: Final = 15.0
"""What was measured here earlier is not used."""
VERDICT_S: Final = 5.0
"""How long a verdict about another node stands: what it said may change or grow old meanwhile."""
ASK_AGAIN_S: Final = 10.0
REFUSED_S: Final = 300.0
"""A node whose own condition refuses a job is asked for it again after this, while the job waits."""
"""Pause between two descriptions of a node for the sake of waiting jobs."""
ACCEPTS: Final = "accepts"
"""Attribute: the condition over ``job.*`` on which a node takes work of others."""


def needs_of(terms: JobTerms, spec: JobSpec) -> Needs:
    """Return what one task of a job asks of a node."""
    return Needs(
        require=terms.require,
        prefer=terms.prefer,
        cpus=spec.cpus,
        mem_bytes=spec.mem_bytes,
        gpus=spec.gpus,
        disk_bytes=spec.disk_bytes,
        runtime=spec.kind.value if spec.kind in (TaskKind.WASM, TaskKind.CONTAINER) else "",
        has_packages=spec.packages is not None,
        platforms=spec.platforms,
    )


def job_values(terms: JobTerms, spec: JobSpec, submitter: bytes) -> dict[str, Value]:
    """Return a job as conditions over ``job.*`` see it."""
    return {
        "name": terms.name,
        "kind": str(spec.kind),
        "submitter": format_device_id(submitter),
        "cpus": spec.cpus,
        "mem": spec.mem_bytes or 0,
        "gpus": spec.gpus,
        "disk": spec.disk_bytes or 0,
    }


def what_it_withholds(node: Mapping[str, Value], *, network: bool, bare: bool) -> str:
    """Return which attribute of a node says that tasks of others do not get there what they want; empty: none does.

    Args:
        node: what it said.
        network: they want one.
        bare: they want no sandbox.
    """
    if network and node.get("network") == "none":
        return "network"
    return "isolation" if bare and node.get("isolation") in ("sandbox", "wasm") else ""


def is_data(spec: bytes, head: bytes) -> bool:
    """Return whether a value that begins so can be read without running code.  Only functions have values to read."""
    try:
        return is_encoded(head) or decode_spec(spec).kind is not TaskKind.FUNCTION
    except RemoteProtocolError:
        return False


def are_outputs(payload: bytes, names: Sequence[str]) -> bool:
    """Return whether a task with this payload may bring back files of these names."""
    try:
        patterns = decode_payload(payload).fetch
    except RemoteProtocolError:
        return False
    return all(is_output(name, patterns) for name in names)


def _ignore() -> None:
    """Nobody listens."""


@dataclass(slots=True)
class PlacementCounters:
    """Counted over the life of a node."""

    measured_count: int = 0
    """Measurements of this node for the sake of jobs."""
    asked_count: int = 0
    """Nodes asked for a description for the sake of jobs."""
    impossible_count: int = 0
    """Jobs whose needs are none: no node takes them."""


class Placement:
    """Makes the fits of jobs, and lets them share what they learn."""

    def __init__(
        self,
        host: Host,
        scope: TaskScope,
        resources: Resources,
        *,
        own_key: bytes,
        installation: bytes,
        accepts: str,
    ) -> None:
        """Args:
        accepts: condition over ``job.*`` on which work of other installations is taken; empty: always.
        """
        self.host = host
        self.scope = scope
        self.resources = resources
        self.own_key = own_key
        self.installation = installation
        self._accepts = accepts
        self._group_accepts = ""
        self.on_news: Callable[[], None] = _ignore
        """Called when something became known that may let a job run."""
        self.on_needs: Callable[[Requirement], None] = lambda _requirement: None
        """Called with what a job of this node asks of others, while the known ones do not suffice."""
        self.trusts: Callable[[bytes], bool] = lambda _installation: False
        """Whether this node trusts an installation."""
        self.is_stranger: Callable[[bytes], bool] = lambda _installation: False
        """Whether nobody vouches for an installation: only WASM modules of it run here, and those in a fence."""
        self.is_own_strange: Callable[[], bool] = lambda: False
        """Whether nobody vouches for this node."""
        self.is_fenced = False
        """Whether work of others is run in a sandbox or, if it is a WASM module, in a fence."""
        self.gives_network = False
        """Whether tasks of others may reach public addresses from here."""
        self.class_of: Callable[[bytes], int | None] = lambda _key: None
        """Returns the class of a node: what is heard of it before it has said anything."""
        self.counters = PlacementCounters()
        self._fits: dict[bytes, JobFit | None] = {}
        self._asking: dict[bytes, None] = {}
        self._asked: dict[bytes, float] = {}

    @property
    def accepts(self) -> str:
        """The condition over ``job.*`` of this node, on which it takes work of other installations."""
        return self._accepts

    @accepts.setter
    def accepts(self, condition: str) -> None:
        if condition != self._accepts:
            self._accepts = condition
            self._fits.clear()

    @property
    def group_accepts(self) -> str:
        """The condition over ``job.*`` of the group, on which any of its members takes work of others."""
        return self._group_accepts

    @group_accepts.setter
    def group_accepts(self, condition: str) -> None:
        if condition != self._group_accepts:
            self._group_accepts = condition
            self._fits.clear()  # who holds one asks it again before each grant; it looks here

    def takes(self, node: Mapping[str, Value], job: Mapping[str, Value]) -> bool:
        """Return whether this node takes a job of another installation: unknown is not enough."""
        conditions = (self.accepts, self._group_accepts)
        return all(is_accepted(condition, node, job) is True for condition in conditions)

    def fit_of(self, job: JobEnvelope) -> Fit | None:
        """Return what a job asks of nodes; None when any will do."""
        is_made = job.job_id in self._fits
        fit = self._fits.pop(job.job_id, None)
        if not is_made or (fit is None and self._is_of_stranger(job)):  # it may have become one since
            fit = self._make(job)
        self._fits[job.job_id] = fit  # the last one again
        if len(self._fits) > JOBS_KNOWN_MAX:
            del self._fits[next(iter(self._fits))]
        return fit

    async def refused(self, jobs: Iterable[JobEnvelope]) -> list[bytes]:
        """Return the ids of those among jobs that hold tasks here which this node does not take, as things stand."""
        fits = [(job.job_id, self.fit_of(job)) for job in jobs]
        return [job_id for job_id, fit in fits if isinstance(fit, JobFit) and not await fit.is_taken()]

    def _is_of_stranger(self, job: JobEnvelope) -> bool:
        return job.submitter != self.installation and self.is_stranger(job.submitter)

    def _make(self, job: JobEnvelope) -> JobFit | None:
        try:
            spec = decode_spec(job.spec)
            needs = needs_of(job.terms, spec)
            requirement = compile_needs(needs)
        except (RemoteProtocolError, UsageError):
            self.counters.impossible_count += 1
            return JobFit(self, job, None, {})
        is_chosen = bool(job.terms.on or job.terms.not_on)
        has_condition = bool(self._group_accepts) or (bool(self.accepts) and job.submitter != self.installation)
        is_bare = spec.sandbox == "process"
        is_restricted = is_chosen or has_condition or spec.network or is_bare or self._is_of_stranger(job)
        if needs.is_plain and not is_restricted:
            return None
        fit = JobFit(self, job, requirement, job_values(job.terms, spec, job.submitter))
        fit.is_for_trusting = spec.is_built or spec.kind is TaskKind.CONTAINER
        fit.wants_network = spec.network
        fit.is_bare = is_bare
        fit.is_module = spec.kind is TaskKind.WASM
        return fit

    def measure_anew(self) -> None:
        """Something that jobs may ask for has come or gone here: what was measured before does not count."""
        for fit in self._fits.values():
            if fit is not None:
                fit.forget_here()
        self.on_news()

    def ask(self, key: bytes, words: tuple[str, ...]) -> None:
        """Ask a node for a description in the background, now and then, a few nodes at a time."""
        now = self.host.clock.now()
        if key in self._asking or len(self._asking) >= QUESTION_LANES:
            return
        if now - self._asked.get(key, -ASK_AGAIN_S) < ASK_AGAIN_S:
            return
        self._asked.pop(key, None)
        self._asked[key] = now
        if len(self._asked) > NODES_KNOWN_MAX:
            del self._asked[next(iter(self._asked))]
        self._asking[key] = None
        self.counters.asked_count += 1
        self.scope.spawn(self._ask(key, words), "ask-for-job")

    async def _ask(self, key: bytes, words: tuple[str, ...]) -> None:
        try:
            await self.resources.describe(key, words[:QUESTION_WORDS_MAX])
            self.on_news()
        except P2pcError:
            return  # it stays unknown, and may try
        finally:
            del self._asking[key]


def known_of(knowledge: Knowledge, wall_s: float, words: tuple[str, ...]) -> Known:
    """Return what a node said as expressions see it; `has` counts only with an answer about all words."""
    has = knowledge.attributes.get(HAS)
    there = has.value if has is not None and isinstance(has.value, tuple) else ()
    is_known = all(word in knowledge.words or word in there for word in words)
    return Known(knowledge.attributes, wall_s, has_is_known=is_known)


class JobFit:
    """What one job asks of nodes.  Satisfies `scheduler.stealing.Fit`."""

    def __init__(
        self, placement: Placement, job: JobEnvelope, requirement: Requirement | None, values: dict[str, Value]
    ) -> None:
        """Args:
        requirement: None when it is none that this build understands: the job fits nowhere.
        values: of ``job.*``.
        """
        self._placement = placement
        self._terms = job.terms
        self._is_own = job.submitter == placement.installation
        self._values = values
        self.requirement = requirement
        self.is_for_trusting = False
        """Packages have to be built, or a container is run: for those whom this node trusts only."""
        self.wants_network = False
        """Its tasks reach public addresses: on nodes only that give them a network."""
        self.is_bare = False
        """Its tasks want no sandbox: of others they run only where there is none."""
        self.is_module = False
        """Its tasks are WASM modules."""
        self._submitter = job.submitter
        self._verdicts: dict[bytes, tuple[Knowledge, float, bool | None, float]] = {}
        """Node → (what it rests on, until when it stands, whether it fits, rank)."""
        self._own_values: dict[str, Value] = {}
        self._here: tuple[bool, float] | None = None
        """Whether this node fits, and when that was measured."""
        self._own_rank = 0.0
        self._is_measuring = False
        self._sought = -SEEK_AGAIN_S
        """When the index was asked last."""
        asked = [] if requirement is None else features_asked([clause.expression for clause in requirement.clauses])
        self._mask = mask_of(asked)

    @property
    def mask(self) -> int:
        """Bits of the features that it asks for."""
        return self._mask

    @property
    def has_preference(self) -> bool:
        return bool(self._terms.prefer)

    def is_chosen(self, key: bytes, installation: bytes) -> bool:
        """Return whether --on and --not-on leave a node in."""
        on, not_on = self._terms.on, self._terms.not_on
        if key == LOCAL:
            key, installation = self._placement.own_key, self._placement.installation
        if key in not_on or installation in not_on:
            return False
        return not on or key in on or installation in on

    def may_have(self, key: bytes, installation: bytes) -> bool:
        if self.requirement is None or not self.is_chosen(key, installation):
            return False
        if key == LOCAL:
            return self.known_here() is True
        return self._verdict(key)[0] is not False

    def is_candidate(self, key: bytes) -> bool | None:
        """Return whether a node fits by what it said, or by its class while it has said nothing."""
        if self.requirement is None or not self.is_chosen(key, key):
            return False
        by_class = self._fits_class(key) if self._placement.resources.known.get(key) is None else None
        return False if by_class is False else by_class or self._verdict(key)[0]

    def _fits_class(self, key: bytes) -> bool | None:
        """Return what the class of a node says; None where it tells nothing of what is asked for."""
        bits = self._placement.class_of(key) if self._mask else None
        if bits is None or bits & self._mask & CLASS_MASK != self._mask & CLASS_MASK:
            return None if bits is None else False
        return True if self._mask <= CLASS_MASK else None

    def look_further(self) -> None:
        now = self._placement.host.clock.now()
        if self.requirement is not None and now - self._sought >= SEEK_AGAIN_S:
            self._sought = now
            self._placement.on_needs(self.requirement)

    def rank(self, key: bytes) -> float | None:
        if self.requirement is None:
            return None
        if key == LOCAL:
            return None if self.known_here() is None else self._own_rank
        return self._verdict(key)[1]

    def _verdict(self, key: bytes) -> tuple[bool | None, float | None]:
        """Return (whether it fits, how much it is preferred)."""
        assert self.requirement is not None
        placement = self._placement
        knowledge = placement.resources.known.get(key)
        if knowledge is None:
            placement.ask(key, self.requirement.words)
            # A class may be an hour old: what the node says itself decides, as soon as it has.
            return (False if self._fits_class(key) is False else None), None
        now = placement.host.clock.now()
        found = self._verdicts.get(key)
        if found is not None and found[0] is knowledge and now < found[1]:
            return found[2], found[3]
        known = known_of(knowledge, placement.host.clock.wall(), self.requirement.words)
        view = View(known.values, self._values)
        fits = self.requirement.fits(view)
        accepts = known.values.get(ACCEPTS)
        conditions = (accepts if isinstance(accepts, str) else "", placement.group_accepts)
        is_against = any(is_accepted(condition, known.values, self._values) is False for condition in conditions)
        if is_against or what_it_withholds(known.values, network=self.wants_network, bare=self.is_bare):
            fits = False
            if now - knowledge.heard_s >= REFUSED_S:  # its owner may have changed his mind
                placement.ask(key, self.requirement.words)
        if fits is None:
            placement.ask(key, self.requirement.words)
        rank = self.requirement.rank(view)
        self._verdicts.pop(key, None)
        self._verdicts[key] = (knowledge, now + VERDICT_S, fits, rank)
        if len(self._verdicts) > NODES_KNOWN_MAX:
            del self._verdicts[next(iter(self._verdicts))]
        return fits, rank

    def slots(self, key: bytes, slot_count: int) -> int:
        if self.requirement is None:
            return 1
        needs = self.requirement.needs
        if key == LOCAL:
            return slots_taken(needs, self._own_values, slot_count)
        values: dict[str, Value] = {}
        knowledge = self._placement.resources.known.get(key) if needs.mem_bytes or needs.gpus else None
        for name in ("mem.total", "gpu.count"):
            if knowledge is not None and name in knowledge.attributes:
                values[name] = knowledge.attributes[name].value
        return slots_taken(needs, values, slot_count)

    # --- this node --------------------------------------------------------------------------------

    def _is_welcome(self) -> bool:
        if self._is_own:
            return True
        if self._placement.is_stranger(self._submitter) and not (self.is_module and self._placement.is_fenced):
            return False
        if self.is_for_trusting and not self._placement.trusts(self._submitter):
            return False
        if self.is_bare and self._placement.is_fenced:
            return False
        return not self.wants_network or self._placement.gives_network

    def known_here(self) -> bool | None:
        age_s = self._age_s()
        if age_s >= OWN_AGE_S and not self._is_measuring:
            self._is_measuring = True
            self._placement.scope.spawn(self._measure_and_wake(), "measure")
        return None if self._here is None or age_s >= OWN_AGE_S_MAX else self._here[0]

    def _age_s(self) -> float:
        return OWN_AGE_S_MAX if self._here is None else self._placement.host.clock.now() - self._here[1]

    async def _measure_and_wake(self) -> None:
        try:
            await self._measure()
        finally:
            self._is_measuring = False
        self._placement.on_news()

    def forget_here(self) -> None:
        self._here = None

    async def fits_here(self) -> bool:
        return (await self._measure()) if self._age_s() >= OWN_AGE_S else self._here is not None and self._here[0]

    async def is_taken(self) -> bool:
        """Return whether this node takes the job by its conditions and by what its submitter may have here, whatever
        is free."""
        if not self._is_welcome():
            return False
        placement = self._placement
        names = [name for each in (placement.accepts, placement.group_accepts) for name in acceptance_names(each)]
        known = Known(await placement.resources.own((), names), placement.host.clock.wall())
        return self._is_own or placement.takes(known.values, self._values)

    async def _measure(self) -> bool:
        """Measure this node.  What it cannot tell of itself is not met: unknown is not enough to run."""
        placement, requirement = self._placement, self.requirement
        fits = requirement is not None and self.is_chosen(LOCAL, LOCAL) and self._is_welcome()
        if fits:
            assert requirement is not None
            conditions = (placement.accepts, placement.group_accepts)
            names = (*requirement.names, *(name for each in conditions for name in acceptance_names(each)))
            attributes = await placement.resources.own(requirement.words, names)
            known = Known(attributes, placement.host.clock.wall())
            view = View(known.values, self._values)
            fits = requirement.fits(view) is True
            if fits and not self._is_own:
                fits = placement.takes(known.values, self._values)
            self._own_rank = requirement.rank(view)
            self._own_values = known.values
            placement.counters.measured_count += 1
        self._here = (fits, placement.host.clock.now())
        return fits
