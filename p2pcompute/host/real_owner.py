"""Whether somebody uses this machine: how long ago it was touched, as far as that can be told without a display.

Asked are, in this order: logind (``loginctl``) for sessions of people, where a graphical one says by its idle hint
whether its person is away; the terminals of those who are logged in (their last input is the access time of the
device); on macOS the idle time of keyboard and mouse.  Where nothing of this can be read (a container, a system
without logind and utmp) it is unknown: nobody is taken to be away.

Deviations: a graphical session whose desktop never sets the idle hint counts as in use as long as it is open.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

AWAY_S: Final = 180.0
"""Who has not touched the machine for so long is not there; BOINC's default."""
ASK_S: Final = 2.0
"""Time for a program of the system to answer."""
SESSIONS_MAX: Final = 64
_UTMP: Final = (Path("/run/utmp"), Path("/var/run/utmp"))
_TERMINAL: Final = re.compile(r"(tty|pts/)[A-Za-z0-9]{1,8}")
_SESSION: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_PROPERTIES: Final = ("Class", "State", "Type", "TTY", "IdleHint", "IdleSinceHint", "IdleSinceHintMonotonic")
_touched: dict[str, tuple[float, float]] = {}
"""Terminal → its access time, and when (monotonic) that was seen first: the last SESSIONS_MAX."""


def is_present() -> bool | None:
    """Return whether somebody is there; None where that cannot be told.  Blocks for up to 2 · ASK_S."""
    left_s = idle_s()
    return None if left_s is None else left_s < AWAY_S


def idle_s(*, devices: Path = Path("/dev"), utmp: Sequence[Path] = _UTMP) -> float | None:
    """Return how long nobody has touched the machine, infinite where nobody is logged in; None where nothing tells.

    Args:
        devices: where terminals are; so `utmp`: other values are for tests.
    """
    if sys.platform == "darwin":
        return _hid_idle_s()
    found = _session_idle_s(devices)
    if found is None and any(path.exists() for path in utmp):
        found = list(_terminal_idle_s(devices, _logged_in()))
    return None if found is None else min(found, default=float("inf"))


def _ask(*words: str) -> str | None:
    """Return what a program says; None where it is not there, fails or hangs."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _session_idle_s(devices: Path) -> list[float] | None:
    """Return the idle time of each session of a person; None where logind does not answer."""
    listed = _ask("loginctl", "list-sessions", "--no-legend")
    if listed is None:
        return None
    names = [line.split()[0] for line in listed.splitlines() if line.split()]
    names = [name for name in names if _SESSION.fullmatch(name)][:SESSIONS_MAX]
    if not names:
        return []
    told = _ask("loginctl", "show-session", *names, *(f"--property={name}" for name in _PROPERTIES))
    if told is None:
        return None
    found: list[float] = []
    for block in re.split(r"\n\s*\n", told.strip()):
        session = dict(line.partition("=")[::2] for line in block.splitlines())
        is_persons = session.get("Class", "").startswith("user") and session.get("State") in ("active", "online")
        if is_persons:
            found += _idle_of(session, devices)
    return found


def _idle_of(session: dict[str, str], devices: Path) -> list[float]:
    clocks = (("IdleSinceHintMonotonic", time.monotonic), ("IdleSinceHint", time.time))
    for name, clock in clocks if session.get("IdleHint") == "yes" else ():
        since = session.get(name, "")
        if since.isdigit() and int(since):
            return [max(0.0, clock() - int(since) / 1e6)]
    if session.get("Type") in ("x11", "wayland", "mir"):
        return [0.0]
    return list(_terminal_idle_s(devices, [session.get("TTY", "")]))  # logind calls it idle after half an hour only


def _logged_in() -> list[str]:
    """Return the terminals of utmp."""
    import psutil

    return [user.terminal or "" for user in psutil.users()][:SESSIONS_MAX]


def _terminal_idle_s(devices: Path, terminals: Sequence[str]) -> Iterator[float]:
    for name in terminals:
        if _TERMINAL.fullmatch(name):
            try:
                yield _since(name, os.stat(devices / name).st_atime)
            except OSError:
                continue  # it was closed meanwhile


def _since(terminal: str, touched_wall: float) -> float:
    """Return how long ago a terminal was touched; where the clock was set back since, how long ago that was seen."""
    known = _touched.pop(terminal, None)
    if known is None or known[0] != touched_wall:
        known = touched_wall, time.monotonic()
    _touched[terminal] = known
    if len(_touched) > SESSIONS_MAX:
        del _touched[next(iter(_touched))]
    idle_s = time.time() - touched_wall
    return idle_s if idle_s >= 0.0 else time.monotonic() - known[1]


def _hid_idle_s() -> float | None:
    told = _ask("ioreg", "-c", "IOHIDSystem", "-d", "4") or ""
    found = re.search(r'"HIDIdleTime" = (\d+)', told)
    return None if found is None else int(found[1]) / 1e9
