"""Commands of the machine's owner: `pause`, `resume`, `node set`, `node idle`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import click

from p2pcompute.cli.command import Command, json_option
from p2pcompute.cli.connection import Connection, open_connection
from p2pcompute.cli.output import one_line, plural, print_json, say, table, time_text
from p2pcompute.errors import ConfigError, UsageError

_COMFORT_KEYS: Final = ("node.profile", "node.battery", "node.hours", "cpu.in_use", "cpu.idle")
"""What the running node takes at once."""
_SHORT: Final = {"cpus": "node.slots"}
"""Names of settings that are said in another way."""


@click.command(
    cls=Command,
    examples=[
        ("p2pc pause", "until p2pc resume; what runs comes to its end"),
        ("p2pc pause --for 1h", "and then by itself again"),
        ("p2pc pause --now", "what runs is ended here and run elsewhere"),
    ],
)
@click.option("--for", "for_", metavar="DURATION", help="Resume by itself after this.  [default: until p2pc resume]")
@click.option("--now", is_flag=True, help="End running tasks here, instead of letting them finish; others run them.")
@json_option
def pause(for_: str | None, now: bool, json_: bool) -> int:
    """Stop taking work."""
    from p2pcompute.config import parse_duration

    for_s = None if for_ is None else parse_duration(for_)
    if for_s == 0.0:
        raise UsageError("a pause of no time", "", "say how long, like --for 1h, or leave --for out", code="duration")
    document = open_connection().request("POST", "/v1/pause", {"for_s": for_s, "now": now})
    if json_:
        print_json(document)
        return 0
    say(f"paused.  {document['resumes']}", level=1)
    return 0


@click.command(cls=Command, examples=[("p2pc resume", "")])
@json_option
def resume(json_: bool) -> int:
    """Take work again."""
    connection = open_connection()
    was_paused = connection.request("POST", "/v1/resume", {})["was_paused"]
    document = connection.request("GET", "/v1/idle")
    if json_:
        print_json(document)
        return 0
    said = "resumed" if was_paused else "it was not paused"
    held = f"; still held back: {document['why']}.  {document['resumes']}" if document["why"] else ""
    say(said + held, level=1)
    return 0


@click.command("idle", cls=Command, examples=[("p2pc node idle", "")])
@json_option
def idle(json_: bool) -> int:
    """Show when this machine works for others, and why it does (not) now."""
    document = open_connection().request("GET", "/v1/idle")
    if json_:
        print_json(document)
    else:
        print(idle_text(document))
    return 0


def idle_text(document: Mapping[str, Any]) -> str:
    """Return what `node idle` prints."""
    share = document["others_share"]
    if not document["why"]:
        head = f"Working now: yes, up to {share:.0%} of the CPU for others."
    elif share:
        head = f"Working now: yes, up to {share:.0%} of the CPU for others, {document['why']}."
    else:
        what = "paused" if not document["own_runs"] else "not for others"
        head = f"Working now: no, {what} since {time_text(document['since'])}: {document['why']}."
    rows = [(one_line(rule["rule"]), one_line(rule["now"]), rule["result"]) for rule in document["rules"]]
    lines = [head, f"Profile: {document['profile']}", table(("RULE", "NOW", "RESULT"), rows)]
    if document["standing_still"]:
        is_one = document["standing_still"] == 1
        lines.append(f"{plural(document['standing_still'], 'task')} of others stand{'s' * is_one} still meanwhile.")
    if document["resumes"]:
        lines.append(document["resumes"])
    return "\n".join(lines)


@click.command(
    "set",
    cls=Command,
    examples=[
        ("p2pc node set", "list the settings, and where each comes from"),
        ("p2pc node set profile=laptop", "nothing for others on battery, 25 % of the CPU while you are there"),
        ("p2pc node set cpu.in_use=10% hours=18-8", "several at once; all or none"),
        ("p2pc node set cpus=75%", "tasks at once, as a share of the cores"),
    ],
)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def set_node(settings: tuple[str, ...], json_: bool) -> int:
    """Change settings of this machine now and for later; with none: list them."""
    from p2pcompute.cli.daemon_start import forget_flag
    from p2pcompute.cli.setting_checks import check_value
    from p2pcompute.config import convert, load_settings, write_setting
    from p2pcompute.node.comfort_service import ComfortSettings
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    wanted = [_pair(text) for text in settings]
    if not wanted:
        return _list(load_settings(paths, os.environ), json_=json_)
    values = {key: convert(key, value) for key, value in wanted}
    if len(values) < len(wanted):
        twice = next(key for at, (key, _) in enumerate(wanted) if key in dict(wanted[:at]))
        raise UsageError(f"{twice} is set twice", "only one can hold", "name it once")
    for key, value in values.items():
        check_value(key, value)
    ComfortSettings.of(load_settings(paths, os.environ, flags=values))  # all of them together
    for key, value in values.items():
        write_setting(paths.config_file, key, value)
        forget_flag(paths, key)
    resolved = load_settings(paths, os.environ)
    connection = Connection(paths.socket)
    is_running = connection.is_answering()
    document: Any = None
    if is_running and any(key in _COMFORT_KEYS for key in values):
        node, cpu = resolved.node, resolved.cpu
        body = {"profile": node.profile, "battery": node.battery, "hours": node.hours}
        document = connection.request("POST", "/v1/comfort", {**body, "in_use": cpu.in_use, "idle": cpu.idle})
    at_once, takes_none = {*_COMFORT_KEYS}, resolved.node.accept == "none"
    if is_running and (takes_none if "node.accept" in values else "node.accept_if" in values):
        condition = "false" if takes_none else resolved.node.accept_if
        connection.request("POST", "/v1/policy", {"own_accept": condition})
        at_once |= {"node.accept", "node.accept_if"}
    if json_:
        items = [{"key": key, "value": resolved.get(key), "origin": resolved.origin(key)} for key in values]
        print_json({"schema": "p2pc.settings/1", "items": items})
        return 0
    for key in values:
        say(f"{key} = {_text(resolved.get(key))}  ({resolved.origin(key)})", level=1)
        if resolved.origin(key).startswith("$"):
            say(f"note: {resolved.origin(key)} overrides the file in this shell", level=1)
    if is_running and any(key not in at_once for key in values):
        say("the running node takes it at its next start: p2pc node restart", level=1)
    if document is not None:
        print(idle_text(document))
    return 0


def _pair(text: str) -> tuple[str, str]:
    """Return (key, value) of KEY=VALUE; ``node.`` may be left out."""
    from p2pcompute.config import all_keys, split_key

    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(
            f'"{text}" is not KEY=VALUE', "", "for example: p2pc node set profile=laptop", code="unknown-setting"
        )
    key = _SHORT.get(key.strip(), key.strip())
    if key not in all_keys() and f"node.{key}" in all_keys():
        key = f"node.{key}"
    section, _name = split_key(key)
    if section not in ("node", "cpu"):
        raise ConfigError(f"{key} is no setting of this machine", "", f"p2pc config set {key} {value}")
    return key, value.strip()


def _list(resolved: Any, *, json_: bool) -> int:
    from p2pcompute.config import all_keys, help_of

    keys = [key for key in all_keys() if key.startswith(("node.", "cpu."))]
    if json_:
        items = [{"key": key, "value": resolved.get(key), "origin": resolved.origin(key)} for key in keys]
        print_json({"schema": "p2pc.settings/1", "items": items})
        return 0
    rows = [(key, _text(resolved.get(key)), resolved.origin(key), help_of(key)) for key in keys]
    print(table(("SETTING", "VALUE", "FROM", ""), rows))
    return 0


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "–"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value) or "–"
