"""What a bundle or an evidence file shows, for people and programs."""

from __future__ import annotations

from typing import Any

from p2pcompute.ids import format_device_id, short_device_id
from p2pcompute.scheduler.bundles import Equivocation, Report


def report_json(report: Report) -> dict[str, Any]:
    """Return the report as a document."""
    return {
        "schema": "p2pc.verified/1",
        "kind": "evidence" if report.job is None else "bundle",
        "job_id": None if report.job is None else report.job.job_id.hex(),
        "name": None if report.job is None else report.job.terms.name,
        "submitter": None if report.job is None else format_device_id(report.job.submitter),
        "tasks": report.tasks,
        "accepted": report.accepted,
        "failed": report.failed,
        "revoked": report.revoked,
        "by_owner": report.by_owner,
        "signed_by": {str(count): tasks for count, tasks in sorted(report.backed.items())},
        "checked": dict(report.why),
        "workers": [
            {"id": format_device_id(key), "agreed": count, "differed": len(report.differing.get(key, ()))}
            for key, count in report.signers.items()
        ]
        + [
            {"id": format_device_id(key), "agreed": 0, "differed": len(tasks)}
            for key, tasks in report.differing.items()
            if key not in report.signers
        ],
        "equivocations": [_equivocation_json(one) for one in report.equivocations],
    }


def _equivocation_json(one: Equivocation) -> dict[str, Any]:
    return {
        "id": format_device_id(one.signer),
        "job_id": one.job_id.hex(),
        "index": one.index,
        "generation": one.generation,
        "attempt": one.attempt,
    }


def report_text(report: Report) -> str:
    """Return the report as lines."""
    lines: list[str] = []
    if report.job is not None:
        job = report.job
        lines.append(f"genuine: job {job.job_id.hex()[:16]} {job.terms.name!r} of {format_device_id(job.submitter)}")
        lines.append(f"  {report.accepted} of {report.tasks} results accepted, {report.failed} tasks failed")
        for count, tasks in sorted(report.backed.items()):
            who = "by the owner alone" if not count else "by 1 worker" if count == 1 else f"by {count} workers"
            lines.append(f"  {tasks} signed {who}")
        for why, tasks in sorted(report.why.items()):
            lines.append(f"  {tasks} checked: {why}")
        if report.revoked:
            lines.append(f"  {report.revoked} results were revoked and computed again")
        for worker, differing in report.differing.items():
            numbers = ", ".join(str(index + 1) for index in differing[:8]) + (" …" if len(differing) > 8 else "")
            lines.append(f"  {short_device_id(worker)} claimed something else of tasks {numbers}")
    for one in report.equivocations:
        where = f"task {one.index + 1} of job {one.job_id.hex()[:16]}"
        lines.append(f"proven: {format_device_id(one.signer)} signed two different results for {where}")
    return "\n".join(lines)
