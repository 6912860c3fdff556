"""JSON of the control API: the node's views in the documented shapes.

Fields are only added within a schema number.  Times are RFC 3339 UTC, durations seconds, sizes bytes, unknown null.
"""

from __future__ import annotations

import base64
import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import msgspec

from p2pcompute.api.options import moment
from p2pcompute.errors import P2pcError, RemoteProtocolError
from p2pcompute.execution.spec import TaskPayload, decode_payload
from p2pcompute.host.runs import Outcome
from p2pcompute.ids import format_device_id, short_device_id
from p2pcompute.limits import INLINE_BYTES_MAX, PROTOCOL_MAX, PROTOCOL_MIN
from p2pcompute.node.facade import (
    BeliefView,
    CoordinatorView,
    DescribedView,
    EvidenceView,
    ExplanationView,
    IdleView,
    JobView,
    NodeFacade,
    NodeShare,
    PeerView,
    PolicyView,
    TaskProgress,
    TaskView,
    TrustView,
)
from p2pcompute.resources.attributes import Attributes, age_s
from p2pcompute.resources.explaining import flags_of
from p2pcompute.resources.expressions import compile_expression
from p2pcompute.resources.matching import Verdict
from p2pcompute.resources.questions import Findings, Found, Query, unheard_names
from p2pcompute.version import VERSION


class Note(msgspec.Struct, omit_defaults=True):
    """What the daemon keeps with a job in the node's `client_note`."""

    kind: str = ""
    results: dict[str, Any] | None = None
    note: dict[str, Any] = {}
    request: str = ""
    """By which its submission is known when it is repeated."""


def decode_note(text: str) -> Note:
    """Return the note of a job; an empty one for jobs that were not submitted here."""
    try:
        return msgspec.json.decode(text, type=Note)
    except msgspec.DecodeError:
        return Note()


def encode_note(note: Note) -> str:
    return msgspec.json.encode(note).decode()


def time_text(wall: float | None) -> str | None:
    """Return Unix seconds as RFC 3339 UTC with microseconds; None for 0, and for what no calendar has."""
    known = moment(wall or 0.0)
    return None if known is None else known.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def error_json(error: P2pcError, **more: Any) -> dict[str, Any]:
    return {
        "schema": "p2pc.error/1",
        "code": error.code,
        "what": error.what,
        "why": error.why,
        "fix": error.fix or "",
        **more,
    }


def version_json() -> dict[str, Any]:
    return {"version": VERSION, "protocol": [PROTOCOL_MIN, PROTOCOL_MAX]}


def idle_json(view: IdleView) -> dict[str, Any]:
    return {
        "schema": "p2pc.idle/1",
        "profile": view.profile,
        "others_share": view.others_share,
        "own_runs": view.own_runs,
        "why": view.why or None,
        "since": time_text(view.since_s),
        "resumes": view.resumes or None,
        "rules": [{"rule": rule, "now": now, "result": result} for rule, now, result in view.rules],
        "standing_still": view.standing_still,
    }


def status_json(node: NodeFacade) -> dict[str, Any]:
    status = node.status()
    return {
        "schema": "p2pc.status/1",
        "node": {
            "name": status.name,
            "id": format_device_id(status.public_key),
            "short_id": short_device_id(status.public_key),
            "state": status.state,
            "paused_because": status.paused_because or None,
            "paused_since": time_text(status.paused_since) if status.paused_because else None,
            "pid": os.getpid(),
            "version": VERSION,
            "protocol": [PROTOCOL_MIN, PROTOCOL_MAX],
            "uptime_s": round(status.uptime_s, 3),
            "port": status.port,
            "listening": "network" if status.is_on_network else "loopback",
        },
        "group": {
            "name": status.group_name,
            "id": status.group_id.hex(),
            "hint": status.group_hint.hex(),
            "members_known": status.members_known,
            "is_alone": status.is_alone,
            "is_removed": status.is_removed,
        },
        "slots": {"total": status.slots_total, "busy": status.slots_busy},
        "peers": [peer_json(peer) for peer in node.peers()],
        "jobs": {"running": status.jobs_running, "waiting": status.jobs_waiting},
        "cpu_s": {"given": round(status.cpu_given_s, 3), "taken": round(status.cpu_taken_s, 3)},
        "dht": None if status.dht is None else asdict(status.dht),
        "seeds": [asdict(seed) for seed in status.seeds],
        "notes": list(status.notes),
    }


def peer_json(peer: PeerView) -> dict[str, Any]:
    is_self = peer.state == "self"
    return {
        "name": peer.name,
        "id": format_device_id(peer.public_key),
        "short_id": short_device_id(peer.public_key),
        "state": peer.state,
        "seen_s": peer.seen_s,
        "slots": peer.slots,
        "busy": peer.busy,
        "rate": peer.rate,
        "path": peer.path,
        "address": peer.address,
        "version": VERSION if is_self else peer.version,
        "python": platform.python_version() if is_self else peer.python,
        "invited_by": peer.invited_by,
        "trust": peer.level,
        "banned": peer.ban or None,
    }


def attributes_json(attributes: Attributes, wall_s: float) -> dict[str, Any]:
    """Return values by name, each with its age; sorted."""
    return {
        name: {
            "value": list(item.value) if isinstance(item.value, tuple) else item.value,
            "age_s": round(age_s(item, wall_s), 3),
            "lifetime_s": item.lifetime_s,
            "accuracy": item.accuracy,
        }
        for name, item in sorted(attributes.items())
    }


def described_json(view: DescribedView, wall_s: float) -> dict[str, Any]:
    return {
        "schema": "p2pc.peer/1",
        **peer_json(view.peer),
        "attributes": attributes_json(view.attributes, wall_s),
        "age_s": None if view.age_s is None else round(view.age_s, 3),
        "trouble": view.trouble or None,
    }


def found_json(found: Found, peers: Mapping[bytes, PeerView], wall_s: float) -> dict[str, Any]:
    """Return a node of which an expression is true; `age_s` is since it said so."""
    peer = peers.get(found.key)
    name = found.attributes.get("name")
    return {
        "name": str(name.value) if name is not None else peer.name if peer is not None else "",
        "id": format_device_id(found.key),
        "short_id": short_device_id(found.key),
        "state": peer.state if peer is not None else "up",
        "path": peer.path if peer is not None else "",
        "rank": found.rank,
        "age_s": round(found.age_s, 3),
        "is_silent": found.is_silent,
        "attributes": attributes_json(found.attributes, wall_s),
    }


def findings_json(findings: Findings, query: Query, node: NodeFacade) -> dict[str, Any]:
    """Return nodes, and how far the answer can be relied on: see `resources.questions.Findings`.

    `names` are the attributes that the question is about.
    """
    peers, wall_s = {peer.public_key: peer for peer in node.peers()}, node.clock.wall()
    ages = [item.age_s for item in findings.found]
    return {
        "schema": "p2pc.find/1",
        "items": [found_json(item, peers, wall_s) for item in findings.found],
        "names": list(query.names),
        "oldest_s": round(max(ages), 3) if ages else None,
        "candidates": findings.candidates,
        "answered": findings.answered,
        "unknown": findings.unknown,
        "silent": findings.silent,
        "too_old": findings.too_old,
        "not_asked": findings.not_asked,
        "asked": findings.asked,
        "unheard": unheard_json(query, findings),
        "took_s": round(findings.took_s, 3),
        "is_cut_off": findings.is_cut_off,
    }


def unheard_json(query: Query, findings: Findings) -> list[dict[str, Any]]:
    """Return what a question names and probably no node has, each with what may be meant."""
    return [{"name": name, "near": near or None} for name, near in unheard_names(query, findings)]


def explanation_json(explained: ExplanationView, job: JobView | None, only: bytes | None) -> dict[str, Any]:
    """Return what nodes say to a job.

    `flags` are the words by which `p2pc run` asks for what the job needs; those of a suggestion replace them.

    Args:
        job: None when it is not submitted.
        only: key of the one node to speak of.
    """
    report = explained.report
    required = {name for text in explained.needs.require for name in compile_expression(text.strip()).names}
    helps = report if only is None else explained.about(only)
    pairs = zip(explained.peers, report.accounts, strict=True)
    return {
        "schema": "p2pc.explanation/1",
        "job": None if job is None else job_json(job),
        "nodes": [
            {
                "name": peer.name,
                "id": format_device_id(peer.public_key),
                "short_id": short_device_id(peer.public_key),
                "is_this": peer.state == "self",
                "verdict": str(account.verdict),
                "reasons": [
                    {
                        "code": finding.code,
                        "verdict": str(finding.verdict),
                        "what": finding.what,
                        "fix": finding.fix or None,
                        "passes_at": time_text(finding.passes_s),
                    }
                    for finding in account.findings
                ],
            }
            for peer, account in pairs
            if only is None or peer.public_key == only
        ],
        "left_out": explained.left_out,
        "now": report.count(Verdict.NOW),
        "later": report.count(Verdict.LATER),
        "never": report.count(Verdict.NEVER),
        "unknown": report.count(Verdict.UNKNOWN),
        "can_never_run": report.can_never_run and not explained.left_out,
        "flags": flags_of(explained.needs),
        "would_help": [
            {
                "what": one.what,
                "effect": one.effect,
                "nodes": one.nodes,
                "flags": flags_of(one.needs),
                "drop": [edit.flag for edit in one.edits if edit.flag in ("--on", "--not-on", "--local")],
            }
            for one in helps.suggestions
        ],
        "not_the_cause": helps.not_the_cause,
        "why_slow": [{"code": one.code, "what": one.what, "fix": one.fix or None} for one in explained.slow],
        "unheard": [
            {"name": name, "near": near or None, "is_required": name in required} for name, near in explained.unheard
        ],
    }


def peers_json(node: NodeFacade, *, with_nearby: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"schema": "p2pc.peers/1", "items": [peer_json(peer) for peer in node.peers()]}
    if with_nearby:
        answer["nearby"] = [
            {
                "name": near.name,
                "id": format_device_id(near.public_key),
                "short_id": short_device_id(near.public_key),
                "address": near.address,
            }
            for near in node.nearby()
        ]
    return answer


def trust_json(view: TrustView) -> dict[str, Any]:
    return {
        "name": view.name,
        "id": format_device_id(view.key),
        "short_id": short_device_id(view.key),
        "level": "self" if view.is_self else str(view.level),
        "removed": view.is_removed,
        "up": view.is_up,
        "roles": None if view.roles is None else list(view.roles),
        "invited_by": view.inviter or None,
        "reason": view.reason or None,
        "set": time_text(view.set_at),
        "heard": time_text(view.heard),
        "banned": view.banned or None,
    }


def policy_json(view: PolicyView) -> dict[str, Any]:
    return {
        "schema": "p2pc.policy/1",
        "group": view.group,
        "accept": view.in_force.accept or None,
        "open": view.in_force.is_open,
        "puzzle": view.in_force.open_bits,
        "set_by": list(view.set_by),
        "set": time_text(view.set_at),
        "may_change": view.may_change,
        "own_accept": view.own_accept or None,
        "not_understood": view.unknown_count,
        "takes_none": view.is_beyond,
    }


def evidence_json(view: EvidenceView) -> dict[str, Any]:
    return {
        "schema": "p2pc.evidence/1",
        "claims": view.claims,
        "agreed": view.agreed,
        "wrong": view.wrong,
        "standing": view.standing or None,
        "banned": view.banned or None,
        "banned_at": time_text(view.banned_at),
        "events": [
            {
                "at": time_text(event.at),
                "job": event.job or None,
                "job_id": event.job_id.hex(),
                "index": event.index,
                "what": event.what,
            }
            for event in view.events
        ],
        "proof_b64": base64.b64encode(view.proof).decode() if view.proof else None,
    }


def share_json(share: NodeShare) -> dict[str, Any]:
    return {
        "node": share.node,
        "short_id": short_device_id(share.public_key),
        "running": share.running,
        "done": share.done,
        "failed": share.failed,
        "rate": share.rate,
        "note": share.note,
    }


def progress_of(said: TaskProgress | None) -> dict[str, Any] | None:
    """Return how far a task says that it is."""
    return None if said is None else {"done": said.done, "total": said.total, "note": said.note}


def coordinator_json(found: CoordinatorView | None) -> dict[str, Any] | None:
    """Return who gives out the tasks of another node's job, and who will when that one is away."""
    if found is None:
        return None
    return {
        "node": found.name,
        "is_owner": found.is_owner,
        "away_since": time_text(found.away_since),
        "next": found.next_name or None,
        "next_at": time_text(found.next_at),
    }


def progress_json(job: JobView) -> dict[str, Any]:
    """The part of a job that moves."""
    return {
        "state": job.state,
        "total": job.total,
        "added": job.added,
        "done": job.done,
        "failed": job.failed,
        "running": job.running,
        "waiting": job.waiting,
        "cancelled": job.cancelled,
        "retried": job.retried,
        "checking": job.checking,
        "doubt": {"what": job.doubt, "fix": job.doubt_fix or None} if job.doubt else None,
        "coordinator": coordinator_json(job.coordinator),
        "by_node": [share_json(share) for share in job.by_node],
    }


def job_json(job: JobView) -> dict[str, Any]:
    note = decode_note(job.note)
    return {
        "schema": "p2pc.job/1",
        "id": job.job_id.hex(),
        "alias": job.alias,
        "name": job.name,
        "kind": note.kind,
        **progress_json(job),
        "submitted": time_text(job.submitted),
        "finished": time_text(job.finished),
        "exit_code": job.exit_code,
        "halted": job.halted or None,
        "priority": job.priority,
        "deadline": time_text(job.deadline),
        "share": None if job.share is None else round(job.share, 4),
        "results": note.results,
        "note": note.note,
        "last_seq": job.last_seq,
        "owner": job.owner or None,
        "custodians": list(job.custodians),
        "claimed": job.claimed,
        "revoked": job.revoked,
        "disputed": job.disputed,
    }


_NO_OUTCOME: Final[dict[str, Any]] = {
    "status": None,
    "exit_code": None,
    "signal": None,
    "cause": None,
    "runtime_s": None,
    "cpu_s": None,
    "peak_rss_bytes": None,
    "started": None,
    "stdout_bytes": None,
    "stderr_bytes": None,
    "value_bytes": None,
    "files": [],
}


def _length(inline: bytes, blob: tuple[bytes, int] | None) -> int:
    return len(inline) if blob is None else blob[1]


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": str(outcome.status),
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "cause": outcome.cause or None,
        "runtime_s": outcome.runtime_s,
        "cpu_s": outcome.cpu_s,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "started": time_text(outcome.started_wall),
        "stdout_bytes": _length(outcome.stdout, outcome.stdout_blob),
        "stderr_bytes": _length(outcome.stderr, outcome.stderr_blob),
        "value_bytes": _length(outcome.value, outcome.value_blob),
        "files": [{"name": file.name, "size": file.size, "mode": file.mode} for file in outcome.files],
    }


def command_text(payload: TaskPayload, kind: str) -> str:
    """Return the command as a person would type it; empty for functions."""
    if kind == "shell" and len(payload.argv) == 1:
        return payload.argv[0]
    return shlex.join(payload.argv)


def task_json(task: TaskView, kind: str) -> dict[str, Any]:
    """Return a task; `kind` is its job's."""
    try:
        payload = decode_payload(task.payload) if task.payload else TaskPayload()
    except RemoteProtocolError:
        payload = TaskPayload()
    outcome = task.outcome
    return {
        "index": task.index,
        "generation": task.generation,
        "seq": task.seq,
        "inputs": list(payload.inputs),
        "command": command_text(payload, kind),
        "state": task.state,
        "node": task.node_name or None,
        "node_id": format_device_id(task.node_key) if len(task.node_key) == 32 else None,
        "attempts": task.attempts,
        **(_NO_OUTCOME if outcome is None else _outcome_json(outcome)),
        "error": (outcome.error if outcome is not None else "") or task.reason or None,
        "chunk": payload.chunk or None,
        "key": payload.key.hex() or None,
        "sent_bytes": sum(file.blob.size for file in payload.send) + (payload.stdin_blob or (b"", 0))[1],
    }


def belief_json(view: BeliefView | None) -> dict[str, Any] | None:
    return None if view is None else {"believed": view.is_believed, "why": view.why}


def task_event_json(task: TaskView, kind: str) -> dict[str, Any]:
    """Return a task with what it printed and returned, where that is short; long content is fetched on its own."""
    event = task_json(task, kind)
    outcome = task.outcome
    if outcome is None:
        return event
    for name, inline, blob in (
        ("stdout_b64", outcome.stdout, outcome.stdout_blob),
        ("stderr_b64", outcome.stderr, outcome.stderr_blob),
        ("value_b64", outcome.value, outcome.value_blob),
    ):
        event[name] = inline if blob is None and len(inline) <= INLINE_BYTES_MAX else None
    return event
