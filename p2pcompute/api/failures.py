"""The exceptions of calls that have no value: what a task, a lost node or a closed executor becomes for who asks."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from p2pcompute.api.pickling import load_exception
from p2pcompute.errors import P2pcError, TaskError, UsageError, WorkerDied
from p2pcompute.host.runs import Outcome, OutcomeStatus

OUTPUT_SHOWN_BYTES: Final = 2048
"""End of a task's standard error in an exception."""


def failure(outcome: Outcome | None, reason: str, node: str | None, data: bytes) -> BaseException:
    """Return the exception for a task that has failed for good.

    Args:
        outcome: of its last attempt, where there was one.
        reason: why it was given up.
        data: the outcome's value, read from its blob where it was one.
    """
    if outcome is None:
        return TaskError("a task was given up", reason, node=node)
    if outcome.status is OutcomeStatus.FAILED and data:
        return _hinted(load_exception(data), node)
    stderr = outcome.stderr[-OUTPUT_SHOWN_BYTES:].decode("utf-8", "replace")
    text = outcome.error.strip() or reason or str(outcome.status)
    error: TaskError
    match outcome.status:
        case OutcomeStatus.TIMEOUT:
            error = WorkerDied(
                text,
                "the time limit of the task",
                "give it more: TaskOptions(timeout=…)",
                code="timeout",
                node=node,
                cause="timeout",
                signal=outcome.signal,
                peak_rss=outcome.peak_rss_bytes or None,
            )
        case OutcomeStatus.DIED:
            cause = outcome.cause or "signal"
            error = WorkerDied(
                text,
                "out of memory" if cause == "oom" else reason,
                "limit it with TaskOptions(mem=…), or split the work" if cause == "oom" else None,
                node=node,
                cause=cause,
                signal=outcome.signal,
                peak_rss=outcome.peak_rss_bytes or None,
            )
        case _:
            error = TaskError(text, reason if reason != text else "", node=node, remote_traceback=outcome.error)
    error.stderr_tail = stderr
    return error


def _hinted(error: BaseException, node: str | None) -> BaseException:
    """Say of a file that a call has not found that it is here: the commonest mistake of all."""
    name = getattr(error, "filename", None)
    with contextlib.suppress(OSError, ValueError):  # of a name that no file can have
        if isinstance(error, FileNotFoundError) and isinstance(name, str) and os.path.exists(name):
            error.add_note(
                f"This file is here, and the call ran on {node or 'another node'}: send it along, with_options(send="
                '["{}"]) where its name is the first argument, or stay here, MeshExecutor(local=True).'
            )
    return error


def lost(why: BaseException | None) -> P2pcError:
    """Return the error of futures whose node is gone."""
    if isinstance(why, P2pcError):
        return why
    return P2pcError(
        "the embedded node has ended before this task",
        "" if why is None else f"{type(why).__name__}: {why}",
        "make a new executor",
        code="node-ended",
    )


def closed() -> RuntimeError:
    """Return what `concurrent.futures` raises in this case."""
    return RuntimeError("cannot schedule new futures after shutdown")


def forked() -> UsageError:
    return UsageError(
        "this executor belongs to another process",
        "it was made before a fork, and its node lives in the parent",
        "make a new MeshExecutor in the child",
        code="forked",
    )
