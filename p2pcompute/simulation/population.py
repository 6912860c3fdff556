"""Who is up when, and on which machine: churn and heterogeneity of a simulated group.

All of it is pure: the generator comes in, iterators go out, nothing is kept per node but what its iterator holds.

* `draw_events` draws what hits many nodes at once: a mass exit, outages of sites.
* `sessions` says when one node is up and how each session ends, with those events, flash crowd and day wave in it.
* `machine` says what the node runs on.

Sessions and gaps alternate.  At time 0 the group is in equilibrium: a node is up with probability
A = E[U] / (E[U] + E[D]), and in the middle of a session, whose length is drawn by the length-biased law.  That law has
a closed form for both families, so no table is inverted.  Every measured shape is below 1: who has been up for long
stays for longer, which an exponential model cannot show.

Source: renewal theory (Feller II, XI.4) for the equilibrium; each fit and each figure of hosts beside its number.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, get_args

from msgspec import Meta, Struct

from p2pcompute.limits import MIB
from p2pcompute.simulation.avt import read_avt, replay
from p2pcompute.simulation.runner import OVERHEAD_S

Preset: TypeAlias = Literal["none", "skype", "overnet", "kad", "ipfs", "desktop", "planetlab", "lanl", "custom"]
Family: TypeAlias = Literal["weibull", "lognormal"]
Leaving: TypeAlias = Literal["stop", "crash", "silent"]
Speeds: TypeAlias = Literal["same", "seti", "einstein", "lhc", "lognormal"]

HOUR_S: Final = 3600.0
_NORMAL: Final = NormalDist()
_TAIL: Final = 1e-12
"""Probabilities nearer to 0 or 1 are taken as this far from them: their normal quantile is 7."""
_WARM_UP_CYCLES: Final = 20
_WARM_UP_DAYS: Final = 2
"""With a day wave the equilibrium depends on the hour; it is reached by running so long before time 0."""


class NodeClass(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some of the nodes, with sessions of their own."""

    share: Annotated[float, Meta(ge=0, le=1, description="of all nodes")] = 0.1
    sessions: Annotated[Preset, Meta(description="their session model; none: always up")] = "none"
    time_scale: Annotated[float, Meta(ge=1e-5, le=1000, description="factor on their session and gap lengths")] = 1.0
    once: Annotated[bool, Meta(description="they come for one session and never again")] = False


class PopulationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `population` of a scenario."""

    sessions: Annotated[Preset, Meta(description="session model, a published fit; none: all are always up")] = "none"
    family: Annotated[Family, Meta(description="which fit of it; for custom: what `up` and `down` are")] = "weibull"
    up: Annotated[
        tuple[float, float] | None,
        Meta(description="custom sessions: (shape, scale in hours) or (mu, sigma of ln hours)"),
    ] = None
    down: Annotated[tuple[float, float] | None, Meta(description="custom gaps between sessions, as `up`")] = None
    time_scale: Annotated[float, Meta(ge=1e-5, le=1000, description="factor on session and gap lengths")] = 1.0
    correlation: Annotated[
        float, Meta(ge=0, lt=1, description="of the normal scores of a node's consecutive session lengths")
    ] = 0.0
    classes: Annotated[tuple[NodeClass, ...], Meta(description="nodes with sessions of their own")] = ()
    owners_stay: Annotated[bool, Meta(description="who has submitted a job does not leave any more")] = False
    graceful: Annotated[float, Meta(ge=0, le=1, description="share of sessions that end with a goodbye")] = 0.5
    silent: Annotated[
        float, Meta(ge=0, le=1, description="share of sessions that end in silence (power, link); the rest crash")
    ] = 0.1
    trace: Annotated[str, Meta(description="file of an availability trace (.avt, .avt.gz) instead of a model")] = ""
    trace_from_hours: Annotated[float, Meta(ge=0, description="hours into the trace at which the run starts")] = 0.0

    day_amplitude: Annotated[
        float, Meta(ge=0, le=0.95, description="of the rates of coming (high by day) and going (high by night)")
    ] = 0.0
    day_hours: Annotated[float, Meta(gt=0, description="length of a day, hours")] = 24.0
    day_peak_hour: Annotated[float, Meta(ge=0, description="local hour of the day with most arrivals")] = 15.0
    sites: Annotated[int, Meta(ge=1, le=100_000, description="places over which the nodes are spread evenly")] = 1
    zones: Annotated[
        tuple[float, ...], Meta(description="local hour at time 0 of each site, repeated; empty: evenly over the day")
    ] = ()

    flash_share: Annotated[float, Meta(ge=0, le=1, description="flash crowd: share of nodes that first come then")] = (
        0.0
    )
    flash_at_hours: Annotated[float, Meta(ge=0, description="when the flash crowd comes, hours")] = 0.0
    exit_share: Annotated[float, Meta(ge=0, le=1, description="mass exit: share of nodes that leave at once")] = 0.0
    exit_at_hours: Annotated[float, Meta(ge=0, description="when they leave, hours")] = 0.0
    exit_hours: Annotated[float, Meta(ge=0, description="how long they stay away, hours; 0: for good")] = 0.0
    outages_per_day: Annotated[float, Meta(ge=0, le=10_000, description="outages of each site per 24 hours")] = 0.0
    outage_minutes: Annotated[float, Meta(gt=0, description="mean length of an outage (exponential), minutes")] = 10.0

    speeds: Annotated[Speeds, Meta(description="log-normal speed of machines, median 1, sigma of a BOINC project")] = (
        "einstein"
    )
    speed_sigma: Annotated[float, Meta(ge=0, le=3, description="speeds = lognormal: sigma of the whole machine")] = 0.87
    cores: Annotated[int, Meta(ge=0, le=1024, description="of each machine; 0: drawn")] = 0
    mem_gib: Annotated[float, Meta(ge=0, description="of each machine, GiB; 0: drawn")] = 0.0
    overhead_s: Annotated[
        float, Meta(ge=0, le=60, description="what a machine adds to every task, seconds; a command needs more")
    ] = OVERHEAD_S

    def __post_init__(self) -> None:
        custom = [self.sessions, *(one.sessions for one in self.classes)].count("custom")
        if bool(custom) != (self.up is not None and self.down is not None) or (self.up is None) != (self.down is None):
            raise ValueError("`up` and `down` go with sessions = 'custom', and it needs both")
        for key, pair in (("up", self.up), ("down", self.down)):
            is_log = self.family == "lognormal"
            if pair is not None and not (pair[1] > 0 and (is_log or pair[0] > 0) and all(map(math.isfinite, pair))):
                need = "sigma above 0" if is_log else "shape and scale above 0"
                raise ValueError(f"`{key}` cannot be {list(pair)}: a {self.family} law has {need}")
        for name in (self.sessions, *(one.sessions for one in self.classes)):
            if name not in ("none", "custom") and self.family not in FITS[name]:
                raise ValueError(f"`family`: there is no {self.family} fit of {name!r}, only {', '.join(FITS[name])}")
        if self.graceful + self.silent > 1:
            raise ValueError("`graceful` and `silent` are shares of one whole: together at most 1")
        if sum(one.share for one in self.classes) > 1 + 1e-9:
            raise ValueError("the shares of the `classes` are more than 1 together")
        if self.trace and (self.sessions != "none" or self.classes or self.correlation or self.day_amplitude):
            raise ValueError(
                "`trace` replaces the session model, classes, correlation and day wave: give one or the other"
            )
        if self.trace_from_hours and not self.trace:
            raise ValueError("`trace_from_hours` goes with `trace`")


# --- how long sessions and gaps last --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weibull:
    """P(X > x) = exp(−(x / scale)^shape)."""

    shape: float
    scale_s: float

    @property
    def mean_s(self) -> float:
        return self.scale_s * math.gamma(1 + 1 / self.shape)

    def quantile(self, z: float) -> float:
        """The length whose probability is that of the normal score `z`."""
        return self.scale_s * math.pow(-math.log(max(_NORMAL.cdf(-z), _TAIL)), 1 / self.shape)

    def score(self, length_s: float) -> float:
        """The normal score of a length: inverse of `quantile`."""
        left = math.exp(-((length_s / self.scale_s) ** self.shape))
        return -_NORMAL.inv_cdf(min(max(left, _TAIL), 1 - _TAIL))

    def covering(self, rng: random.Random) -> float:
        """Length of the one that covers a given moment: density ∝ x·f(x), (X / scale)^shape ~ Gamma(1 + 1 / shape)."""
        return self.scale_s * math.pow(rng.gammavariate(1 + 1 / self.shape, 1.0), 1 / self.shape)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """ln X is normal with mean `mu` (X in seconds) and standard deviation `sigma`."""

    mu: float
    sigma: float

    @property
    def mean_s(self) -> float:
        return math.exp(self.mu + self.sigma**2 / 2)

    def quantile(self, z: float) -> float:
        """The length whose probability is that of the normal score `z`."""
        return math.exp(self.mu + self.sigma * z)

    def score(self, length_s: float) -> float:
        """The normal score of a length: inverse of `quantile`."""
        return (math.log(length_s) - self.mu) / self.sigma

    def covering(self, rng: random.Random) -> float:
        """Length of the one that covers a given moment: density ∝ x·f(x), log-normal again with mean mu + sigma²."""
        return math.exp(rng.gauss(self.mu + self.sigma**2, self.sigma))


Law: TypeAlias = Weibull | LogNormal
Pair: TypeAlias = tuple[float, float]

FITS: Final[dict[str, dict[Family, tuple[Pair, Pair]]]] = {
    "skype": {"weibull": ((0.64, 10.86), (0.63, 9.48)), "lognormal": ((1.60, 1.57), (1.40, 1.73))},
    "overnet": {"weibull": ((0.85, 2.04), (0.44, 2.98)), "lognormal": ((0.19, 0.98), (0.08, 1.80))},
    "kad": {"weibull": ((0.615, 169.5 / 60), (0.476, 413.7 / 60))},
    "ipfs": {"weibull": ((0.61, 3.66), (0.476, 413.7 / 60))},
    "desktop": {"weibull": ((0.45, 4.16), (0.51, 0.74)), "lognormal": ((0.30, 2.20), (-1.02, 1.27))},
    "planetlab": {"weibull": ((0.33, 19.35), (0.36, 5.59)), "lognormal": ((1.44, 2.86), (0.40, 2.45))},
    "lanl": {"weibull": ((0.48, 816.6), (0.58, 2.18)), "lognormal": ((5.56, 2.39), (0.05, 1.42))},
}
"""(sessions, gaps), each (shape, scale in hours) or (mu, sigma of ln hours).

skype, overnet, desktop (nd07cpu), planetlab (pl05), lanl (lanl05): Javadi, Kondo, Iosup, Epema, "The Failure Trace
Archive", JPDC 2013, as OpenDC carries the fits.  skype is of supernodes, seen every 30 minutes: optimistic; take
`time_scale` 0.25 to 0.4 for ordinary peers.
kad: Steiner et al., RR-07-205 (KAD), the later crawl, as PeerfactSim's KadChurnModel carries it.
ipfs: sessions from two quantiles of the DHT's nodes in 2022 (probe-lab RFM2: half at most 2 h, 80 % at most 8 h), a fit
of our own; no gaps were published: those are of kad.
"""
assert set(FITS) | {"none", "custom"} == set(get_args(Preset))


def laws(
    sessions: Preset,
    *,
    family: Family = "weibull",
    time_scale: float = 1.0,
    up: Pair | None = None,
    down: Pair | None = None,
) -> tuple[Law, Law] | None:
    """The laws of sessions and gaps of a preset; None for nodes that are always up.

    Args:
        up, down: those of "custom".
    """
    if sessions == "none":
        return None
    if sessions == "custom":
        assert up is not None and down is not None
        pairs = (up, down)
    else:
        pairs = FITS[sessions][family]
    unit_s = HOUR_S * time_scale
    if family == "weibull":
        return Weibull(pairs[0][0], pairs[0][1] * unit_s), Weibull(pairs[1][0], pairs[1][1] * unit_s)
    unit = math.log(unit_s)
    return LogNormal(pairs[0][0] + unit, pairs[0][1]), LogNormal(pairs[1][0] + unit, pairs[1][1])


def _laws(settings: PopulationSettings, chosen: NodeClass | None) -> tuple[Law, Law] | None:
    one: PopulationSettings | NodeClass = settings if chosen is None else chosen
    return laws(one.sessions, family=settings.family, time_scale=one.time_scale, up=settings.up, down=settings.down)


class _Wave:
    """How fast nodes of a site come and go as the day goes by: rates 1 ± amplitude · cos(day)."""

    def __init__(self, settings: PopulationSettings, site: int) -> None:
        self.amplitude = settings.day_amplitude
        self._turn = math.tau / (settings.day_hours * HOUR_S)
        zones = settings.zones or [settings.day_hours * number / settings.sites for number in range(settings.sites)]
        self._peak_s = (settings.day_peak_hour - zones[site % len(zones)]) * HOUR_S

    def coming(self, since_s: float, gap_s: float) -> float:
        """When a gap ends that began at `since_s` and lasts `gap_s` at the mean rate."""
        return self._after(since_s, gap_s, self.amplitude)

    def going(self, since_s: float, length_s: float) -> float:
        """When a session ends that began at `since_s` and lasts `length_s` at the mean rate."""
        return self._after(since_s, length_s, -self.amplitude)

    def _after(self, since_s: float, amount_s: float, amplitude: float) -> float:
        """Solve ∫ 1 + a·cos over [since, result] = amount by bisection; the integrand is above 0."""
        if not amplitude:
            return since_s + amount_s
        swing_s = amplitude / self._turn
        goal = since_s + amount_s + swing_s * math.sin(self._turn * (since_s - self._peak_s))
        low, high = goal - abs(swing_s), goal + abs(swing_s)
        for _ in range(60):
            middle = (low + high) / 2
            if middle + swing_s * math.sin(self._turn * (middle - self._peak_s)) < goal:
                low = middle
            else:
                high = middle
        return max(since_s, high)


# --- when a node is up ----------------------------------------------------------------------------


class Session(NamedTuple):
    """One session of a node."""

    begin_s: float
    end_s: float
    """May be infinite: it never leaves."""
    leaving: Leaving
    """How it ends: a graceful stop, a crash whose machine resets its connections, or silence."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that takes many nodes away at once."""

    kind: Literal["mass exit", "outage"]
    at_s: float
    until_s: float
    """When they may be up again; infinite: never."""
    share: float
    """Probability with which it hits a node of `site`."""
    site: int | None = None
    """None: of all sites."""


def draw_events(settings: PopulationSettings, rng: random.Random, *, duration_s: float) -> list[Event]:
    """Draw what hits many nodes at once within `duration_s`, in order of time."""
    events: list[Event] = []
    if settings.exit_share:
        at_s = settings.exit_at_hours * HOUR_S
        until_s = at_s + settings.exit_hours * HOUR_S if settings.exit_hours else math.inf
        events.append(Event("mass exit", at_s, until_s, settings.exit_share))
    if settings.outages_per_day:
        for site in range(settings.sites):
            at_s = 0.0
            while (at_s := at_s + rng.expovariate(settings.outages_per_day / (24 * HOUR_S))) < duration_s:
                away_s = rng.expovariate(1 / (settings.outage_minutes * 60))
                events.append(Event("outage", at_s, at_s + away_s, 1.0, site))
    return sorted(events, key=lambda event: event.at_s)


def draw_rows(settings: PopulationSettings, rng: random.Random, nodes: int) -> list[int]:
    """Draw the line of the trace for each node, each line at most once when there are enough; empty without a trace."""
    if not settings.trace:
        return []
    count = len(read_avt(settings.trace).rows)
    return rng.sample(range(count), nodes) if count >= nodes else rng.choices(range(count), k=nodes)


def trace_note(settings: PopulationSettings) -> str:
    """Say that the run does not start where its settings say, as the trace is shorter; "" when it does."""
    from_s = settings.trace_from_hours * HOUR_S
    if not from_s or from_s < (length_s := (trace := read_avt(settings.trace)).end_s - trace.begin_s):
        return ""
    return (
        f"trace_from_hours = {settings.trace_from_hours:g} is behind the end of the trace, which has "
        f"{length_s / HOUR_S:.3g} h: it began again {int(from_s // length_s)} times, and the run starts "
        f"{from_s % length_s / HOUR_S:.3g} h into it"
    )


def sessions(
    settings: PopulationSettings,
    rng: random.Random,
    node: int,
    events: Sequence[Event] = (),
    *,
    row: int | None = None,
) -> Iterator[Session]:
    """When a node is up, in order of time, without overlap; may have no end.

    Args:
        rng: of this node and this purpose.
        node: its number, from 0.
        events: of `draw_events`, the same for all nodes.
        row: of `draw_rows`, the line of a trace that it replays; None: any.
    """
    site = node % settings.sites
    away = [event for event in events if event.site in (None, site) and rng.random() < event.share]
    for begin_s, end_s, cause in _without(_own_sessions(settings, rng, site, row), away):
        if cause is not None and cause.kind == "outage":
            yield Session(begin_s, end_s, "silent")
        else:
            yield Session(begin_s, end_s, _leaving(settings, rng))


def _leaving(settings: PopulationSettings, rng: random.Random) -> Leaving:
    drawn = rng.random()
    if drawn < settings.graceful:
        return "stop"
    return "silent" if drawn < settings.graceful + settings.silent else "crash"


def _own_sessions(
    settings: PopulationSettings, rng: random.Random, site: int, row: int | None = None
) -> Iterator[Pair]:
    """Sessions of one node by its model or trace alone."""
    is_late = rng.random() < settings.flash_share
    since_s = settings.flash_at_hours * HOUR_S if is_late else 0.0
    if settings.trace:
        trace = read_avt(settings.trace)
        scale = settings.time_scale
        from_s = settings.trace_from_hours * HOUR_S
        if row is None:
            row = rng.randrange(len(trace.rows))
        for begin_s, end_s in replay(trace, row, from_s=from_s):
            if end_s * scale > since_s:
                yield max(begin_s * scale, since_s), end_s * scale
        return
    chosen = _class_of(settings, rng)
    pair = _laws(settings, chosen)
    if pair is None:
        yield since_s, math.inf
        return
    wave = _Wave(settings, site)
    if is_late:
        found = _fresh(pair, rng, settings.correlation, wave, since_s, rng.gauss(0, 1))
    else:
        found = _from_equilibrium(pair, rng, settings.correlation, wave, settings.day_hours * HOUR_S)
    for session in found:
        yield session
        if chosen is not None and chosen.once:
            return


def _class_of(settings: PopulationSettings, rng: random.Random) -> NodeClass | None:
    drawn = rng.random()
    for one in settings.classes:
        drawn -= one.share
        if drawn < 0:
            return one
    return None


def _fresh(
    pair: tuple[Law, Law], rng: random.Random, correlation: float, wave: _Wave, now_s: float, score: float
) -> Iterator[Pair]:
    """Sessions and gaps from a first session on that begins now and has this normal score.

    The scores of consecutive sessions are an autoregressive series, so that every length has the law of the model and
    neighbours resemble one another (Stutzbach & Rejaie 2006 found that they do).
    """
    up, down = pair
    fresh = math.sqrt(1 - correlation**2)
    while True:
        end_s = wave.going(now_s, up.quantile(score))
        yield now_s, end_s
        now_s = wave.coming(end_s, down.quantile(rng.gauss(0, 1)))
        score = correlation * score + fresh * rng.gauss(0, 1)


def _from_equilibrium(
    pair: tuple[Law, Law], rng: random.Random, correlation: float, wave: _Wave, day_s: float
) -> Iterator[Pair]:
    """Sessions from time 0 on, as if they had been going on for ever."""
    up, down = pair
    cycle_s = up.mean_s + down.mean_s
    now_s = -min(_WARM_UP_DAYS * day_s, _WARM_UP_CYCLES * cycle_s) if wave.amplitude else 0.0
    if rng.random() * cycle_s < up.mean_s:
        length_s = up.covering(rng)
        end_s = wave.going(now_s, length_s * rng.random())
        if end_s > 0:
            yield max(0.0, now_s), end_s
        now_s = wave.coming(end_s, down.quantile(rng.gauss(0, 1)))
        score = correlation * up.score(length_s) + math.sqrt(1 - correlation**2) * rng.gauss(0, 1)
    else:
        now_s = wave.coming(now_s, down.covering(rng) * rng.random())
        score = rng.gauss(0, 1)
    for begin_s, end_s in _fresh(pair, rng, correlation, wave, now_s, score):
        if end_s > 0:
            yield max(0.0, begin_s), end_s


def _without(own: Iterator[Pair], away: Sequence[Event]) -> Iterator[tuple[float, float, Event | None]]:
    """Cut out of a node's sessions what it is away; each piece with the event that ended it, None if none did."""
    first = 0
    for begin_s, end_s in own:
        while first < len(away) and away[first].until_s <= begin_s:
            first += 1  # sessions ascend: it matters for no later one
        now_s = begin_s
        for event in away[first:]:
            if event.at_s >= end_s:
                break
            if event.until_s <= now_s:
                continue
            if event.at_s > now_s:
                yield now_s, event.at_s, event
            now_s = event.until_s
        if now_s == math.inf:
            return  # it never comes back
        if now_s < end_s:
            yield now_s, end_s, None


# --- on which machine -----------------------------------------------------------------------------

SPEED_SIGMA: Final[dict[str, float]] = {"seti": 0.99, "einstein": 0.87, "lhc": 0.65}
"""Of ln(CPU speed of a whole host).  Source: host statistics of BOINC projects, 2016: SETI@home (3.50 million hosts of
all time, mu 1.27 of ln GFLOPS), Einstein@home (62,800 hosts, mu 2.37), LHC@home.  The medians are normalised away."""

CORES: Final[tuple[tuple[int, float], ...]] = (
    (1, 0.05), (2, 0.20), (4, 0.40), (6, 0.10), (8, 0.17), (12, 0.03), (16, 0.05),
)  # fmt: skip
"""(cores, share of machines): an assumption, desktop and laptop computers; mean 5.2."""

_MEM_PER_CORE_GIB: Final = 1.8
_MEM_SIGMA: Final = 0.5
"""Memory per core is log-normal: an assumption whose mean per machine is that of BOINC hosts, 11.4 GB (Anderson,
"BOINC: A Platform for Volunteer Computing", 2020)."""
_MEM_GIB_MIN: Final = 0.5


@dataclass(frozen=True, slots=True)
class MachineTraits:
    """What a node runs on."""

    speed: float
    """Of one core; the median machine has 1."""
    cores: int
    mem_bytes: int


def machine(settings: PopulationSettings, rng: random.Random) -> MachineTraits:
    """Draw a node's machine.

    The measured spread is that of whole hosts; it is split into that of the core count and that of one core's speed,
    taken as independent of it, so that the host's total keeps its sigma.
    """
    cores = settings.cores or rng.choices([count for count, _ in CORES], [share for _, share in CORES])[0]
    sigma = settings.speed_sigma if settings.speeds == "lognormal" else SPEED_SIGMA.get(settings.speeds, 0.0)
    of_cores = 0.0 if settings.cores else _log_variance_of_cores()
    speed = math.exp(rng.gauss(0, 1) * math.sqrt(max(0.0, sigma**2 - of_cores)))
    mem_gib = settings.mem_gib or max(_MEM_GIB_MIN, cores * _MEM_PER_CORE_GIB * math.exp(rng.gauss(0, _MEM_SIGMA)))
    return MachineTraits(speed, cores, int(mem_gib * 1024 * MIB))


def _log_variance_of_cores() -> float:
    mean = sum(share * math.log(count) for count, share in CORES)
    return sum(share * (math.log(count) - mean) ** 2 for count, share in CORES)
