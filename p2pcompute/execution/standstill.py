"""Processes of tasks stand still while the machine's owner needs it, and go on where they were."""

from __future__ import annotations

import contextlib
import signal
from typing import Final

import psutil

_PASSES_MAX: Final = 5
"""A process that is being stopped may have started another one just before."""


def stand_still(pid: int) -> None:
    """Stop a process and all that it has started and that is still below it; parents first: nothing is added then."""
    stopped: dict[int, None] = {}
    for _ in range(_PASSES_MAX):
        fresh = [process for process in _tree(pid) if process.pid not in stopped]
        if not fresh:
            return
        for process in fresh:
            stopped[process.pid] = None
            _send(process, signal.SIGSTOP)


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
