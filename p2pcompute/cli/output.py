"""What commands print: tables, quantities for people, colour, JSON.

Data goes to stdout, talk to stderr.  Imports nothing that costs time at the start.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any, Final

import click

EXIT_HANGUP: Final = 129
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143
"""128 plus the number of the signal that ended the command, as shells have it."""


@dataclass(slots=True)
class Options:
    """The global flags; `ctx.obj` of every command."""

    color: str = "auto"
    quiet: int = 0
    verbose: int = 0
    no_input: bool = False
    json: bool = False
    """Set by the command's own --json."""
    group: str = ""
    """What -g named; empty: nothing did."""
    typed: tuple[str, ...] = ()
    """The words after `p2pc`."""


def options() -> Options:
    """Return the global flags of the running command."""
    context = click.get_current_context(silent=True)
    found = context.find_object(Options) if context is not None else None
    return found if found is not None else Options()


def has_color(stream: IO[Any], choice: str | None = None) -> bool:
    """True when `stream` may be coloured.

    The flag counts first, then NO_COLOR and FORCE_COLOR (https://no-color.org, https://force-color.org), then whether
    it is a terminal that is not dumb.
    """
    choice = choice if choice is not None else options().color
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb" and not os.environ.get("P2PC_ACCESSIBLE")


def is_terminal(stream: IO[Any] | None) -> bool:
    """True when `stream` is a terminal; None, as `sys.stdin` is when who called us closed it, is none."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def style(text: str, stream: IO[Any] | None = None, **attributes: Any) -> str:
    """Colour `text` when its stream (default stdout) may be coloured.  State is always a word as well."""
    return click.style(text, **attributes) if has_color(stream or sys.stdout) else text


def say(text: str, *, level: int = 0, is_elsewhere: bool = False) -> None:
    """Print a line of talk to stderr.

    Args:
        text: one or more lines.
        level: 0 = always unless -q -q, 1 = unless -q, 2 = with -v.
        is_elsewhere: its commands are for another computer, which calls its groups as it likes.
    """
    flags = options()
    if level == 2 and not flags.verbose:
        return
    if flags.quiet > (0 if level else 1):
        return
    fresh_line()
    print(text if is_elsewhere else in_group(text), file=sys.stderr, flush=True)


def in_group(text: str, group: str | None = None) -> str:
    """Return words of ours in which commands name the group that this one named: without it they mean another.

    Args:
        group: None: of the command that runs; empty: none was named.
    """
    group = options().group if group is None else group
    return _OWN_COMMAND.sub(lambda found: f"{found[0]}-g {shlex.quote(group)} ", text) if group else text


_OWN_COMMAND: Final = re.compile(r"(?<![\w/.-])p2pc (?=[a-z])(?!group (?:create|list|rename|use)\b)")
"""Those commands name groups themselves."""


_is_line_open = False
"""The terminal's last line has output without a newline at its end."""


def leave_line(*, is_open: bool) -> None:
    """Remember how output to the terminal ended."""
    global _is_line_open
    _is_line_open = is_open


def fresh_line() -> None:
    """End a line that output of tasks left open on this terminal."""
    if _is_line_open and is_terminal(sys.stderr):
        leave_line(is_open=False)
        sys.stdout.flush()
        print(file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; indented when a person reads it."""
    indent = 2 if is_terminal(sys.stdout) else None
    print(json.dumps(document, indent=indent, ensure_ascii=False), flush=True)


def print_json_line(document: Any, stream: IO[str] | None = None) -> None:
    """Print one line of JSON Lines."""
    print(json.dumps(document, ensure_ascii=False), file=stream or sys.stdout, flush=True)


# --- quantities ---------------------------------------------------------------------------------------------------


def count_text(number: int | None) -> str:
    """12345 → "12 345"; unknown → "–"."""
    return "–" if number is None else f"{number:,}".replace(",", " ")


def bytes_text(size: float | None) -> str:
    """1,300,000,000 → "1.3 GB" (powers of 1,000); unknown → "–"."""
    if size is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 999.5 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def duration_text(seconds: float | None) -> str:
    """0.0123 → "12 ms", 4.13 → "4.1 s", 75 → "1 min 15 s", 7500 → "2 h 5 min"; unknown → "–"."""
    if seconds is None:
        return "–"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {second} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def clock_text(seconds: float | None) -> str:
    """17 → "0:00:17", as an ETA; unknown → "–"."""
    if seconds is None or not seconds <= 99 * 3600:
        return "–"
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def rate_text(per_s: float | None) -> str:
    """18.13 → "18.1/s"; nothing yet → "–"."""
    if not per_s:
        return "–"
    return f"{per_s:.0f}/s" if per_s >= 1000 else f"{per_s:.1f}/s" if per_s >= 0.1 else f"{per_s * 60:.1f}/min"


def time_text(value: str | float | None) -> str:
    """Return an API time as local "YYYY-MM-DD HH:MM:SS"; unknown → "–"."""
    moment = moment_of(value)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "–"


def moment_of(value: str | float | None) -> datetime | None:
    """Return an API time (RFC 3339 text or Unix seconds) as a moment; None when unknown."""
    if not value:
        return None
    try:
        if not isinstance(value, str):
            return datetime.fromtimestamp(value, UTC)
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def plural(number: int, word: str, words: str | None = None) -> str:
    """(1, "task") → "1 task", (3, "task") → "3 tasks"."""
    return f"{count_text(number)} {word if number == 1 else words or word + 's'}"


# --- tables -------------------------------------------------------------------------------------------------------


def width_of(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) != 0 for char in text)


def node_labels(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of nodes ({node, short_id}) as one tells them apart: with the id's first group where two are
    called the same, as machines that all keep the name of their image are.
    """
    names = [str(node.get("node")) for node in nodes]
    return [
        f"{name} {str(node.get('short_id') or '')[:4]}".strip() if names.count(name) > 1 else name
        for name, node in zip(names, nodes, strict=True)
    ]


def one_line(text: str, columns: int | None = None) -> str:
    """Make text safe for one line of a terminal: control characters are shown as ``\\n``, ``\\x1b`` …; cut at
    `columns`."""
    safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    if columns is not None and width_of(safe) > columns:
        while safe and width_of(safe) > columns - 1:
            safe = safe[:-1]
        safe += "…"
    return safe


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), indent: int = 2) -> str:
    """Return an aligned table; columns named in `right` are aligned to the right, empty columns are left out."""
    lines = [list(row) for row in rows]
    used = [index for index in range(len(head)) if any(row[index] for row in lines)]
    widths = {index: max(width_of(head[index]), *(width_of(row[index]) for row in lines)) for index in used}

    def line(cells: Sequence[str]) -> str:
        out = []
        for index in used:
            gap = " " * (widths[index] - width_of(cells[index]))
            out.append(gap + cells[index] if head[index] in right else cells[index] + gap)
        return (" " * indent + "  ".join(out)).rstrip()

    return "\n".join(line(row) for row in [head, *lines]) if used else ""
