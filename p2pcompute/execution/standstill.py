"""Processes of tasks stand still while the machine's owner needs it, and go on where they were."""

from __future__ import annotations

import contextlib
import signal
from typing import Final

import psutil

_PASSES_MAX: Final = 10
"""A process that is being stopped may have started another one just before, or ends a system call first."""


def stand_still(pid: int) -> bool:
    """Stop a process and all that it has started and that is still below it; parents first: nothing is added then.

    Returns:
        False when there is always another one that runs: it evades.
    """
    for _ in range(_PASSES_MAX):
        running = [process for process in _tree(pid) if _runs(process)]
        if not running:
            return True
        for process in running:
            _send(process, signal.SIGSTOP)
    return False


def _runs(process: psutil.Process) -> bool:
    """Whether a process may still do something; not one that was told to stop and has had no turn since: it stops
    before its next step.  On a busy machine that may take a while, since work of others has the lowest priority."""
    if _is_told_to_stop(process.pid):
        return False
    with contextlib.suppress(psutil.Error):
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def _is_told_to_stop(pid: int) -> bool:
    """Whether SIGSTOP waits for a process, as proc(5) says."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            pending = [line for line in file if line.startswith(b"ShdPnd:")]
    except OSError:
        return False
    return any(int(line.split()[1], 16) >> signal.SIGSTOP - 1 & 1 for line in pending)


def go_on(pid: int) -> None:
    """Let all of them go on, children first."""
    for process in reversed(_tree(pid)):
        _send(process, signal.SIGCONT)


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)
