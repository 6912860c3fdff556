"""Commands that ask nodes what they have: `find`, `when`; and how attributes are shown.  None of them starts a node."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from p2pcompute.cli.command import Command, check_text, json_option
from p2pcompute.cli.connection import open_connection
from p2pcompute.cli.output import duration_text, is_terminal, one_line, plural, print_json, say, table
from p2pcompute.errors import NodeUnavailable, P2pcError, UsageError
from p2pcompute.limits import FIND_S_MAX

EXIT_NONE: Final = 4
"""No node fits."""
ASK_SLACK_S: Final = 10.0
"""What a node may need beyond the time that it may ask others."""
VALUE_COLUMNS: Final = 40
_BYTES: Final = ("mem.total", "mem.free", "disk.total", "disk.free", "gpu.mem")
_BYTES_PER_S: Final = ("bandwidth",)
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_text(size: float) -> str:
    """8589934592 → "8 GiB", as expressions take it (powers of 1,024)."""
    for unit in _UNITS:
        if abs(size) < 1023.95 or unit == _UNITS[-1]:
            return f"{size:.1f}".removesuffix(".0") + f" {unit}"
        size /= 1024
    raise AssertionError


def value_text(name: str, value: Any) -> str:
    """Return the value of an attribute for people."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list():
            return one_line(", ".join(map(str, value)))
        case int() | float() if name in (*_BYTES, *_BYTES_PER_S):
            return size_text(value) + ("/s" if name in _BYTES_PER_S else "")
        case float():
            return f"{value:.2f}".rstrip("0").rstrip(".")
    return one_line(str(value))


def attributes_table(attributes: Mapping[str, Any]) -> str:
    """Return one line for each attribute: value, how old it is, how long it may be believed, how exact it is."""
    rows = [
        (
            one_line(name),
            value_text(name, item["value"]),
            duration_text(item["age_s"]),
            "until it changes" if item["lifetime_s"] is None else duration_text(item["lifetime_s"]),
            "" if item["accuracy"] is None else f"± {_accuracy_text(name, item['accuracy'])}",
        )
        for name, item in attributes.items()
    ]
    return table(("ATTRIBUTE", "VALUE", "AGE", "GOOD FOR", "ACCURACY"), rows, right=("AGE",))


def _accuracy_text(name: str, accuracy: float) -> str:
    return value_text(name, accuracy) if name in (*_BYTES, *_BYTES_PER_S) else f"{accuracy:g}"


def _nodes_table(items: Sequence[Mapping[str, Any]], names: Sequence[str], *, is_ranked: bool) -> str:
    """Return one line for each node, with what was asked about."""
    shown = [name for name in names if name not in ("name", "id")]
    rows = []
    for item in items:
        attributes = item["attributes"]
        values = [value_text(name, attributes.get(name, {}).get("value")) for name in shown]
        is_mute = item["is_silent"] and item["state"] == "up"
        state = "no answer" if is_mute else one_line(item["state"])
        rank = "–" if item["rank"] is None else f"{item['rank']:g}"
        rows.append(
            (
                one_line(item["name"], 24) + (" (this)" if item["state"] == "self" else ""),
                item["short_id"],
                state,
                "" if item["state"] == "self" else one_line(item["path"]) or "–",
                *(one_line(value, VALUE_COLUMNS) for value in values),
                rank if is_ranked else "",
                duration_text(item["age_s"]),
            )
        )
    head = ("NODE", "ID", "STATE", "PATH", *shown, "RANK", "AGE")
    return table(head, rows, right=("RANK", "AGE"))


def _account(document: Mapping[str, Any]) -> str:
    """Return how far the answer can be relied on."""
    parts = [f"{plural(document['candidates'], 'node')} known", f"{document['answered']} answered"]
    for name, words in (
        ("silent", "did not answer"),
        ("unknown", "cannot say"),
        ("too_old", "of a version that does not know the question"),
        ("not_asked", "not asked"),
    ):
        if document[name]:
            parts.append(f"{document[name]} {words}")
    text = f"{', '.join(parts)}, in {duration_text(document['took_s'])}"
    if document["oldest_s"]:
        text += f"; the oldest answer is {duration_text(document['oldest_s'])} old"
    return text


def _say_unheard(items: Sequence[Mapping[str, Any]]) -> None:
    for item in items:
        near = f"; did you mean {item['near']}?" if item["near"] else ""
        say(f"note: no node that answers has {one_line(item['name'])}{near}", level=1)


def _check_expressions(*expressions: str) -> None:
    check_text(expressions, "an expression is text", "write it in UTF-8")
    if not all(map(str.strip, expressions)):
        raise UsageError("an expression is empty", "", "for example: 'os=linux && mem>=8GiB'", code="expression")


def _seconds(text: str) -> float:
    from p2pcompute.config import parse_duration

    return parse_duration(text)


@click.command(
    cls=Command,
    examples=[
        ("p2pc find has=ffmpeg", "nodes on which ffmpeg is installed"),
        ("p2pc find 'os=linux && mem.free>=8GiB' --rank -load", "the least loaded ones first"),
        ("p2pc find 'node.gpu.count > 0 || node.cpus >= 16' --max-age 0s", "ask everybody now"),
    ],
)
@json_option
@click.option(
    "--max-answers", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help="At most so many."
)
@click.option("--max-time", default="2s", show_default=True, metavar="DURATION", help="How long nodes are asked.")
@click.option(
    "--max-age",
    default="60s",
    show_default=True,
    metavar="DURATION",
    help="How old what is known of a node may be; 0s: everybody is asked.",
)
@click.option(
    "--max-cost", type=click.IntRange(0), metavar="N", help="Ask at most so many other nodes; 0: what is known here."
)
@click.option("--rank", metavar="EXPR", help="The highest first: ask while there is time, print the best.")
@click.argument("expr")
def find(
    json_: bool, max_answers: int, max_time: str, max_age: str, max_cost: int | None, rank: str | None, expr: str
) -> int:
    """Nodes that match an expression, with the age of what is known.

    Exit code 4 when none that is up does.  What a node does not know of itself is unknown, not false: no match.
    """
    from urllib.parse import urlencode

    _check_expressions(expr, *([] if rank is None else [rank]))
    time_s = _seconds(max_time)
    if time_s > FIND_S_MAX:
        raise UsageError(
            f"--max-time {max_time} is too long",
            f"one question takes up to {FIND_S_MAX:g} s",
            f"wait: p2pc when {expr!r}",
        )
    query = {"expr": expr, "max_answers": max_answers, "max_time_s": time_s, "max_age_s": _seconds(max_age)}
    if rank is not None:
        query["rank"] = rank
    if max_cost is not None:
        query["max_asked"] = max_cost
    connection = open_connection(timeout_s=time_s + ASK_SLACK_S)
    document = connection.request("GET", f"/v1/find?{urlencode(query)}")
    items = document["items"]
    code = 0 if any(item["state"] != "not seen" for item in items) else EXIT_NONE
    if json_:
        print_json(document)
        return code
    if items:
        print(_nodes_table(items, document["names"], is_ranked=rank is not None))
    if document["is_cut_off"]:
        say("No other node answered: what they said earlier is shown.")
    say(("" if items else "No node matches: ") + _account(document), level=1 if items else 0)
    _say_unheard(document["unheard"])
    if not items and not document["unheard"]:
        say(f"what each lacks: p2pc run --explain --require {shlex.quote(expr)} true ::: 1", level=1)
    if items and code:
        say("No node that is up matches.")
    return code


@click.command(
    cls=Command,
    examples=[
        ("p2pc when 'load<0.5 && slots.busy==0'", "until some node has nothing to do"),
        ("p2pc when 'name=atlas' --timeout 1h && p2pc run …", "once atlas is there"),
    ],
)
@click.option("--timeout", metavar="DURATION", help="Give up after this.  [default: never]")
@click.argument("expr")
@json_option
def when(timeout: str | None, expr: str, json_: bool) -> int:
    """Wait until some node matches an expression, then print it.

    Exit code 7 when none did before --timeout.
    """
    from urllib.parse import urlencode

    _check_expressions(expr)
    query: dict[str, Any] = {"expr": expr}
    if timeout is not None:
        query["timeout_s"] = _seconds(timeout)
    connection = open_connection()
    if is_terminal(sys.stderr) and not json_:
        say(f"waiting until {one_line(expr)} is true of some node; Ctrl-C ends it", level=1)
    for name, data in connection.stream_events(f"/v1/when?{urlencode(query)}"):
        if name == "unheard":
            _say_unheard(data["items"])
        if name == "found":
            if json_:
                print_json({"schema": "p2pc.when/1", **data})
            else:
                print(_nodes_table([data], data["names"], is_ranked=False))
            return 0
        if name == "timeout":
            raise P2pcError(
                f"no node matched within {timeout}", "", "see what they have: p2pc peers NODE", code="not-finished"
            )
    raise NodeUnavailable("the node stopped", "nobody watches any more", "p2pc node start", code="node-gone")
