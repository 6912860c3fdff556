"""Why a job runs where it does: gathers what this node knows of itself and of others, and asks those that answer soon.

The verdicts are those of `resources.explaining`; here is what it cannot see: who is reached, who was chosen, whose
Python differs, whose slots are busy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2pcompute.errors import P2pcError
from p2pcompute.execution.spec import JobSpec, TaskKind
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import EXPLAINED_NODES_MAX, QUESTION_LANES, QUESTION_WORDS_MAX
from p2pcompute.node.facade import ExplanationView, PeerView
from p2pcompute.node.placement import ACCEPTS, Placement, job_values, known_of, needs_of, what_it_withholds
from p2pcompute.node.slowness import Course, NodeCourse, Slowness, why_slow
from p2pcompute.resources.explaining import NOT_SEEN, Edit, Finding, Machine, Report, explain
from p2pcompute.resources.expressions import (
    compile_expression,
    is_heard,
    names_of_some,
    nearest_name,
    refuse_unheard,
)
from p2pcompute.resources.matching import (
    ONLY_WASM,
    Known,
    Needs,
    Requirement,
    Verdict,
    acceptance_names,
    compile_needs,
    is_accepted,
    slots_taken,
)
from p2pcompute.scheduler.terms import JobTerms

EXPLAIN_S: Final = 2.0
"""How long nodes are asked for one explanation; whoever has not answered is judged by what it said before."""
EXPLAIN_AGE_S: Final = 5.0
"""What a node said so long ago is not asked again."""
_WITHHELD: Final = {
    "network": ("it gives tasks of others no network (--network full)", "there: p2pc node set network=full"),
    "isolation": ("it runs work of others in sandboxes (--sandbox process)", "there: p2pc node set accept=all"),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """The job that is explained."""

    terms: JobTerms
    spec: JobSpec
    submitter: bytes
    """Its installation."""
    findings: tuple[Finding, ...] = ()
    """What keeps it from every node."""
    course: Course | None = None
    """Of a job that is submitted: how it goes; of nodes, what this one knows without asking them."""


async def explain_job(
    placement: Placement,
    subject: Subject,
    peers: Sequence[PeerView],
    own_findings: Sequence[Finding],
    *,
    until_possible: bool = False,
) -> ExplanationView:
    """Return what every node says to a job.

    Args:
        peers: this node first.
        own_findings: what keeps this node from running anything.
        until_possible: others are asked and named only if this node itself will never run it: enough to tell whether
            any node ever will, and without a message where people ask for what their own machine has.

    Raises:
        UsageError: the job asks for what cannot be asked; or with `until_possible` for an attribute that no node has,
            with a name like one that there is.
    """
    needs = needs_of(subject.terms, subject.spec)
    requirement = compile_needs(needs)
    shown = list(peers[:EXPLAINED_NODES_MAX])
    own = await _own(placement, requirement)
    unusual = [name for name in names_of_some(requirement.names) if not is_heard(name, own.values)]
    if until_possible and not unusual:
        machine = _machine(subject, placement, shown[0], own, own_findings)
        report = explain(needs, [machine])
        if not report.can_never_run:
            return ExplanationView(
                needs=needs, peers=(shown[0],), report=report, machines=(machine,), left_out=len(peers) - 1
            )
    await _ask_all(placement, requirement, [peer for peer in shown[1:] if peer.state in ("up", "not met")])
    machines = []
    for peer in shown:
        is_self = peer.state == "self"
        known = own if is_self else _said(placement, requirement, peer)
        machines.append(_machine(subject, placement, peer, known, own_findings if is_self else ()))
    unheard = _unheard(unusual, [machine.known for machine in machines])
    left_out = len(peers) - len(shown)
    if until_possible and not left_out and all(machine.known is not None for machine in machines):
        _refuse_misspelt(needs, unheard)
    report = explain(needs, machines)
    return ExplanationView(
        needs=needs,
        peers=tuple(shown),
        report=report,
        machines=tuple(machines),
        left_out=left_out,
        unheard=unheard,
        slow=_slow(subject, shown, machines, report),
    )


def _slow(
    subject: Subject, peers: Sequence[PeerView], machines: Sequence[Machine], report: Report
) -> tuple[Slowness, ...]:
    """Return why a job under way is not done sooner, by what is known here and what the nodes have said."""
    if subject.course is None:
        return ()
    needs = needs_of(subject.terms, subject.spec)
    courses = {node.key: node for node in subject.course.nodes}
    nodes = []
    for peer, machine, account in zip(peers, machines, report.accounts, strict=True):
        values = {} if machine.known is None else machine.known.values
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        busy = numbers.get("slots.busy", peer.busy)
        course = courses.get(peer.public_key, NodeCourse(key=peer.public_key))
        each = 1 if not peer.slots else slots_taken(needs, values, peer.slots)
        nodes.append(
            replace(
                course,
                name=peer.name,
                can_run=account.verdict is not Verdict.NEVER,
                is_trusted=peer.level in ("self", "trusted"),
                slots=peer.slots,
                slots_each=each,
                running=min(course.running, peer.slots // each) if peer.slots else course.running,
                busy=None if busy is None else int(busy),
                staging=int(numbers.get("staging", 0)),
                bandwidth=numbers.get("bandwidth"),
                load=numbers.get("load"),
                cpus=numbers.get("cpus"),
            )
        )
    return why_slow(replace(subject.course, nodes=nodes, cpus=subject.spec.cpus))


def _unheard(names: Sequence[str], said: Sequence[Known | None]) -> tuple[tuple[str, str], ...]:
    """Return those among names that no node has, each with what is probably meant."""
    heard = list(dict.fromkeys(name for known in said if known is not None for name in known.values))
    return tuple((name, nearest_name(name, heard)) for name in names if not is_heard(name, heard))


def _refuse_misspelt(needs: Needs, unheard: Sequence[tuple[str, str]]) -> None:
    """Refuse a name that nobody has and that is like another one.  In the same group, more names may come with a label
    or a plugin.

    Raises:
        UsageError: there is one.
    """
    for name, near in unheard:
        if not near or near.partition(".")[0] == name.partition(".")[0]:
            continue
        for text in (*needs.require, *needs.prefer):
            if name in compile_expression(text.strip()).names:
                refuse_unheard(text.strip(), name, near)


def _machine(
    subject: Subject, placement: Placement, peer: PeerView, known: Known | None, more: Sequence[Finding]
) -> Machine:
    findings = (*_findings(subject, placement, peer, known), *subject.findings, *more)
    return Machine(peer.name, known, findings)


async def _ask_all(placement: Placement, requirement: Requirement, peers: Sequence[PeerView]) -> None:
    """Ask nodes what they have, several at a time; what they say is kept where everybody looks for it."""
    waiting = deque(peer.public_key for peer in peers)
    words = requirement.words[:QUESTION_WORDS_MAX]

    async def lane() -> None:
        while waiting:
            try:
                await placement.resources.describe(waiting.popleft(), words, age_s=EXPLAIN_AGE_S)
            except P2pcError:
                continue  # it is judged by what it said before

    scope = TaskScope("explain")
    try:
        async with placement.host.clock.timeout(EXPLAIN_S):
            lanes: list[asyncio.Task[None]] = [
                scope.spawn(lane(), "lane") for _ in range(min(QUESTION_LANES, len(waiting)))
            ]
            for one in lanes:
                await one
    except TimeoutError:
        return
    finally:
        await scope.close()


async def _own(placement: Placement, requirement: Requirement) -> Known:
    """Measure this node, as far as it matters to the job."""
    names = list(requirement.names)
    for condition in (placement.accepts, placement.group_accepts):
        names += acceptance_names(condition)
    attributes = await placement.resources.own(requirement.words, names)
    return Known(attributes, placement.host.clock.wall())


def _said(placement: Placement, requirement: Requirement, peer: PeerView) -> Known | None:
    """Return what another node said."""
    knowledge = placement.resources.known.get(peer.public_key)
    return None if knowledge is None else known_of(knowledge, placement.host.clock.wall(), requirement.words)


def _findings(subject: Subject, placement: Placement, peer: PeerView, known: Known | None) -> list[Finding]:
    """Return what keeps a node from running a job, besides what it asks for."""
    terms, found = subject.terms, []
    if peer.state == "not seen":
        ago = "" if peer.seen_s is None else f" for {peer.seen_s:.0f} s"
        found.append(Finding(NOT_SEEN, Verdict.UNKNOWN, f"not seen{ago}"))
    elif known is None:
        found.append(Finding("unreachable", Verdict.UNKNOWN, "it does not say what it has"))
    if terms.on and peer.public_key not in terms.on:
        found.append(Finding("on", Verdict.NEVER, "not among the chosen ones (--on)", edit=Edit("--on", 0, "", "")))
    if peer.public_key in terms.not_on:
        found.append(Finding("not-on", Verdict.NEVER, "left out (--not-on)", edit=Edit("--not-on", 0, "", "")))
    if peer.ban:
        fix = f"p2pc trust show {peer.name} has the evidence; p2pc trust set {peer.name} member ends the ban"
        found.append(Finding("banned", Verdict.NEVER, f"banned here: {peer.ban}", fix))
    if peer.refusal:
        found.append(Finding("role", Verdict.NEVER, peer.refusal, "roles are in: p2pc group members"))
    if terms.local_only and peer.state != "self":
        found.append(Finding("local", Verdict.NEVER, "the job stays here (--local)", edit=Edit("--local", 0, "", "")))
    wanted = "" if terms.python is None else f"{terms.python[0]}.{terms.python[1]}"
    if wanted and peer.python and wanted != peer.python:  # the one that runs the node: its other ones do not help
        fix = f"run p2pcompute with Python {wanted} there"
        found.append(Finding("python", Verdict.NEVER, f"needs Python {wanted}, runs {peer.python}", fix))
    if known is not None:
        found += _own_conditions(subject, placement, peer, known)
    return found


def _own_conditions(subject: Subject, placement: Placement, peer: PeerView, known: Known) -> list[Finding]:
    values, found = known.values, []
    accepts = values.get(ACCEPTS)
    is_of_others = peer.state != "self" or subject.submitter != placement.installation
    if is_of_others and isinstance(accepts, str) and accepts:
        job = job_values(subject.terms, subject.spec, subject.submitter)
        taken = is_accepted(accepts, values, job)
        if taken is not True:
            what = "it takes no work of others" if accepts == "false" else f"it takes only jobs with {accepts}"
            verdict = Verdict.UNKNOWN if taken is None else Verdict.NEVER
            is_why = accepts == "false" or accepts.startswith(ONLY_WASM)
            fix = "there: p2pc doctor says why" if is_why else "there: p2pc config set node.accept_if"
            found.append(Finding("accept", verdict, what, fix))
    wants_network, is_bare = subject.spec.network, subject.spec.sandbox == "process"
    if is_of_others and (code := what_it_withholds(values, network=wants_network, bare=is_bare)):
        what, fix = _WITHHELD[code]
        found.append(Finding(code, Verdict.NEVER, what, fix))
    if peer.level == "stranger" and subject.terms.trust != "any":
        found.append(
            Finding("stranger", Verdict.NEVER, "a stranger: it gets only jobs that anybody may run", "--trust any")
        )
    if peer.state != "self" and placement.is_own_strange() and subject.spec.kind is not TaskKind.WASM:
        what = "this computer is a stranger there: it runs only WASM modules of strangers, unless it trusts this one"
        found.append(Finding("stranger", Verdict.UNKNOWN, what, "there: p2pc trust set NODE trusted"))
    if is_of_others and placement.group_accepts:
        taken = is_accepted(placement.group_accepts, values, job_values(subject.terms, subject.spec, subject.submitter))
        if taken is not True:
            what = f"the group takes only jobs with {placement.group_accepts}"
            verdict = Verdict.UNKNOWN if taken is None else Verdict.NEVER
            found.append(Finding("policy", verdict, what, "see: p2pc group policy"))
    if is_of_others and isinstance(paused := values.get("paused"), str):
        found.append(Finding("paused", Verdict.LATER, f"paused: {paused}"))
    slots = values.get("slots.total", peer.slots)
    busy = max([one for one in (values.get("slots.busy"), peer.busy) if isinstance(one, int)], default=None)
    if slots == 0:
        found.append(Finding("slots", Verdict.NEVER, "it runs no tasks (0 slots)", "there: p2pc config set node.slots"))
    elif isinstance(slots, int) and isinstance(busy, int) and busy >= slots:
        what = f"all {slots} slots busy" if slots > 1 else "its slot is busy"
        was_busy = values.get("slots.busy") == slots  # else it spoke before it got what it holds
        passes_s = known.moment("slots.wait") if was_busy else None
        found.append(Finding("busy", Verdict.LATER, what, passes_s=passes_s))
    return found
