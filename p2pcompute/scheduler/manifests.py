"""What a coordinator of a job says that it has given out: a worker that gives tasks on shows it to whoever gets them.

A thief knows who grants tasks from the channel; when that is not their coordinator but a worker that holds them, its
word is no proof that the job has such tasks.  Without one a member could have a command of its own run as somebody
else's: by the submitter's own node, at the level of its own work, or as a result that counts as a trusted node's.

One signature covers a whole grant, which is what travels on with any part of it: the worker needs to ask nobody when
its coordinator is away.  It ends after MANIFEST_S, so that what was given out once is not run again for as long as a
job may be begun.

Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import GRANT_TASKS_MAX, JOB_SKEW_S_MAX, MANIFEST_BYTES_MAX, MANIFEST_S
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.wire.envelope import open_envelope
from p2pcompute.wire.fields import listed

MANIFEST_CONTENT_TYPE: Final = "p2pc.manifest/1"
_DIGEST_BYTES: Final = 16


def sign_manifest(identity: Identity, grant: Grant, *, wall: float) -> bytes:
    """Return what this node, which coordinates the job, says of the tasks of a grant.

    Args:
        wall: Unix seconds.
    """
    until_ms = int((wall + MANIFEST_S) * 1000)
    return identity.sign_envelope(
        MANIFEST_CONTENT_TYPE, [grant.job_id, grant.epoch, until_ms, [_entry(task) for task in grant.tasks]]
    )


def check_manifest(crypto: Crypto, raw: bytes, job: JobEnvelope, tasks: Sequence[GrantedTask], *, wall: float) -> int:
    """Look whether a coordinator of the job has given these tasks out, as they are.

    Returns:
        The epoch in which it did.

    Raises:
        RemoteProtocolError: it has not, or nothing tells so any more.
    """
    if not raw:
        raise RemoteProtocolError("tasks of another node, and nothing that shows whose they are")
    envelope = open_envelope(crypto, raw, MANIFEST_CONTENT_TYPE, bytes_max=MANIFEST_BYTES_MAX)
    job_id, epoch, until_ms, entries = listed(envelope.payload, 4, "manifest")
    if envelope.signer not in job.coordinators or job_id != job.job_id:
        raise RemoteProtocolError("tasks that no coordinator of the job has given out")
    if type(epoch) is not int or not epoch >= 0 or type(until_ms) is not int:
        raise RemoteProtocolError("malformed manifest")
    if wall > until_ms / 1000 + JOB_SKEW_S_MAX:
        raise RemoteProtocolError("tasks that were given out too long ago")
    if not isinstance(entries, list) or len(entries) > GRANT_TASKS_MAX:
        raise RemoteProtocolError("malformed manifest")
    given = [listed(entry, 4, "manifest") for entry in entries]
    if not all(_entry(task) in given for task in tasks):
        raise RemoteProtocolError("tasks that no coordinator of the job has given out")
    return epoch


def _entry(task: GrantedTask) -> list[int | bytes]:
    """[index, generation, attempt, digest of all that the task is begun with]"""
    digest = hashlib.blake2b(len(task.payload).to_bytes(8, "big"), digest_size=_DIGEST_BYTES)
    digest.update(task.payload)
    digest.update(len(task.cookie).to_bytes(8, "big"))
    digest.update(task.cookie)
    if task.cookie_blob is not None:
        digest.update(task.cookie_blob.digest + task.cookie_blob.size.to_bytes(8, "big"))
    return [task.index, task.generation, task.attempt, digest.digest()]
