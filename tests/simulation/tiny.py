"""A tiny experiment for tests of scenarios and studies: no nodes, a few figures, seeds that fail on demand."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from msgspec import Meta, Struct

from p2pcompute.simulation.result import RunResult, Watch
from p2pcompute.simulation.scenario import EXPERIMENTS, Experiment, Scenario


class Faults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the real one, for shrinking."""

    per_hour: float = 24.0
    only: tuple[int, ...] = ()


class Work(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[workload]]."""

    kind: Literal["bag", "puts"] = "bag"
    tasks: Annotated[int, Meta(ge=1, description="of each job")] = 10


class TinySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the tiny experiment takes."""

    nodes: Annotated[int, Meta(ge=1, le=1000, description="how many nodes")] = 4
    hours: float = 0.1
    loss: Annotated[float, Meta(ge=0, lt=1, description="share of packets lost")] = 0.0
    mode: Literal["fine", "fail", "raise", "die"] = "fine"
    bad_seeds: tuple[int, ...] = ()
    """Seeds in which `mode` happens."""
    note: str = ""
    span: tuple[float, float] | None = None
    workload: tuple[Work, ...] = ()
    faults: Faults = Faults()

    def __post_init__(self) -> None:
        if self.nodes == 13:
            raise ValueError("13 nodes bring bad luck")


GUILTY = (3, 17)
"""The faults that make mode "fail" fail, with at least 3 nodes and 2 tasks."""
FAULTS = 24


def run_tiny(scenario: Scenario, seed: int, *, until_s: float | None = None, watch: Watch | None = None) -> RunResult:
    settings = scenario.settings
    assert isinstance(settings, TinySettings)
    count = FAULTS if settings.faults.per_hour else 0
    numbers = [number for number in range(count) if not settings.faults.only or number in settings.faults.only]
    for number in numbers:
        if watch is not None:
            watch.record({"t": float(number), "kind": "fault", "node": f"node-{number % 2}", "fault": number})
    if watch is not None:
        watch.progress(360.0, 0.0)
    problems: list[str] = []
    if seed in settings.bad_seeds:
        if settings.mode == "raise":
            raise ValueError(f"seed {seed} cannot be run")
        if settings.mode == "die":
            os._exit(9)
        is_big = settings.nodes >= 3 and all(work.tasks >= 2 for work in settings.workload)
        if settings.mode == "fail" and set(GUILTY) <= set(numbers) and is_big:
            problems = [f"{settings.nodes}.5 s: lost-task: task 7 has gone"]
        elif settings.mode == "fail" and len(numbers) == 1:
            problems = ["1.0 s: another: not what is looked for"]
    return RunResult(
        scenario=scenario.name,
        seed=seed,
        nodes=settings.nodes,
        trace_hash=f"{seed:02x}{len(numbers):02x}",
        events=100,
        messages=10,
        wall_s=0.5,
        simulated_s=360.0 if until_s is None else until_s,
        metrics={"value": seed + 10.0 * settings.loss, **({"rare": 1.0} if seed == 1 else {})},
        fired={"crash": len(numbers)},
        problems=tuple(problems),
        notes=("nothing was submitted",) if settings.note == "idle" else (),
    )


EXPERIMENTS["tiny"] = Experiment("tests.simulation.tiny:TinySettings", "tests.simulation.tiny:run_tiny")
