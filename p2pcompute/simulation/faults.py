"""What goes wrong in a run, drawn from the seed.  `injection` plays it.

Each seed enables its own random subset of the kinds ("swarm"), because runs in which everything goes wrong at once hide
bugs that need a calm rest.

Source: Groce et al., "Swarm Testing", ISSTA 2012; the kinds after FoundationDB's and TigerBeetle's simulators.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal, get_args

from msgspec import Meta, Struct

from p2pcompute.errors import UsageError
from p2pcompute.simulation.storage import SYNC_S

FaultKind = Literal[
    "crash", "power-loss", "stop", "crash-loop", "mass-kill", "disk-loss", "torn-tail", "old-snapshot", "disk-full",
    "io-errors", "slow-disk", "slow", "memory", "clock-offset", "clock-drift", "clock-step", "suspend",
    "partition", "partition-one-way", "partition-partial", "partition-flapping", "loss", "loss-burst",
    "delay", "bandwidth", "duplicate", "reorder", "ip-change", "version-skew", "cancel", "retry",
]  # fmt: skip
KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)

OWNER_SHARE: Final = 0.35
"""Share of the faults of one node that are aimed at a node that owns a job: chance meets those too seldom."""
_DURATIONS_S: Final = (0.05, 1.0, 4.0, 10.0, 40.0, 120.0)
_RATES: Final = (0.0, 0.3, 1.0, 1.0, 2.0)
"""How much goes wrong in one seed of a swarm, as a factor on the rate."""
_FORGETTING: Final = ("disk-loss", "torn-tail", "old-snapshot")


class FaultSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `faults` of a scenario."""

    per_hour: Annotated[float, Meta(ge=0, le=100_000, description="mean number of faults per hour, all nodes")] = 0.0
    kinds: Annotated[tuple[FaultKind, ...], Meta(description="which may happen; empty: all")] = ()
    swarm: Annotated[bool, Meta(description="each seed has its own random subset of the kinds, and its own rate")] = (
        True
    )
    after_s: Annotated[float, Meta(ge=0, description="nothing goes wrong before this time, seconds")] = 5.0
    duration_s_max: Annotated[float, Meta(gt=0, description="longest fault, seconds")] = 180.0
    only: Annotated[
        tuple[Annotated[int, Meta(ge=0, description="the number of a fault, from 0; which kinds happen is"
            f" faults.kinds: {', '.join(KINDS)}")], ...],
        Meta(description="numbers of the faults that happen; empty: all of them"),
    ] = ()  # fmt: skip
    sync_s: Annotated[float, Meta(gt=0, description="mean time of a disk to sync, seconds")] = SYNC_S
    task_failure: Annotated[float, Meta(ge=0, le=1, description="probability that an attempt of a task fails")] = 0.0
    task_death: Annotated[float, Meta(ge=0, le=1, description="probability that its process dies")] = 0.0
    conditions: Annotated[
        bool, Meta(description="each seed has its own disks, packet loss, failing and dying tasks, often none")
    ] = False


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    number: int
    at_s: float
    kind: FaultKind
    duration_s: float
    who: tuple[float, ...]
    """The victim as a fraction of the list of nodes, so that it means something in a smaller mesh too."""
    amount: float
    """How bad it is, 0 to 1; each kind has its own scale."""
    is_at_owner: bool = False
    """The fraction is of the nodes that own jobs, if any do."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is wrong for the whole run."""

    sync_s: float
    task_failure: float
    task_death: float
    packet_loss: float = 0.0


def draw_conditions(settings: FaultSettings, rng: random.Random) -> Conditions:
    """Return what a seed has to live with."""
    if not settings.conditions:
        return Conditions(settings.sync_s, settings.task_failure, settings.task_death)
    return Conditions(
        sync_s=rng.choice([SYNC_S, SYNC_S, 10 * SYNC_S, 100 * SYNC_S]),
        task_failure=rng.choice([0.0, 0.0, 0.0, 0.05, 0.3]),
        task_death=rng.choice([0.0, 0.0, 0.0, 0.02, 0.15]),
        packet_loss=rng.choice([0.0, 0.0, 0.01, 0.1]),
    )


def draw_faults(settings: FaultSettings, rng: random.Random, *, duration_s: float) -> list[Fault]:
    """Return what goes wrong, in order of time.

    The numbers do not depend on `settings.only`.

    Raises:
        UsageError: `settings.only` names a fault that there is not.
    """
    kinds = list(settings.kinds or KINDS)
    rate = settings.per_hour / 3600.0
    if settings.swarm:
        rate *= rng.choice(_RATES)
        kinds = sorted(rng.sample(kinds, rng.randint(1, len(kinds))))
    faults: list[Fault] = []
    at_s = settings.after_s
    while rate > 0 and (at_s := at_s + rng.expovariate(rate)) < duration_s:
        fault = Fault(
            number=len(faults),
            at_s=at_s,
            kind=rng.choice(kinds),
            duration_s=min(settings.duration_s_max, rng.choice(_DURATIONS_S) * rng.uniform(0.5, 1.5)),
            who=(rng.random(),),
            amount=rng.random(),
            is_at_owner=rng.random() < OWNER_SHARE,
        )
        if fault.kind in _FORGETTING:
            fault = replace(fault, is_at_owner=False)  # an owner whose disk forgets loses its jobs, and so the run
        faults.append(fault)
    if settings.only and max(settings.only) >= len(faults):
        numbers = f"0 to {len(faults) - 1}" if faults else "none"
        raise UsageError(
            f"there is no fault {max(settings.only)}", f"numbers of the faults of this seed: {numbers}",
            "see them with --events; kinds are chosen by faults.kinds", code="scenario",
        )  # fmt: skip
    return [fault for fault in faults if not settings.only or fault.number in settings.only]
