"""Why a job does not run: what each node says to it, what would help, and what is not the cause.  Pure.

For every node every clause that fails is named, not the first one only.  A suggestion is a change of the flags of
`p2pc run` (a smaller amount, another bound, a condition dropped): the fewest changes that make some node fit, each
tried by matching the changed needs with that node before it is offered.  Nodes are helped by changing what fails there
and nothing else, so no smaller set of changes would do for that node.

Source: the table of reasons after HTCondor's ``condor_q -better-analyze``.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from p2pcompute.config import parse_size
from p2pcompute.errors import UsageError
from p2pcompute.host.interfaces import Value
from p2pcompute.limits import MIB
from p2pcompute.resources.expressions import compile_expression
from p2pcompute.resources.matching import (
    CONTAINER_ENGINES,
    DEPS,
    KIND,
    REQUIRE,
    Clause,
    Known,
    Needs,
    Requirement,
    Verdict,
    compile_needs,
    worst,
)
from p2pcompute.resources.notation import Comparison

SUGGESTIONS_MAX: Final = 5
"""Suggestions that are shown, the nearest first."""
LABELS_SHOWN_CHARS_MAX: Final = 120
"""Labels of a node that are named in a reason."""
SUGGESTION_EDITS_MAX: Final = 4
"""Changes in one suggestion: more is another job."""
NOT_SEEN: Final = "not-seen"
"""Code of the reason that a node has fallen silent."""
ROOM: Final = 0.1
"""Part of a value that changes by which a suggested bound is kept away from it: what is pasted is true then too."""
SIZE_SUGGESTED_MIN: Final = 1 * MIB
"""Of memory and disk: no task can do with less, so a node that has less is not helped by asking for so little."""
_BYTES: Final = ("mem.", "disk.", "gpu.mem", "bandwidth")
_FREED: Final = frozenset({"mem.free", "slots.busy", "queue"})
"""What a task gives back at its end."""
_AMOUNT_OF: Final = {"--cpus": "cpus", "--mem": "mem", "--gpus": "gpus", "--disk": "disk"}
_INSTALLED: Final = {"wasm": "wasmtime>=50", "uv": "uv>=0.9"}
_CAUSES: Final = {
    "requirements": (REQUIRE, KIND, DEPS),
    "amounts": tuple(_AMOUNT_OF),
    "choice of nodes": ("on", "not-on", "local"),
    "Python": ("python",),
    "nodes' conditions": ("accept",),
    "network": ("unreachable", NOT_SEEN, "network"),
    "busy slots": ("busy", "slots"),
    "-j": ("jobs",),
}
"""What may be the cause, in people's words, and the flags or codes of its reasons."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of the flags."""

    flag: str
    index: int
    """Which of the flags of that name."""
    clause: str
    """The clause that changes, as written; of amounts the amount."""
    becomes: str
    """What stands there instead; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for which a node does not run the job now."""

    code: str
    """An attribute, or what else it is: on, not-on, local, python, accept, isolation, network, banned, unreachable,
    not-seen, busy, slots, jobs, node."""
    verdict: Verdict
    what: str
    fix: str = ""
    """What to do at that node, or about it."""
    edit: Edit | None = None
    """The change of a flag that takes it away, where the flag is not about attributes (--on, --local)."""
    flag: str = ""
    """The flag that asks for it, where it is about attributes."""
    passes_s: float | None = None
    """When the node expects that it may be over: wall clock."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node, and what its peers and its owner's settings make of it."""

    name: str
    known: Known | None
    """None: it has not said anything."""
    findings: tuple[Finding, ...] = ()
    """What else keeps it from running the job: reachability, choice of nodes, versions, its slots."""


@dataclass(frozen=True, slots=True)
class Account:
    """What one node says to a job."""

    name: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    """All that fails, worst first."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change of the job's flags after which nodes can run it; tried on each of them."""

    edits: tuple[Edit, ...]
    what: str
    """The changed flags, to be pasted in place of those of the same name, and what to leave out."""
    needs: Needs
    """The job's needs after the change."""
    nodes: tuple[str, ...]
    fix: str = ""
    """What would do instead, at the node."""

    @property
    def effect(self) -> str:
        names = ", ".join(self.nodes[:3]) + (f" and {len(self.nodes) - 3} more" if len(self.nodes) > 3 else "")
        return f"{names} could start it now" + (f" (or {self.fix})" if self.fix else "")


@dataclass(frozen=True, slots=True)
class Report:
    """Why a job runs where it does, and not elsewhere."""

    accounts: tuple[Account, ...]
    suggestions: tuple[Suggestion, ...]
    not_the_cause: tuple[str, ...]

    def count(self, *verdicts: Verdict) -> int:
        return sum(account.verdict in verdicts for account in self.accounts)

    @property
    def can_never_run(self) -> bool:
        """Whether no node will ever take it as it is; False while anything is unknown."""
        return bool(self.accounts) and self.count(Verdict.NEVER) == len(self.accounts)


def explain(needs: Needs, machines: Sequence[Machine]) -> Report:
    """Return what each node says to a job, and what would help.

    Args:
        needs: of one task of the job.
        machines: the nodes that are known, in the order in which they are shown.

    Raises:
        UsageError: the needs are no needs.
    """
    requirement = compile_needs(needs)
    accounts = tuple(_account(requirement, machine) for machine in machines)
    suggestions: tuple[Suggestion, ...] = ()
    if not any(account.verdict is Verdict.NOW for account in accounts):
        suggestions = _suggest(needs, requirement, machines)
    found = {finding.flag or finding.code for account in accounts for finding in account.findings}
    others = tuple(name for name, codes in _CAUSES.items() if not found.intersection(codes))
    return Report(accounts, suggestions, others)


def _account(requirement: Requirement, machine: Machine) -> Account:
    findings = list(machine.findings)
    if machine.known is None:
        if requirement.clauses and not any(finding.code == NOT_SEEN for finding in findings):
            findings.append(Finding("unreachable", Verdict.UNKNOWN, "it has not said what it has"))
    else:
        failing = [(clause, clause.judge(machine.known)) for clause in requirement.clauses]
        findings += _findings(failing, requirement.needs, machine.known)
    order = list(Verdict)
    findings.sort(key=lambda finding: -order.index(finding.verdict))
    return Account(machine.name, worst([finding.verdict for finding in findings]), tuple(findings))


def _findings(failing: Iterable[tuple[Clause, Verdict]], needs: Needs, known: Known) -> list[Finding]:
    """Return what fails; of an amount, of which so much must be there and be free, the one that says more."""
    found: dict[tuple[str, int, str], Finding] = {}
    for clause, verdict in failing:
        if verdict is Verdict.NOW:
            continue
        key = (clause.flag, clause.index, clause.expression.text if clause.flag == REQUIRE else "")
        finding = _finding(clause, verdict, needs, known)
        if key not in found or worst([found[key].verdict, verdict]) is not found[key].verdict:
            found[key] = finding
    return list(found.values())


# --- reasons --------------------------------------------------------------------------------------


def _finding(clause: Clause, verdict: Verdict, needs: Needs, known: Known) -> Finding:
    expression = clause.expression
    code = _AMOUNT_OF.get(clause.flag) or (expression.names[0].partition(".")[0] if expression.names else "require")
    if verdict is Verdict.UNKNOWN:
        why = expression.why_unknown(known.view)
        asked = f"needs {code if clause.flag in _AMOUNT_OF else _shown(expression.text)}"
        return Finding(code, verdict, f"{asked}; {why}", _fix(expression.comparison, known), flag=clause.flag)
    passes_s = (
        known.moment("slots.ends") if verdict is Verdict.LATER and _FREED.intersection(expression.names) else None
    )
    if clause.flag in _AMOUNT_OF:
        return Finding(code, verdict, _amount_text(clause, code, known), flag=clause.flag, passes_s=passes_s)
    what = _require_text(expression.text, expression.comparison, expression.names, known)
    if clause.flag == DEPS and expression.comparison is None:
        platform = "/".join(str(known.values.get(name, "?")) for name in ("os", "arch"))
        what = f"its packages have no wheels for {platform}"
        return Finding("deps", verdict, what, "other versions of them may have some", flag=clause.flag)
    if clause.flag == KIND and expression.comparison is None:
        fix = f"install {CONTAINER_ENGINES[0]} there"
        return Finding("has", verdict, f"has no container engine ({fix})", fix, flag=clause.flag)
    if clause.flag in (KIND, DEPS):  # nobody wrote that requirement, so say how to meet it
        what += f" ({_fix(expression.comparison, known)})"
    return Finding(code, verdict, what, _fix(expression.comparison, known), flag=clause.flag, passes_s=passes_s)


def _shown(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _amount_text(clause: Clause, code: str, known: Known) -> str:
    comparison = clause.expression.comparison
    assert comparison is not None
    have = known.values[comparison.name]
    wanted, got = _quantity(comparison.name, comparison.value), _quantity(comparison.name, have)
    match comparison.name.rpartition(".")[2]:
        case "total":
            return f"{code} {wanted} > {got} total"
        case "free":
            total = known.values.get(f"{code}.total")
            of = "" if total is None else f" (of {_quantity(comparison.name, total)})"
            return f"{code} {wanted} > {got} free{of}"
    return f"{code} {wanted} > {got}"


def _require_text(text: str, comparison: Comparison | None, names: Sequence[str], known: Known) -> str:
    needs = f"needs {_shown(text)}"
    if comparison is None:
        seen = [f"{name} is {_quantity(name, known.values[name])}" for name in names if name in known.values]
        return f"{needs}; {', '.join(seen)}" if seen else needs
    have = known.values[comparison.name]
    if comparison.name == "has":
        return f"{needs}; {'not installed there' if comparison.op == 'in' else 'it is installed there'}"
    if isinstance(have, tuple):
        return f"{needs}; it has {', '.join(have[:8]) or 'none'}"
    return f"{needs}, is {_quantity(comparison.name, have)}"


def _fix(comparison: Comparison | None, known: Known) -> str:
    """Return what could be done at the node."""
    if comparison is None or comparison.op not in ("in", "=="):
        return ""
    if comparison.name == "has" and comparison.op == "in":
        return f"install {_INSTALLED.get(str(comparison.value), comparison.value)} there"
    if comparison.name == "tag" and comparison.op == "in":
        return f"tag it there: {_tagging(str(comparison.value), known.values)}"
    return ""


def _tagging(tag: str, values: Mapping[str, Value]) -> str:
    """Return how a node gets one more tag and keeps its labels: the setting replaces them all."""
    tags = values.get("tag")
    labels = [f"{name.removeprefix('label.')}={value}" for name, value in values.items() if name.startswith("label.")]
    everything = [*(tags if isinstance(tags, tuple) else ()), *labels, tag]
    text = ",".join(everything)
    if not isinstance(tags, tuple) or text.count(",") >= len(everything) or len(text) > LABELS_SHOWN_CHARS_MAX:
        return f"add {tag} to its node.labels (p2pc config set replaces them all)"
    return f"p2pc config set node.labels {shlex.quote(text)}"


def _quantity(name: str, value: Value) -> str:
    """Return a value as people write it: sizes with their unit."""
    if isinstance(value, tuple):
        return ", ".join(value[:8])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if name.startswith(_BYTES):
        return size_text(value) + ("/s" if name == "bandwidth" else "")
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:g}"


def size_text(size: float) -> str:
    """8589934592 → "8 GiB", 6227702579 → "5.8 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1023.95 or unit == "TiB":
            return f"{size:.0f} {unit}" if abs(size) >= 99.95 or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


# --- suggestions ----------------------------------------------------------------------------------


def _suggest(needs: Needs, requirement: Requirement, machines: Sequence[Machine]) -> tuple[Suggestion, ...]:
    """Return the nearest changes after which some node fits, each tried."""
    tried: dict[tuple[Edit, ...], Suggestion] = {}
    helpable = [machine for machine in machines if machine.known is not None and _can_be_helped(machine)]
    for machine in helpable:
        for edits in _edits(needs, requirement, machine):
            if edits in tried:
                break
            if not edits or len(edits) > SUGGESTION_EDITS_MAX:
                continue
            suggestion = _try(needs, edits, helpable)
            if machine.name not in suggestion.nodes:
                continue
            fixes = [finding.fix for finding in _account(requirement, machine).findings if finding.fix]
            fix = fixes[0] if len(edits) == 1 and fixes and len(suggestion.nodes) == 1 else ""
            tried[edits] = replace(suggestion, fix=fix)
            break
    best: dict[tuple[object, ...], Suggestion] = {}
    for suggestion in sorted(tried.values(), key=_distance):
        # Of changes of the same clauses that help the same nodes, the gentlest is enough.
        same = (*((edit.flag, edit.index, edit.clause) for edit in suggestion.edits), suggestion.nodes)
        best.setdefault(same, suggestion)
    return tuple(sorted(best.values(), key=_distance)[:SUGGESTIONS_MAX])


def _distance(suggestion: Suggestion) -> tuple[int, int, int]:
    drops = sum(not edit.becomes for edit in suggestion.edits)
    return len(suggestion.edits), drops, -len(suggestion.nodes)


def _can_be_helped(machine: Machine) -> bool:
    """Whether flags alone could make it run the job: nothing else is in the way."""
    return all(finding.edit is not None for finding in machine.findings)


def _edits(needs: Needs, requirement: Requirement, machine: Machine) -> list[tuple[Edit, ...]]:
    """Return sets of changes that may make a node fit, the gentler first: bounds relaxed where that can be, or all that
    fails dropped."""
    assert machine.known is not None
    gentle = [finding.edit for finding in machine.findings if finding.edit is not None]
    harsh = list(gentle)
    seen: dict[tuple[str, int, str], None] = {}
    for clause in requirement.clauses:
        if clause.judge(machine.known) is Verdict.NOW:
            continue
        if clause.flag in (KIND, DEPS):
            return []  # no flag changes what a job is
        written = clause.expression.text if clause.flag == REQUIRE else _amount_written(needs, clause.flag)
        key = (clause.flag, clause.index, written)
        drop = Edit(*key, "")
        if key in seen:
            continue
        seen[key] = None
        relaxed = _relaxed(clause, requirement, machine.known)
        gentle.append(Edit(*key, relaxed) if relaxed else drop)
        harsh.append(drop)
    return [tuple(gentle), tuple(harsh)]


def _amount_written(needs: Needs, flag: str) -> str:
    value: float | None = {
        "--cpus": needs.cpus,
        "--mem": needs.mem_bytes,
        "--gpus": needs.gpus,
        "--disk": needs.disk_bytes,
    }[flag]
    assert value is not None
    return _size_written(int(value)) if flag in ("--mem", "--disk") else f"{value:g}"


def _relaxed(clause: Clause, requirement: Requirement, known: Known) -> str:
    """Return the clause, or the amount, with a bound that the node meets; empty when it has none to relax."""
    comparison = clause.expression.comparison
    if comparison is None or isinstance(comparison.value, bool) or not isinstance(comparison.value, int | float):
        return ""
    if clause.flag == REQUIRE:
        named = [comparison]
    else:  # of an amount, what is there and what is free both count
        parts = [one.expression.comparison for one in requirement.clauses if one.flag == clause.flag]
        named = [part for part in parts if part is not None]
    bounds: list[float] = []
    room = 0.0
    as_size = comparison.name.startswith(_BYTES)
    for one in named:
        have = known.values.get(one.name)
        if isinstance(have, bool) or not isinstance(have, int | float):
            return ""
        is_count = isinstance(have, int) and not as_size
        room = 0.0 if is_count or known.is_lasting(one.name) else ROOM * (abs(have) or 1.0)
        bounds.append(have + room if comparison.op in ("<", "<=") else have - room)
    if clause.flag != REQUIRE and as_size and min(bounds) < SIZE_SUGGESTED_MIN:
        return ""
    bound = _bound(comparison, min(bounds), has_room=room > 0, as_size=as_size)
    if not bound or clause.flag != REQUIRE:
        return bound
    written = clause.expression.clause
    assert written is not None
    before, after = comparison.start - written.start, comparison.end - written.start
    return f"{written.text[:before]}{bound}{written.text[after:]}"


def _bound(comparison: Comparison, have: float, *, has_room: bool, as_size: bool) -> str:
    """Return the number, rounded to the safe side, with which the comparison holds; empty when there is none.

    Args:
        has_room: `have` is further than what is there already.
    """
    may_be_equal = has_room or comparison.op in (">=", "<=")
    match comparison.op:
        case ">=" | ">":
            if have <= 0:
                return ""
            bound = have if may_be_equal else have * (1 - 1e-3) if have != int(have) else have - 1
            if bound <= 0:
                return ""
            return _size_written(int(bound), is_rounded=True) if as_size else _number_written(bound, up=False)
        case "<=" | "<":
            over = have + 1 if have == int(have) else max(have * (1 + 1e-3), have + 1e-3)
            bound = have if may_be_equal else over
            return _size_written(math.ceil(bound)) if as_size else _number_written(bound, up=True)
    return ""


def _number_written(value: float, *, up: bool) -> str:
    if value == int(value):
        return f"{int(value)}"
    digits = min(9, max(0, 2 - math.floor(math.log10(abs(value)))))
    rounded = (math.ceil if up else math.floor)(value * 10**digits) / 10**digits
    return f"{rounded:.{digits}f}".rstrip("0").rstrip(".")


def _size_written(size: int, *, is_rounded: bool = False) -> str:
    """Return bytes as a flag takes them: "5G", "300M".  Rounded: down, to two digits."""
    for unit, power in (("T", 4), ("G", 3), ("M", 2), ("K", 1)):
        whole = size // 1024**power
        if (whole >= 2 or (whole and not is_rounded)) and (is_rounded or size % 1024**power == 0):
            digits = 10 ** max(0, len(str(whole)) - 2) if is_rounded else 1
            return f"{whole // digits * digits}{unit}"
    return f"{size}"


def apply(needs: Needs, edits: Sequence[Edit]) -> Needs:
    """Return the needs after some changes; changes of other flags are not about needs and change nothing here."""
    changes: dict[str, Any] = {}
    require = [[part.text for part in compile_expression(text.strip()).parts()] for text in needs.require]
    for edit in edits:
        match edit.flag:
            case "--mem":
                changes["mem_bytes"] = parse_size(edit.becomes) if edit.becomes else None
            case "--disk":
                changes["disk_bytes"] = parse_size(edit.becomes) if edit.becomes else None
            case "--cpus":
                changes["cpus"] = float(edit.becomes or 1)
            case "--gpus":
                changes["gpus"] = float(edit.becomes or 0)
            case "--require":
                parts = require[edit.index]
                parts[parts.index(edit.clause)] = edit.becomes
    joined = [[part for part in parts if part] for parts in require]
    changes["require"] = tuple(_joined(parts) for parts in joined if parts)
    return replace(needs, **changes)


def _joined(parts: Sequence[str]) -> str:
    """Return a conjunction; parts lost their own brackets when they were cut apart."""
    if len(parts) == 1:
        return parts[0]
    return " && ".join(f"({part})" if "||" in part or "?" in part else part for part in parts)


def _try(needs: Needs, edits: tuple[Edit, ...], machines: Sequence[Machine]) -> Suggestion:
    """Return the suggestion with the nodes on which it was seen to help."""
    flags = {edit.flag for edit in edits}
    try:
        changed = apply(needs, edits)
        requirement = compile_needs(changed)
    except (UsageError, ValueError):
        return Suggestion(edits, "", needs, ())
    names = tuple(
        machine.name
        for machine in machines
        if machine.known is not None
        and all(finding.edit is not None and finding.edit.flag in flags for finding in machine.findings)
        and requirement.judge(machine.known) is Verdict.NOW
    )
    return Suggestion(edits, _described(needs, edits), changed, names)


def _described(needs: Needs, edits: Sequence[Edit]) -> str:
    """Return the changes in words and flags."""
    texts: dict[str, None] = {}
    for edit in edits:
        same = [one for one in edits if (one.flag, one.index) == (edit.flag, edit.index)]
        if not any(one.becomes for one in same):
            texts[f"drop {edit.clause if edit.flag == REQUIRE else f'{edit.flag} {edit.clause}'.strip()}"] = None
        elif edit.flag == REQUIRE:
            only = apply(replace(needs, require=(needs.require[edit.index],)), [replace(one, index=0) for one in same])
            texts[f"--require {_shell_quoted(only.require[0])}"] = None
        else:
            texts[f"{edit.flag} {edit.becomes}"] = None
    return " and ".join(texts)


def _shell_quoted(text: str) -> str:
    """Return a word for a shell, in quotes."""
    return "'" + text.replace("'", "'\\''") + "'"


def flags_of(needs: Needs) -> tuple[str, ...]:
    """Return the words by which `p2pc run` is asked for these needs."""
    words: list[str] = []
    for flag in ("--cpus", "--mem", "--gpus", "--disk"):
        if _asks(needs, flag):
            words += [flag, _amount_written(needs, flag)]
    for flag, texts in ((REQUIRE, needs.require), ("--prefer", needs.prefer)):
        words += [word for text in texts for word in (flag, text)]
    return tuple(words)


def _asks(needs: Needs, flag: str) -> bool:
    asked: Mapping[str, bool] = {
        "--cpus": needs.cpus > 1,
        "--mem": bool(needs.mem_bytes),
        "--gpus": needs.gpus > 0,
        "--disk": bool(needs.disk_bytes),
    }
    return asked[flag]
