"""What people do with a simulated group: submit jobs, look things up, keep records, ask who is there.

A plan says all of it beforehand: pure, from settings and a generator.  `playing` carries it out.  Members are named by
fractions of the member list, so that a plan keeps its meaning with fewer nodes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

from p2pcompute.errors import UsageError
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import RECORD_TTL_S_MAX, RECORD_VALUE_BYTES_MAX
from p2pcompute.simulation.swf import read_swf

Kind: TypeAlias = Literal["bag", "swf", "dataflow", "lookups", "puts", "queries"]
Works: TypeAlias = Literal["fixed", "uniform", "lognormal", "pareto", "bimodal"]
Graph: TypeAlias = Literal["chain", "fan", "layered", "tree"]

HOUR_S: Final = 3600.0
TASKS_MAX: Final = 5_000_000
"""Tasks of one workload: what a plan holds in memory."""
ASKS_MAX: Final = 5_000_000
WORK_S_MAX: Final = 10_000_000
"""Mean work of a task: four months.  Tails are longer; their limits of time stay far below what a task may name."""

_Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class WorkloadSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table [[workload]] of a scenario.  `kind` chooses; a field that means nothing for it is refused."""

    kind: Annotated[Kind, Meta(description="bag: independent tasks, swf: a log of a real machine, dataflow: tasks that"
        " wait for others, lookups and puts: of the DHT, queries: peers that fit")] = "bag"  # fmt: skip
    start_s: Annotated[float, Meta(ge=0, description="when it begins, seconds from the start")] = 10.0

    jobs: Annotated[
        Annotated[int, Meta(ge=1, le=TASKS_MAX)] | None,
        Meta(
            description="bag, dataflow: jobs, one if none is named; swf: the first so many of the log, else all of it"
        ),
    ] = None
    jobs_per_hour: Annotated[
        float, Meta(ge=0, description="bag, dataflow: Poisson rate at which jobs arrive; 0: all at once")
    ] = 0.0
    owners: Annotated[int, Meta(ge=0, description="members that submit, in turn; 0: any member, at random")] = 0
    tasks: Annotated[int, Meta(ge=1, le=TASKS_MAX, description="bag, dataflow: of each job")] = 100
    retries: Annotated[int, Meta(ge=0, le=100, description="of a task that fails")] = 2
    verify: Annotated[bool, Meta(description="check what members compute; false: believe it")] = True
    work_s: Annotated[
        float, Meta(gt=0, le=WORK_S_MAX, description="bag, dataflow: mean seconds of a task on a core of speed 1")
    ] = 1.0
    works: Annotated[Works, Meta(description="bag, dataflow: how work is distributed; each has the mean work_s")] = (
        "fixed"
    )
    work_sigma: Annotated[float, Meta(gt=0, le=5, description="lognormal: sigma of ln work")] = 1.0
    work_alpha: Annotated[float, Meta(gt=1, le=20, description="pareto: tail index; below 2: infinite variance")] = 1.5
    long_share: Annotated[_Share, Meta(description="bimodal: share of long tasks")] = 0.1
    long_factor: Annotated[float, Meta(ge=1, description="bimodal: long tasks are so many times the others")] = 20.0

    graph: Annotated[Graph, Meta(description="dataflow: chain; fan: one, then width, then one, again and again;"
        " layered: random layers; tree: reduction of leaves")] = "layered"  # fmt: skip
    width: Annotated[int, Meta(ge=1, description="dataflow: tasks side by side (fan, layered)")] = 10
    fan_in: Annotated[int, Meta(ge=1, description="dataflow: tasks that one waits for (layered: at most; tree)")] = 2

    file: Annotated[str, Meta(description="swf: a log in the Standard Workload Format")] = ""
    time_scale: Annotated[float, Meta(gt=0, le=1000, description="swf: factor on times between submissions")] = 1.0
    work_scale: Annotated[float, Meta(gt=0, le=1000, description="swf: factor on run times")] = 1.0
    processors_max: Annotated[int, Meta(ge=1, description="swf: tasks that a job becomes, at most")] = 1000

    rate_per_s: Annotated[
        float, Meta(gt=0, le=100_000, description="lookups, puts, queries: Poisson rate over all members")
    ] = 1.0
    known_share: Annotated[_Share, Meta(description="lookups: share of ids of members; the rest are random")] = 0.5
    read_after_s: Annotated[float, Meta(gt=0, description="puts: mean time until a record is read (exponential)")] = (
        60.0
    )
    reads: Annotated[int, Meta(ge=0, le=100, description="puts: of each record, each by another member")] = 1
    value_bytes: Annotated[int, Meta(ge=8, le=RECORD_VALUE_BYTES_MAX, description="puts: of a record's value")] = 100
    ttl_s: Annotated[float, Meta(ge=1, le=RECORD_TTL_S_MAX, description="puts: life of a record")] = RECORD_TTL_S_MAX
    wanted: Annotated[int, Meta(ge=1, le=1000, description="queries: peers asked for")] = 3
    slots: Annotated[int, Meta(ge=0, description="queries: that each of them must have at least")] = 1

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) != _DEFAULTS[name] and (why := self.without_effect(name)):
                raise ValueError(why)
        if self.kind == "swf" and not self.file:
            raise ValueError("kind 'swf' needs a `file`")
        if self.kind in ("bag", "dataflow") and (self.jobs or 1) * self.tasks > TASKS_MAX:
            raise ValueError(f"{self.jobs or 1} jobs of {self.tasks} tasks are more than {TASKS_MAX} tasks")
        if self.kind == "dataflow" and self.graph == "tree" and self.fan_in < 2:
            raise ValueError("a tree needs `fan_in` of at least 2")

    def without_effect(self, name: str) -> str:
        """Why a field means nothing beside the others, also where its default is said; "" when it means something."""
        if self.kind not in (kinds := _KINDS.get(name, (self.kind,))):
            return f"`{name}` means nothing for kind {self.kind!r}, only for {', '.join(kinds)}"
        if self.works not in (choice := _CHOICES.get(name, (self.works,))):
            return f"`{name}` means nothing for works {self.works!r}, only for {', '.join(choice)}"
        return ""


_JOBS, _GRAPHS, _ASKS = ("bag", "dataflow"), ("dataflow",), ("lookups", "puts", "queries")
_KINDS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("jobs", "owners", "retries", "verify"), ("bag", "dataflow", "swf")),
    **dict.fromkeys(("jobs_per_hour", "tasks", "work_s", "works"), _JOBS),
    **dict.fromkeys(("work_sigma", "work_alpha", "long_share", "long_factor"), _JOBS),
    **dict.fromkeys(("graph", "width", "fan_in"), _GRAPHS),
    **dict.fromkeys(("file", "time_scale", "work_scale", "processors_max"), ("swf",)),
    "rate_per_s": _ASKS,
    "known_share": ("lookups",),
    **dict.fromkeys(("read_after_s", "reads", "value_bytes", "ttl_s"), ("puts",)),
    **dict.fromkeys(("wanted", "slots"), ("queries",)),
}
_CHOICES: Final[dict[str, tuple[Works, ...]]] = {
    "work_sigma": ("lognormal",), "work_alpha": ("pareto",), "long_share": ("bimodal",), "long_factor": ("bimodal",),
}  # fmt: skip
_DEFAULTS: Final = dict(zip(WorkloadSettings.__struct_fields__, WorkloadSettings.__struct_defaults__, strict=True))
assert set(_KINDS) == set(_DEFAULTS) - {"kind", "start_s"}


# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobPlan:
    """A job that somebody will submit."""

    at_s: float
    owner: float
    """Fraction of the member list."""
    works: tuple[float, ...]
    """Seconds at speed 1, by task."""
    needs: tuple[tuple[int, ...], ...] = ()
    """For each task those that must be done before, all with lower numbers; empty: no task waits for another."""
    retries: int = 2

    @property
    def work_s(self) -> float:
        """Of all tasks together, seconds at speed 1."""
        return math.fsum(self.works)

    @cached_property
    def critical_s(self) -> float:
        """Work on the longest path: no machine of speed 1 can make the job faster."""
        if not self.needs:
            return max(self.works)
        ends: list[float] = []
        for work, needs in zip(self.works, self.needs, strict=True):
            ends.append(work + max((ends[need] for need in needs), default=0.0))
        return max(ends)


@dataclass(frozen=True, slots=True)
class AskPlan:
    """A lookup, a put or a query."""

    at_s: float
    who: float
    """Fraction of the member list: who asks."""
    key: bytes = b""
    """lookups: a random key; empty: the id of member `about`.  puts: the salt."""
    about: float = 0.0
    reads: tuple[tuple[float, float], ...] = ()
    """puts: (seconds after the put, who reads), by time."""


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """Everything that a workload will do."""

    settings: WorkloadSettings
    jobs: tuple[JobPlan, ...] = ()
    """By time."""
    asks: tuple[AskPlan, ...] = ()
    """By time."""
    note: str = ""
    """What of a log is left out, in words; "" when nothing is."""


def plan(settings: WorkloadSettings, rng: random.Random, *, duration_s: float) -> WorkloadPlan:
    """Draw a workload.

    Args:
        duration_s: of the run; what would come later is left out.

    Raises:
        UsageError: a log cannot be read, or there would be too much.
    """
    match settings.kind:
        case "bag" | "dataflow":
            return WorkloadPlan(settings, jobs=tuple(_drawn_jobs(settings, rng, duration_s)))
        case "swf":
            jobs = tuple(_logged_jobs(settings, rng, duration_s))
            return WorkloadPlan(settings, jobs=jobs, note=_left_out(settings, len(jobs)))
        case "lookups" | "puts" | "queries":
            return WorkloadPlan(settings, asks=tuple(_asks(settings, rng, duration_s)))


def _drawn_jobs(settings: WorkloadSettings, rng: random.Random, duration_s: float) -> Iterator[JobPlan]:
    owners = _owners(settings, rng)
    draw = draw_work(settings, rng)
    at_s = settings.start_s
    for number in range(settings.jobs or 1):
        if settings.jobs_per_hour:
            at_s += rng.expovariate(settings.jobs_per_hour / HOUR_S)
        if at_s >= duration_s:
            return
        owner = owners[number % len(owners)] if owners else rng.random()
        needs = graph(settings, rng) if settings.kind == "dataflow" else ()
        works = tuple(draw() for _ in range(len(needs) or settings.tasks))
        yield JobPlan(at_s, owner, works, needs, settings.retries)


def _owners(settings: WorkloadSettings, rng: random.Random) -> list[float]:
    """Fractions of the member list, spread so that they are as many members; empty: any member submits."""
    return [(number + rng.random()) / settings.owners for number in range(settings.owners)]


def draw_work(settings: WorkloadSettings, rng: random.Random) -> Callable[[], float]:
    """Return what draws the work of one task, seconds at speed 1, with mean `work_s`."""
    mean_s = settings.work_s
    match settings.works:
        case "fixed":
            return lambda: mean_s
        case "uniform":
            return lambda: rng.uniform(0.0, 2 * mean_s)
        case "lognormal":
            mu = math.log(mean_s) - settings.work_sigma**2 / 2
            return lambda: rng.lognormvariate(mu, settings.work_sigma)
        case "pareto":
            least_s = mean_s * (settings.work_alpha - 1) / settings.work_alpha
            return lambda: least_s * rng.paretovariate(settings.work_alpha)
        case "bimodal":
            share, factor = settings.long_share, settings.long_factor
            short_s = mean_s / (1 - share + share * factor)
            return lambda: short_s * (factor if rng.random() < share else 1.0)


def graph(settings: WorkloadSettings, rng: random.Random) -> tuple[tuple[int, ...], ...]:
    """Draw a graph of `tasks` tasks: for each the ones that it waits for, by number, all below its own."""
    count, width, fan_in = settings.tasks, settings.width, settings.fan_in
    match settings.graph:
        case "chain":
            return tuple((number - 1,) if number else () for number in range(count))
        case "fan":
            return tuple(_fan_needs(number, width) for number in range(count))
        case "layered":
            return tuple(
                tuple(sorted(rng.sample(range(first - width, first), rng.randint(1, min(fan_in, width)))))
                if (first := number - number % width)
                else ()
                for number in range(count)
            )
        case "tree":
            return _tree(count, fan_in)


def _fan_needs(number: int, width: int) -> tuple[int, ...]:
    """Periods of width + 1 tasks: a joint, then `width` that wait for it; the next joint waits for all of them."""
    period, place = divmod(number, width + 1)
    joint = period * (width + 1)
    if place:
        return (joint,)
    return tuple(range(joint - width, joint)) if period else ()


def _tree(count: int, fan_in: int) -> tuple[tuple[int, ...], ...]:
    """A reduction with `count` tasks in all: leaves first; each inner task takes the oldest results not yet taken."""
    inner = (count - 1 + fan_in - 1) // fan_in if count > 1 else 0
    leaves = count - inner
    needs: list[tuple[int, ...]] = [()] * leaves
    taken = 0
    for number in range(leaves, count):
        needs.append(tuple(range(taken, min(taken + fan_in, number))))
        taken = min(taken + fan_in, number)
    return tuple(needs)


def _logged_jobs(settings: WorkloadSettings, rng: random.Random, duration_s: float) -> Iterator[JobPlan]:
    """A logged job of n processors and r seconds becomes n tasks of r seconds: its work, without its rigidity."""
    log = read_swf(settings.file).jobs
    owners = _owners(settings, rng)
    of_user: dict[int, float] = {}
    tasks = 0
    for job in log[: settings.jobs]:
        at_s = settings.start_s + (job.submit_s - log[0].submit_s) * settings.time_scale
        if at_s >= duration_s:
            return
        if owners:
            owner = owners[job.user % len(owners)]
        else:
            owner = of_user.get(job.user, -1.0)
            if owner < 0:
                owner = of_user[job.user] = rng.random()
        count = min(job.processors, settings.processors_max)
        tasks += count
        if tasks > TASKS_MAX:
            raise UsageError(f"{settings.file}: more than {TASKS_MAX} tasks", "", "lower jobs or processors_max")
        yield JobPlan(at_s, owner, (job.run_s * settings.work_scale,) * count, retries=settings.retries)


def _left_out(settings: WorkloadSettings, submitted: int) -> str:
    """Say what of a log is not submitted, and why."""
    log = read_swf(settings.file)
    chosen = len(log.jobs[: settings.jobs])
    reasons = {
        "never ran": log.left_out,
        f"beyond the first {settings.jobs}": len(log.jobs) - chosen,
        "come later than the hours": chosen - submitted,
    }
    texts = [f"{count} {reason}" for reason, count in reasons.items() if count]
    if not texts:
        return ""
    return f"{settings.file}: {submitted} of {len(log.jobs) + log.left_out} jobs submitted; {', '.join(texts)}"


def _asks(settings: WorkloadSettings, rng: random.Random, duration_s: float) -> Iterator[AskPlan]:
    if settings.rate_per_s * duration_s > ASKS_MAX:
        raise UsageError(
            f"{settings.rate_per_s:g} {settings.kind}/s over {duration_s:g} s are too many",
            f"{ASKS_MAX} are allowed in one workload", "lower rate_per_s or hours",
        )  # fmt: skip
    at_s = settings.start_s
    while (at_s := at_s + rng.expovariate(settings.rate_per_s)) < duration_s:
        who, about, key = rng.random(), rng.random(), rng.randbytes(DHT_ID_BYTES)
        if settings.kind == "lookups" and rng.random() < settings.known_share:
            key = b""
        reads: Sequence[tuple[float, float]] = ()
        if settings.kind == "puts":
            reads = sorted((rng.expovariate(1 / settings.read_after_s), rng.random()) for _ in range(settings.reads))
        yield AskPlan(at_s, who, key, about, tuple(reads))


assert set(get_args(Kind)) == {kind for kinds in _KINDS.values() for kind in kinds}
