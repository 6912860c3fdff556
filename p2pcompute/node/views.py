"""Views of one moment, made when asked: see `facade`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from p2pcompute.dht.service import Dht
from p2pcompute.errors import UsageError
from p2pcompute.host.interfaces import Address, Clock
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import PUBLIC_KEY_BYTES, format_device_id, short_device_id
from p2pcompute.limits import NODES_CHOSEN_MAX
from p2pcompute.node.facade import CoordinatorView, DhtStatus, JobView, NodeShare, PeerView, TrustView
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.node.network import Network
from p2pcompute.scheduler.acceptance import DISPUTED
from p2pcompute.scheduler.books import OwnedJob
from p2pcompute.scheduler.custody import Outlook
from p2pcompute.scheduler.fairness import USAGE_TAU_S
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner import DEADLINE, OwnerCore
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.scheduler.service import Scheduler
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.trust.groups import Membership
from p2pcompute.trust.levels import Level

STATE_NAMES: Final = {
    TaskState.OPEN: "waiting",
    TaskState.CANCELLED: "cancelled",
    TaskState.FAILED: "failed",
    TaskState.DONE: "done",
    TaskState.CLAIMED: "done",
    TaskState.CLAIMED_FAILED: "failed",
}
DOUBTED_LOOKED_MAX: Final = 64
"""Tasks with results that are not believed yet, of which it is said whose they are."""
DOUBTED_NAMED_MAX: Final = 3
RATE_SHOWN_MIN: Final = 0.005
ID_CHARS_MIN: Final = 4
"""Of an id that names a node: one group."""
_WHOLE_ID: Final = re.compile(r"[0-9a-fA-F]{64}")


def waiting_count(open_count: int, slots_at_work: int, computed_count: int) -> int:
    """Return how many tasks wait for a node.

    Args:
        open_count: tasks that have not ended.
        slots_at_work: for the job; several may compute one task, to compare or because one is slow.
        computed_count: tasks that were given to somebody, who may have others before them.
    """
    return max(0, open_count - min(slots_at_work, computed_count))


def task_state(job: OwnedJob, index: int) -> str:
    state = job.ledger.state(index)
    if state is TaskState.OPEN and (
        index in job.leases or (job.checked is not None and job.checked.is_computed(index))
    ):
        return "running"
    return STATE_NAMES[state]


def find_job(owner: OwnerService, ref: str) -> JobBook:
    """Return the job that an alias, a prefix of an id in hex, or "last" names.

    Raises:
        UsageError: none or several.
    """
    if ref == "last":
        if not owner.books:
            raise UsageError(
                "there is no job here", "none was submitted on this node", "start one: p2pc run", code="no-job"
            )
        return max(owner.books.values(), key=lambda book: (book.job.is_own, book.record.order))
    if ref in owner.aliases:
        return owner.books[owner.aliases[ref]]
    if _WHOLE_ID.fullmatch(ref):
        # What followers ask for with each event: no look at every job.
        whole = owner.books.get(bytes.fromhex(ref))
        if whole is not None:
            return whole
    found = [book for job_id, book in owner.books.items() if len(ref) >= 4 and job_id.hex().startswith(ref.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{ref!r} names {len(found)} jobs", "the prefix is too short", "give more of the id", code="no-job"
        )
    import difflib

    near = difflib.get_close_matches(ref, owner.aliases, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"there is no job {ref!r} here", "it may have been pruned", f"{hint}list them: p2pc jobs --all", code="no-job"
    )


def find_node(peers: Sequence[PeerView], ref: str, known: Sequence[TrustView] = ()) -> PeerView:
    """Return the node that a name, the beginning of an id, or a whole public key in hexadecimal names.

    Args:
        known: all that were ever met; the blocked, the removed and those long away are among them, and no peers.

    Raises:
        UsageError: none or several.
    """
    if not ref.strip():
        raise UsageError("no node is named", "the name is empty", "list them: p2pc peers", code="no-such-node")
    found = [peer for peer in peers if peer.name == ref]
    if not found and len(ref) == 2 * PUBLIC_KEY_BYTES:
        found = [peer for peer in peers if peer.public_key.hex() == ref.lower()]
    if not found:
        prefix = ref.upper().replace("-", "")
        ids = [(peer, format_device_id(peer.public_key).replace("-", "")) for peer in peers]
        found = [peer for peer, full in ids if len(prefix) >= ID_CHARS_MIN and full.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        ids_text = ", ".join(short_device_id(peer.public_key) for peer in found[:4])
        raise UsageError(
            f"{ref!r} names {len(found)} nodes", f"they are {ids_text}", "give its id", code="no-such-node"
        )
    import difflib

    for one in known:
        if one.name == ref and not one.is_self:
            raise _gets_no_work(one)
    near = difflib.get_close_matches(ref, [*(one.name for one in peers), *(one.name for one in known)], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    why = "no node of that name or id is known here"
    raise UsageError(f"there is no node {ref!r}", why, f"{hint}list them: p2pc peers", code="no-such-node")


def find_nodes(
    peers: Sequence[PeerView], refs: Sequence[str], known: Sequence[TrustView] = (), *, is_to_avoid: bool = False
) -> tuple[bytes, ...]:
    """Return the keys of the nodes that people name, each once.

    Args:
        known: as `find_node` takes it.
        is_to_avoid: nodes that get no work anyway may be named.

    Raises:
        UsageError: one names none or several, or a node that gets no work; or there are too many.
    """
    names = [peer.name for peer in peers]
    avoided = []
    for one in known if is_to_avoid else ():
        if one.name in refs and one.name not in names and not one.is_self:
            if not (one.is_removed or one.level is Level.BLOCKED):
                avoided.append(one.key)
            refs = [ref for ref in refs if ref != one.name]
    if len(refs) > NODES_CHOSEN_MAX:
        what = f"{len(refs)} nodes are too many to name"
        raise UsageError(what, f"up to {NODES_CHOSEN_MAX}", "tag them, and require tag=NAME", code="too-many-nodes")
    return tuple(dict.fromkeys([*avoided, *(find_node(peers, ref, known).public_key for ref in refs)]))


def _gets_no_work(one: TrustView) -> UsageError:
    """Return why a node that is known, and is none of the peers, cannot be chosen."""
    how, why, fix = "is away", "it was not heard here lately", "start its node, there: p2pc node start"
    if one.is_removed:
        how, why, fix = "was removed from the group", "it gets no work", "invite it again: p2pc invite"
    elif one.level is Level.BLOCKED:
        how, why, fix = "is blocked here", "it gets no work", f"p2pc trust set {one.name} member"
    return UsageError(f"{one.name} {how}", why, fix, code="no-such-node")


def job(
    book: JobBook, now: float, name_of: Callable[[bytes], str], slots_of: Callable[[bytes], int], identity: Identity
) -> JobView:
    """Return a job as it stands.

    A node that holds more tasks of the job than it has slots runs at most one in each; the rest waits there.
    """
    owned, ledger, record = book.job, book.job.ledger, book.record
    counts = ledger.counts
    done = counts[TaskState.DONE] + counts[TaskState.CLAIMED]
    failed = counts[TaskState.FAILED] + counts[TaskState.CLAIMED_FAILED]
    cancelled = counts[TaskState.CANCELLED]
    by_thief = {key: min(share[0], slots_of(key)) for key, share in owned.by_thief.items()}
    running = sum(by_thief.values())
    checks = owned.checked.leases.keys() if owned.checked is not None else frozenset()
    is_over = ledger.is_complete
    if is_over:
        state = "failed" if failed else "cancelled" if cancelled else "done"
        exit_code = (0 if ",success=" in owned.halted else 3) if cancelled else 1 if failed else 0
        exit_code = 124 if cancelled and owned.halted == DEADLINE else exit_code
        if (exit_code == 0 and owned.revoked_late) or (exit_code == 1 and _is_disputed(owned)):
            exit_code = 8
    else:
        state, exit_code = ("running" if running or done or failed else "waiting"), None
    shares = []
    for key, (_leased, done_there, failed_there) in owned.by_thief.items():
        rate = book.rates[key].at(now) if key in book.rates else 0.0
        shares.append(
            NodeShare(
                node=name_of(key),
                public_key=identity.public_key if key == LOCAL else key,
                running=by_thief[key],
                done=done_there,
                failed=failed_there,
                rate=round(rate, 3) if rate > RATE_SHOWN_MIN and not is_over else None,
            )
        )
    return JobView(
        job_id=owned.envelope.job_id,
        alias=record.alias,
        name=owned.envelope.terms.name,
        state=state,
        total=ledger.total,
        added=ledger.size,
        done=done,
        failed=failed,
        running=running,
        waiting=waiting_count(counts[TaskState.OPEN], running, len(owned.leases.keys() | checks)),
        cancelled=cancelled,
        retried=owned.retried,
        submitted=record.submitted,
        finished=record.finished if is_over else None,
        by_node=tuple(sorted(shares, key=lambda share: (share.public_key != identity.public_key, share.node))),
        exit_code=exit_code,
        halted=owned.halted if cancelled else "",  # a rule that is met by the last task has stopped nothing
        note=record.note,
        last_seq=len(ledger.finished),
        owner="" if owned.is_own else name_of(owned.envelope.signer),
        custodians=tuple(name_of(key) for key in owned.envelope.terms.custodians),
        claimed=counts[TaskState.CLAIMED] + counts[TaskState.CLAIMED_FAILED],
        checking=0 if owned.checked is None else sum(index in owned.checked.outputs for index in owned.checked.held),
        revoked=owned.revoked_late,
        disputed=owned.nondeterministic,
        priority=owned.envelope.terms.priority,
        deadline=owned.envelope.terms.deadline_ms / 1000 or None,
        lately_s=0.0 if is_over else _lately_s(book, now, running),
    )


def coordinator(found: Outlook | None, clock: Clock, name_of: Callable[[bytes], str]) -> CoordinatorView | None:
    """Return who gives out the tasks of a job that is kept here for another node.

    Moments are whole seconds, so that what has not changed looks the same a moment later.
    """
    if found is None:
        return None
    if found.away_since is None:
        return CoordinatorView(name_of(found.coordinator), found.is_owner)
    since_boot = clock.wall() - clock.now()
    return CoordinatorView(
        name_of(found.coordinator),
        found.is_owner,
        round(found.away_since + since_boot),
        "" if found.next is None else name_of(found.next),
        None if found.next is None else round(found.next_at + since_boot),
    )


def doubt(job: OwnedJob, core: OwnerCore, now: float, name_of: Callable[[bytes], str]) -> tuple[str, str]:
    """Return whose results are not believed yet and what they wait for, and what a person can do about it."""
    checked = job.checked
    waiting = [] if checked is None else [index for index in checked.held if index in checked.outputs]
    if checked is None or not waiting:
        return "", ""
    looked = waiting[:DOUBTED_LOOKED_MAX]
    keys = list(dict.fromkeys(one.thief for index in looked for one in checked.outputs[index].values()))
    names = [name_of(key) for key in keys[:DOUBTED_NAMED_MAX]]
    more = f" and {len(keys) - len(names)} more" if len(keys) > len(names) else ""
    what = f"{len(waiting)} {'result' if len(waiting) == 1 else 'results'} of {', '.join(names)}{more}"
    what += f" {'is' if len(waiting) == 1 else 'are'} not believed yet"
    claimants = {worker for index in looked if index in checked.numbers for worker in checked.claims_of(index)}
    if core.has_other(now, job, (), are_believed=True):
        return f"{what}: a trusted node computes them again when nothing else is to do", ""
    fix = f"is it yours?  p2pc trust set {names[0] if len(names) == 1 else 'NODE'} trusted"
    if not core.has_other(now, job, claimants):
        return f"{what}: no trusted node works here, and no other member to find the same", f"{fix}, or invite another"
    return f"{what}: no trusted node works here; they wait until another member finds the same", fix


def _is_disputed(job: OwnedJob) -> bool:
    """Whether tasks have failed only because nobody could say which of their results is right."""
    ledger = job.ledger
    failed = [index for index in ledger.reasons if ledger.state(index) is TaskState.FAILED]
    return bool(failed) and all(ledger.reasons[index].startswith(DISPUTED) for index in failed)


def _lately_s(book: JobBook, now: float, running: int) -> float:
    """Return about how much slot time a job has had lately: of what ended then, and half of what each running task
    should take."""
    task_s = book.job.task_s
    return book.usage.at(now) + running * (USAGE_TAU_S if task_s is None else min(task_s, USAGE_TAU_S)) / 2


def with_shares(jobs: Sequence[JobView]) -> list[JobView]:
    """Return the jobs with the share of slot time that each had lately of what they had together."""
    total_s = sum(job.lately_s for job in jobs)
    return [replace(job, share=None if job.is_over or not total_s else job.lately_s / total_s) for job in jobs]


def dht(found: Dht) -> DhtStatus:
    """Return how this node does in the DHT of its group."""
    counters = found.counters
    return DhtStatus(
        contacts=found.contact_count,
        first_contact_s=found.first_contact_s,
        last_contact_s=found.last_contact_s,
        rtt_s=found.rtt_s,
        datagrams_received=counters.datagrams_received,
        requests_sent=counters.requests_sent,
        requests_timed_out=counters.requests_timed_out,
        lookups=counters.lookups,
        lookup_requests=counters.lookup_requests,
        lookup_hops=counters.lookup_hops,
        role="client" if found.is_client else "server",
        index="degraded" if found.index.is_degraded else "ok" if found.index.is_used else "unused",
    )


def _path(rtt_s: float | None, address: Address, *, is_client: bool) -> str:
    if is_client:
        kind = "calls here"  # and cannot be called
    else:
        kind = "this machine" if address.host.startswith("127.") or address.host == "::1" else "direct"
    return kind if rtt_s is None else f"{kind} {max(1, round(rtt_s * 1000))} ms"


def _refusal(own: Membership | None, member: Membership | None) -> str:
    """Say why a member would not work for this node; empty: it may."""
    if own is not None and "submit" not in own.roles:
        return "this computer may not submit work to others in this group"
    return "it may not work in this group" if member is not None and "work" not in member.roles else ""


def peers(
    own_name: str, identity: Identity, scheduler: Scheduler, network: Network, credentials: GroupCredentials
) -> list[PeerView]:
    """Return this node first, then its peers by name; members that fell silent are among them."""
    worker = scheduler.worker.core
    own = PeerView(
        name=own_name,
        public_key=identity.public_key,
        state="self",
        level="self",
        slots=worker.slot_count,
        busy=worker.busy_slots,
        path="self",
        address=", ".join(str(a) for a in network.own_addresses()),
    )
    dht = network.dht
    clients = {} if dht is None else {contact.key: contact for contact in dht.clients()}
    away = network.away()
    servers = {} if dht is None else {contact.key: contact for contact in dht.contacts()}
    contacts = {**away, **servers, **clients}
    own_member = credentials.own_membership_if_any()
    own_keys = (identity.public_key, credentials.installation_of(identity.public_key))
    views = []
    for key, addresses in [*scheduler.peers.items(), *((key, ()) for key in away)]:
        contact = contacts.get(key)
        channel = network.channels.get(key)
        hello = channel.peer.hello if channel is not None else {}
        slots = hello.get("slots")
        is_up = network.is_up(key)
        installation = credentials.installation_of(key) or key
        member = credentials.membership_of(installation)
        inviter = b"" if member is None or member.inviter == installation else member.inviter
        inviter_name = own_name if inviter in own_keys else network.name_of(inviter) if inviter else ""
        address = addresses[0] if addresses else (contact.address if contact else None)
        rtt_s = contact.rtt_s if contact is not None else None
        views.append(
            PeerView(
                name=network.name_of(key) or short_device_id(key),
                public_key=key,
                state="not seen" if not is_up else "up" if network.is_met(key) else "not met",
                seen_s=network.seen_s(key),
                slots=slots,
                busy=None if slots is None else min(slots, sum(scheduler.victim.leased_to(key))),
                path=_path(rtt_s, address, is_client=key in clients) if address is not None and is_up else "",
                address=str(address) if address is not None else "",
                version=hello.get("build", ""),
                python=".".join(map(str, hello.get("python", ()))),
                level=str(credentials.level_of(installation)),
                ban=scheduler.acceptance.ban_of(installation),
                refusal=_refusal(own_member, member),
                invited_by=inviter_name or (short_device_id(inviter) if inviter else ""),
            )
        )
    if identity.public_key in [view.public_key for view in views]:
        views = [view for view in views if view.public_key != identity.public_key]
    return [own, *sorted(views, key=lambda view: (view.name, view.public_key))]
