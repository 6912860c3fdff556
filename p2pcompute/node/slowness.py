"""Why a job that runs is not done sooner: what was measured of it, compared.  Pure.

Each reason comes with its evidence, and is left out where there is none: that of two nodes one is the slower is said
from tasks of this job that ended on both, that files are on the way by the node that waits for them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from p2pcompute.resources.explaining import size_text

SLOW_FACTOR: Final = 2.0
"""A node whose tasks take so many times as long as elsewhere is a slow one."""
SLOW_RUNS_MIN: Final = 2
"""Tasks that must have ended on a node before its speed is spoken of."""
SLOW_S_MIN: Final = 0.05
"""What is shorter on average is not compared: starting counts for more."""
SMALL_S: Final = 0.01
"""Tasks that take less on average are small ones."""
SMALL_TASKS_MIN: Final = 100
RETRIED_SHARE: Final = 0.05
"""Of all attempts, from which repeated ones are spoken of."""
TAIL_TASKS: Final = 5
OVERLOAD: Final = 1.5
"""Runnable processes for each core, from which a machine is busy with more than its tasks."""


@dataclass(frozen=True, slots=True)
class Slowness:
    """One reason why it takes so long."""

    code: str
    """unconfirmed, disputed, checks, limit, nodes, files, busy, load, slow-node, copies, refusing, failing, retries,
    tail, small or inputs."""
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCourse:
    """One node's part in a job."""

    key: bytes = b""
    name: str = ""
    can_run: bool = True
    """It does, or may later."""
    is_trusted: bool = False
    """What it finds is believed."""
    slots: int | None = None
    slots_each: int = 1
    """Of them, for one task of this job."""
    busy: int | None = None
    """Slots taken, whoever's tasks they run."""
    running: int = 0
    """Tasks of this job."""
    ended: int = 0
    """Good ends there, in this life of the owner, and how long they took together."""
    took_s: float = 0.0
    staging: int = 0
    """Tasks there whose files are on the way."""
    bandwidth: float | None = None
    """Bytes per second that it got lately."""
    load: float | None = None
    cpus: float | None = None
    copied: int = 0
    """Tasks that took too long there and run a second time elsewhere."""
    rests_s: float = 0.0
    """For how long it gets nothing, because it failed what others did well."""
    refused: int = 0
    """Tasks that it has not begun in a row, why, and for how long it gets none of this job."""
    refused_why: str = ""
    refused_rests_s: float = 0.0

    @property
    def task_s(self) -> float:
        return self.took_s / self.ended if self.ended else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A job under way."""

    nodes: Sequence[NodeCourse]
    ended: int
    running: int
    waiting: int
    retried: int
    is_sealed: bool
    """All its tasks are known."""
    alias: str = "JOB"
    """What commands call it."""
    slots_max: int | None = None
    cpus: float = 1.0
    """Of one task."""
    disputed: int = 0
    """Tasks of which members have found different results."""
    unchecked: int = 0
    """Results of members that are not believed yet, others than those."""
    checks: int = 0
    """Of these, how many are computed again now."""
    agreed: int = 0
    """Of these, how many several members found alike, which have passed too few checks to be believed."""
    unconfirmed: int = 0
    """Tasks that have failed with members, so that only a trusted node may try them now."""
    alone_in_s: float = 0.0
    """When members say alone that these have failed, if no trusted node comes until then."""


def why_slow(course: Course) -> tuple[Slowness, ...]:
    """Return what keeps a job from being done sooner, what weighs most first; nothing before anything has run."""
    has_begun = course.ended or course.running or course.disputed or course.unchecked or course.unconfirmed
    if not has_begun and not any(node.refused for node in course.nodes):
        return ()
    return tuple(_reasons(course))


def _reasons(course: Course) -> Iterator[Slowness]:
    nodes = course.nodes
    yield from _doubts(course)
    if course.waiting and course.slots_max is not None and course.running >= course.slots_max:
        yield Slowness("limit", f"-j {course.slots_max}: so many tasks run, and no more at once")
    able = sum(node.can_run for node in nodes)
    if course.waiting and able < len(nodes):
        yield Slowness("nodes", f"{able} of {len(nodes)} nodes can run it")
    for node in nodes:
        if node.staging and node.running:
            speed = "" if node.bandwidth is None else f"; it got {size_text(node.bandwidth)}/s lately"
            wait = "task waits for its files" if node.staging == 1 else "tasks wait for their files"
            yield Slowness("files", f"on {node.name} {node.staging} {wait}{speed}")
    if course.waiting:
        for node in nodes:
            others = (node.busy or 0) - node.running * node.slots_each
            if node.can_run and node.slots and others > 0:
                yield Slowness("busy", f"{others} of {node.slots} slots of {node.name} work for other jobs")
    for node in nodes:
        if node.running and node.load is not None and node.cpus:
            others_load = node.load - node.running * course.cpus
            if node.load > OVERLOAD * node.cpus and others_load > node.cpus * (OVERLOAD - 1):
                what = f"{node.name} is busy with more than its tasks: load {node.load:.1f} on {node.cpus:g} cores"
                yield Slowness("load", what)
    yield from _slow_nodes(nodes)
    for node in nodes:
        if node.copied:
            one = node.copied == 1
            late = f"{node.copied} {'task takes' if one else 'tasks take'} too long on {node.name}"
            yield Slowness("copies", f"{late} and {'runs' if one else 'run'} a second time elsewhere")
        if node.refused:
            tasks = "a task" if node.refused == 1 else f"{node.refused} tasks in a row"
            again = f"; it gets none for {_seconds(node.refused_rests_s)}" if node.refused_rests_s else ""
            yield Slowness("refusing", f"{node.name} has not begun {tasks}: {node.refused_why}{again}")
        if node.rests_s:
            what = f"{node.name} failed what others did well, and gets nothing for {_seconds(node.rests_s)}"
            yield Slowness("failing", what)
    attempts = course.ended + course.retried
    if course.retried and course.retried >= RETRIED_SHARE * attempts:
        what = f"{course.retried} of {attempts} attempts were made again"
        yield Slowness("retries", what, f"why: p2pc show {course.alias}/TASK")
    yield from _rest(course)


def _doubts(course: Course) -> Iterator[Slowness]:
    """What results of members wait for."""
    has_judge = any(node.can_run and node.is_trusted for node in course.nodes)
    if course.unconfirmed:
        one = course.unconfirmed == 1
        what = f"{'a task has' if one else f'{course.unconfirmed} tasks have'} failed with members"
        ways = f"a trusted node that fits has to find that too, before {'it is' if one else 'they are'} said to fail"
        limit = f"if none asks for work within {_seconds(course.alone_in_s)}, members say it alone"
        yield Slowness("unconfirmed", f"{what}: {ways}; {limit}", "" if has_judge else "p2pc trust set NODE trusted")
    if course.disputed:
        what = f"of {course.disputed} {'task' if course.disputed == 1 else 'tasks'} members found different results"
        ways = (
            "a trusted node has to find which is right"
            if has_judge
            else "no trusted node can run it, to find which is right"
        )
        yield Slowness("disputed", f"{what}; {ways}", "" if has_judge else "p2pc trust set NODE trusted")
    if course.unchecked:
        one = course.unchecked == 1
        what = f"{course.unchecked} {'result of a member is' if one else 'results of members are'} not believed yet"
        until = "until another one finds the same" + (", or a trusted node" if has_judge else "")
        now = (
            f"; {course.checks} of them {'is' if course.checks == 1 else 'are'} computed again now"
            if course.checks
            else ""
        )
        alike = f"; {course.agreed} of them several found, who have passed too few checks" if course.agreed else ""
        yield Slowness("checks", f"{what}, {until}{alike}{now}", "is it yours?  p2pc trust set NODE trusted")


def _slow_nodes(nodes: Sequence[NodeCourse]) -> Iterator[Slowness]:
    measured = [node for node in nodes if node.ended >= SLOW_RUNS_MIN]
    for node in measured:
        others = [other for other in measured if other is not node]
        if not others:
            continue
        # What half of the other nodes reach, so that a single fast one makes nobody slow.
        usual_s = statistics.median(other.task_s for other in others)
        if node.task_s >= SLOW_S_MIN and node.task_s >= SLOW_FACTOR * usual_s:
            there = f"{_seconds(node.task_s)} on {node.name} ({node.ended} ended)"
            yield Slowness("slow-node", f"a task takes {there}, {_seconds(usual_s)} elsewhere")


def _rest(course: Course) -> Iterator[Slowness]:
    if course.is_sealed and not course.waiting and 0 < course.running <= TAIL_TASKS and course.ended > course.running:
        where = ", ".join(f"{node.running} on {node.name}" for node in course.nodes if node.running)
        yield Slowness("tail", f"only the last {course.running} run: {where}")
    ended, took_s = sum(node.ended for node in course.nodes), sum(node.took_s for node in course.nodes)
    if ended >= SMALL_TASKS_MIN and took_s / ended < SMALL_S:
        what = f"a task takes {_seconds(took_s / ended)}: sending and starting it may take as long"
        yield Slowness("small", what, "more in each task: -n 100, or --batch auto for functions")
    if not course.is_sealed and not course.waiting:
        yield Slowness("inputs", "all tasks that were sent are under way; more may come")


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
