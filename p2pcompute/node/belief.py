"""Why a result is believed, or not yet, in a sentence: from the owner's books, when somebody asks.

Who agreed is known as long as the result can be revoked (`VERIFY_WINDOWS_KEPT` windows), later only that some did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from p2pcompute.node.facade import BeliefView
from p2pcompute.scheduler.acceptance import LevelOf
from p2pcompute.scheduler.books import CheckedJob, OwnedJob
from p2pcompute.scheduler.checked import Rule
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.trust.levels import Level
from p2pcompute.trust.verification.arbitrate import Arbitrate, Standing
from p2pcompute.trust.verification.book import Basis, Worker, votes

NAMED_MAX: Final = 4
"""Nodes that are named in one sentence."""
NameOf = Callable[[bytes], str]


def belief(
    job: OwnedJob, index: int, ran: bytes, own_key: bytes, name_of: NameOf, level_of: LevelOf, *, has_arbiter: bool
) -> BeliefView | None:
    """Return why the result of a task is believed, or what it waits for; None: there is nothing to say of it.

    Args:
        ran: key of the node whose result it is; b"": it has none.
        own_key: of this node.
        has_arbiter: a trusted node that may run the job asks for work here, so that it can decide.
    """
    if not job.is_own:  # only its owner knows
        return None
    state = job.ledger.state(index)
    if state is TaskState.DONE:
        if index in job.accepted_digests:
            return BeliefView(True, _why_accepted(job, index, ran, own_key, name_of, level_of))
        return BeliefView(True, _why_at_once(job, ran, own_key, name_of, level_of))
    checked = job.checked
    if state is not TaskState.OPEN or checked is None or index not in checked.numbers or not checked.claims_of(index):
        return None
    again = [name_of(thief) for thief, lease in checked.leases.get(index, {}).items() if not lease.is_late]
    now = f"; {_names(again)} {'runs' if len(again) == 1 else 'run'} it again now" if again else ""
    return BeliefView(False, f"{_what_for(checked, index, name_of, has_arbiter=has_arbiter)}{now}")


def _why_at_once(job: OwnedJob, ran: bytes, own_key: bytes, name_of: NameOf, level_of: LevelOf) -> str:
    """Say why a result was accepted that nobody had to find again."""
    if ran in (b"", own_key):
        return "this node ran it"
    if level_of(ran) is Level.TRUSTED:
        return f"trusted node {name_of(ran)} ran it"
    if Rule.of(job.envelope.terms) is None:
        return f"unchecked (--verify none): {name_of(ran)} ran it"
    return f"{name_of(ran)} ran it, which was trusted here then"


def _why_accepted(job: OwnedJob, index: int, ran: bytes, own_key: bytes, name_of: NameOf, level_of: LevelOf) -> str:
    """Say why a result was accepted of which members had claimed something."""
    checked, digest, basis = job.checked, job.accepted_digests[index], job.accepted_why.get(index, "")
    claims = {} if checked is None or index not in checked.numbers else checked.claims_of(index)
    same = [name_of(worker) for worker, claimed in claims.items() if claimed == digest]
    others = [name_of(worker) for worker, claimed in claims.items() if claimed != digest]
    against = f", {_names(others)} something else" if others else ""
    if basis == Basis.TRUSTED:
        if ran in (b"", own_key) or level_of(ran) is Level.TRUSTED:
            who = "this node" if ran in (b"", own_key) else f"trusted node {name_of(ran)}"
            return f"{who} ran it" + (f"; {_names(same)} found the same" if same else "") + against
        return f"{_names(same or [name_of(ran)])} ran it, and a trusted node found the same{against}"
    if basis == Basis.UNCHECKED:
        return f"unchecked (--verify {job.envelope.terms.verify} compared it with no other): {name_of(ran)} ran it"
    agree = f"{_names(same)} agree" if len(same) > 1 else "members agreed"
    bound = "" if checked is None or not same else _bound(checked, index)
    again = "; it is checked once more" if checked is not None and index in checked.rechecks else ""
    if basis == Basis.OUTVOTED:
        return f"{agree}{bound}{against}; there was no trusted node to decide{again}"
    return f"{agree}{bound}{again}"


def _bound(checked: CheckedJob, index: int) -> str:
    """Say how probable it is, at most, that an accepted result is wrong: what was asked for, or less."""
    rule, verifier = checked.rule, checked.verifier
    if rule.replicas is not None:
        return f" (--replicas {rule.replicas})"
    if not isinstance(verifier, Arbitrate):
        return f" (--verify {rule.method})"
    number = checked.numbers[index]
    accepted = verifier.tasks[number].accepted
    group = [worker for worker, claimed in checked.claims_of(index).items() if claimed == accepted]
    return f", error ≤ {rate_text(min(rule.error_ppb / 1e9, verifier.risk(number, group)))}"


def _what_for(checked: CheckedJob, index: int, name_of: NameOf, *, has_arbiter: bool) -> str:
    """Say what keeps the claims about an open task from being believed."""
    claims, rule, verifier = checked.claims_of(index), checked.rule, checked.verifier
    groups = votes(claims)
    if len(groups) > 1 or index in checked.asked:
        decides = "a trusted node decides" if has_arbiter else "no trusted node may run it here, so more members decide"
        return f"{_names([name_of(worker) for worker in claims])} found different results; {decides}"
    new = _new(checked, claims)
    counting = [name_of(worker) for worker in claims if worker not in new]
    is_not_yet = f"{_names([name_of(worker) for worker in new])} {'is' if len(new) == 1 else 'are'} new here"
    unproven = f"{is_not_yet}: what newcomers find counts when it has often agreed" if new else ""
    another = "another member" + (", or a trusted node," if has_arbiter else "")
    if len(counting) < 2:
        only = f"only {counting[0]} ran it" if counting else ""
        rest = f"{another} has to find the same"
        return "; ".join(filter(None, (only, unproven, rest)))
    if rule.replicas is not None:
        short = f" ({len(counting)} of --replicas {rule.replicas})"
    elif isinstance(verifier, Arbitrate):
        risk = verifier.risk(checked.numbers[index])
        short = f", error ≤ {rate_text(risk)} where {rate_text(rule.error_ppb / 1e9)} is asked for"
    else:
        short = f" (--verify {rule.method})"
    return "; ".join(filter(None, (f"{_names(counting)} agree{short}", unproven)))


def _new(checked: CheckedJob, workers: Sequence[Worker] | dict[Worker, bytes]) -> list[Worker]:
    """Return those whose claims do not count yet."""
    if not isinstance(checked.verifier, Arbitrate):
        return []
    known = checked.verifier.workers
    return [worker for worker in workers if known[worker].standing is not Standing.ACTIVE]


def rate_text(rate: float) -> str:
    """Return a probability, rounded up to one digit: 3e-5."""
    if rate >= 1.0:
        return "1"
    if rate <= 0.0:
        return "0"
    exponent = math.floor(math.log10(rate))
    digit = math.ceil(round(rate / 10.0**exponent, 6))
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"


def _names(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    if len(names) > NAMED_MAX:
        names = [*names[: NAMED_MAX - 1], f"{len(names) - NAMED_MAX + 1} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
