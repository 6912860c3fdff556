"""`p2pc group`: the groups that this computer is in, who belongs to one, and what members may do.

Each group of a computer has a node of its own, with its own store; all act under the installation's key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from p2pcompute.cli.asking import ask
from p2pcompute.cli.command import CONTEXT, Command, CommandGroup, json_option, yes_option
from p2pcompute.cli.completing import complete_groups, complete_nodes
from p2pcompute.cli.connection import Connection, open_connection
from p2pcompute.cli.output import one_line, plural, print_json, say, table, time_text
from p2pcompute.cli.trust_commands import LOOK_S_MAX, named, roles_text, seen_text, typed_name
from p2pcompute.errors import NodeUnavailable, UsageError
from p2pcompute.places import (
    DEFAULT_FILE,
    FIRST_GROUP,
    GROUPS_DIRECTORY,
    Paths,
    check_group_place,
    default_group,
    find_paths,
    groups_here,
)

LEAVE_S_MAX: Final = 60.0


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError(f'"{text}" is neither true nor false', "", "write open=true or open=false")
    return text == "true"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4):
        raise UsageError(f'"{text}" is no number of bits', "", "write puzzle=20")
    return int(text)


POLICY_KEYS: Final[dict[str, Callable[[str], Any]]] = {"accept": str, "open": _yes_or_no, "puzzle": _count}
"""What a group's policy can say, and how its words are read."""


@click.group(cls=CommandGroup, context_settings=CONTEXT)
def group() -> None:
    """Groups of this computer, their members, and what they may do."""


@group.command("list", cls=Command, examples=[("p2pc group list", "")])
@json_option
def list_(json_: bool) -> int:
    """Groups that this computer is in."""
    base = _paths(FIRST_GROUP).base
    items = [_item(name, default_group(base)) for name in groups_here(base)]
    if json_:
        print_json({"schema": "p2pc.groups/1", "items": items})
        return 0
    rows = [
        (
            item["name"] + (" (default)" if item["default"] else ""),
            one_line(item["group"] or "–", 24),
            "–" if item["members"] is None else str(item["members"]),
            "running" if item["running"] else "not running",
        )
        for item in items
    ]
    print(table(("HERE", "GROUP", "MEMBERS", "NODE"), rows, right=("MEMBERS",)))
    return 0


def _paths(name: str) -> Paths:
    """Return the places of a group of this computer, whatever socket was named for this command."""
    environ = {key: value for key, value in os.environ.items() if key != "P2PC_SOCKET"}
    return find_paths(environ, group=name)


def _item(name: str, default: str) -> dict[str, Any]:
    """What is known of a group of this computer; most of it only while its node runs."""
    item: dict[str, Any] = {"name": name, "default": name == default, "running": False, "group": None, "members": None}
    try:
        connection = Connection(_paths(name).socket, timeout_s=LOOK_S_MAX)
        item["group"] = connection.request("GET", "/v1/status")["group"]["name"]
        members = connection.request("GET", "/v1/trust")["items"]
        item["members"] = sum(member["roles"] is not None for member in members)
        item["running"] = True
    except NodeUnavailable:
        return item
    return item


@group.command(
    cls=Command,
    examples=[
        ("p2pc group create lab", "a further group, in which this computer is alone at first"),
        ("p2pc -g lab invite", "then let others join it"),
        ("p2pc -g lab join CODE", "or join the group of somebody else by it"),
    ],
)
@click.argument("name")
@json_option
def create(name: str, json_: bool) -> int:
    """Make a further group on this computer, with a node of its own."""
    base = _paths(FIRST_GROUP).base
    if check_group_place(name) in groups_here(base):
        raise UsageError(f"there is a group {name} on this computer already", "", "see: p2pc group list", code="group")
    try:
        (base / GROUPS_DIRECTORY / name).mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise UsageError(f"cannot make the group {name}", str(error), f"look at it: ls -ld {base}") from error
    if json_:
        print_json({"schema": "p2pc.group/1", **_item(name, default_group(base))})
    else:
        print(f"made group {name}; its node starts with your first p2pc -g {name} run, invite or join")
        say(f"Use it in one command: p2pc -g {name} …   From now on: p2pc group use {name}", level=1)
    return 0


@group.command(cls=Command, examples=[("p2pc group use lab", "from now on, without -g lab")])
@click.argument("name", shell_complete=complete_groups)
@json_option
def use(name: str, json_: bool) -> int:
    """Make a group the one that commands mean when they name none."""
    paths = _paths(check_group_place(name))
    _write_default(paths.base, name)
    if json_:
        print_json({"schema": "p2pc.group/1", **_item(name, name)})
    else:
        print(f"commands use group {name} from now on; the nodes of other groups go on")
        if os.environ.get("P2PC_GROUP", name) != name:
            say(f"note: P2PC_GROUP={os.environ['P2PC_GROUP']} is set here, and goes before it", level=1)
    return 0


def _write_default(base: Path, name: str) -> None:
    temporary = base / f".{DEFAULT_FILE}.{os.getpid()}"
    try:
        temporary.write_text(name + "\n", encoding="utf-8")
        temporary.replace(base / DEFAULT_FILE)
    except OSError as error:
        raise UsageError("the choice cannot be kept", str(error), f"look at it: ls -ld {base}") from error


@group.command(cls=Command, examples=[("p2pc group rename lab uni", "")])
@click.argument("name", shell_complete=complete_groups)
@click.argument("new_name")
@json_option
def rename(name: str, new_name: str, json_: bool) -> int:
    """Call a group differently on this computer; others do not notice."""
    if FIRST_GROUP in (name, new_name):
        raise UsageError(
            f"the first group of a computer is called {FIRST_GROUP} here", "its files lie in the home itself"
        )
    paths = _paths(check_group_place(name))
    if check_group_place(new_name) in groups_here(paths.base):
        raise UsageError(
            f"there is a group {new_name} on this computer already", "", "see: p2pc group list", code="group"
        )
    if Connection(paths.socket).is_answering():
        raise UsageError(f"the node of group {name} is running", "its files move", f"p2pc -g {name} node stop")
    was_default = default_group(paths.base) == name
    try:
        for directory in dict.fromkeys((paths.state, paths.data)):
            if directory.is_dir():
                directory.rename(directory.with_name(new_name))
    except OSError as error:
        raise UsageError(f"group {name} cannot be renamed", str(error)) from error
    if was_default:
        _write_default(paths.base, new_name)
    if json_:
        print_json({"schema": "p2pc.group/1", **_item(new_name, default_group(paths.base))})
    else:
        print(f"group {name} is called {new_name} here now")
    return 0


@group.command(cls=Command, examples=[("p2pc group members", ""), ("p2pc -g lab group members", "")])
@json_option
def members(json_: bool) -> int:
    """Members and roles."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    name = connection.request("GET", "/v1/status")["group"]["name"]
    items = [item for item in connection.request("GET", "/v1/trust")["items"] if item["roles"] is not None]
    if json_:
        print_json({"schema": "p2pc.members/1", "group": name, "items": items})
        return 0
    rows = [
        (
            one_line(item["name"], 24) + (" (this)" if item["level"] == "self" else ""),
            item["short_id"],
            roles_text(item),
            one_line(item["invited_by"] or "–", 24),
            seen_text(item),
        )
        for item in items
    ]
    print(f"{one_line(name)}: {plural(len(items), 'member')} known here")
    print(table(("NODE", "ID", "MAY", "INVITED BY", "STATE"), rows))
    return 0


SAID_NOTHING: Final = "–"


@group.command(
    cls=Command,
    examples=[
        ("p2pc group policy", "what holds for all members of the group"),
        ("p2pc group policy accept='job.cpus<=2 && job.kind!=\"container\"'", "no member runs other jobs of others"),
        ("p2pc group policy accept=", "nothing of the kind any more"),
        ("p2pc group policy open=true", "everybody may join, as a stranger whom nobody trusts: p2pc join --open"),
    ],
)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def policy(settings: tuple[str, ...], json_: bool) -> int:
    """Show or change what holds for all members.  It only forbids: each node has its own conditions beside it."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    if settings:
        found = connection.request("POST", "/v1/policy", _changes(settings))
    else:
        found = connection.request("GET", "/v1/policy")
    if json_:
        print_json(found)
        return 0
    rows = [(key, one_line(_shown(found[key]), 200)) for key in POLICY_KEYS]
    by = f", set by {', '.join(map(one_line, found['set_by']))} {time_text(found['set'])}" if found["set"] else ""
    print(f"{one_line(found['group'])}: for all members{by}")
    print(table(("KEY", "VALUE"), rows))
    if found["not_understood"]:
        say("The group uses something that this version of p2pcompute does not know: update it", level=1)
    if found["takes_none"]:
        say("It must not be passed over, so this computer takes no work of others until then", level=1)
    if "open=true" in settings:
        say("Everybody may join now: p2pc join --open --via HOST:PORT", level=1)
        say("Of strangers only WASM modules run here; they get jobs with --trust any", level=1)
    if "open=false" in settings:
        say("Strangers are out now; to have one in the group: p2pc invite", level=1)
    if found["own_accept"]:
        say(f"This computer has a condition of its own, too: {one_line(found['own_accept'], 300)}", level=1)
    return 0


def _shown(value: object) -> str:
    return SAID_NOTHING if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _changes(settings: Sequence[str]) -> dict[str, Any]:
    """Return the words KEY=VALUE as what the node is asked to change.

    Raises:
        UsageError: no such key, or no value.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in POLICY_KEYS or not equals:
            raise UsageError(
                f'"{setting}" is no setting of a group', f"there are: {', '.join(POLICY_KEYS)}", "write KEY=VALUE"
            )
        changes[key] = POLICY_KEYS[key](value)
    return changes


@group.command(
    cls=Command,
    examples=[("p2pc group heir nova", "nova goes on with the group, should the founder's key be lost")],
)
@click.argument("node", shell_complete=complete_nodes)
@yes_option
@json_option
def heir(node: str, yes: bool, json_: bool) -> int:
    """Let a member act as the founder of the group does, for when the founder's key is lost."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    items = connection.request("GET", "/v1/trust")["items"]
    item = named(items, node)
    name = one_line(item["name"])
    if not yes:
        powers = "it can remove anybody but the founder, name further heirs, and its membership does not end"
        means = f"{name} ({item['short_id']}) an heir means: {powers}."
        ask("Do it?", needs=f"naming {name} an heir needs a yes", why=powers, is_mute=json_, before=[means])
    changed = connection.request("POST", f"/v1/members/{item['id']}/heir", {})
    if json_:
        print_json({"schema": "p2pc.trust-node/1", **changed})
    else:
        print(f"{name} ({item['short_id']}) is an heir of the group now")
        called = typed_name(items, item["name"], item["id"])
        say(f"To take that back: p2pc trust set {called} member --may submit --may work --may invite", level=1)
    return 0


@group.command(
    cls=Command,
    examples=[("p2pc group remove atlas --reason 'stolen'", "for all members, until somebody invites it again")],
)
@click.argument("node", shell_complete=complete_nodes)
@click.option("--reason", default="", metavar="TEXT", help="Told to all members, and to the removed one.")
@yes_option
@json_option
def remove(node: str, reason: str, yes: bool, json_: bool) -> int:
    """Remove a member from the group: its work ends everywhere, and only a new invitation brings it back."""
    connection = open_connection(timeout_s=LOOK_S_MAX)
    item = named(connection.request("GET", "/v1/trust")["items"], node)
    name = one_line(item["name"])
    if not yes:
        back = "only a new invitation brings it back"
        means = f"{name} ({item['short_id']}) is cut off by all members; {back}."
        ask("Remove it?", needs=f"removing {name} needs a yes", why=back, is_mute=json_, before=[means])
    connection.request("POST", f"/v1/members/{item['id']}/remove", {"reason": reason})
    if json_:
        print_json({"schema": "p2pc.removal/1", "id": item["id"], "name": item["name"], "reason": reason or None})
    else:
        print(f"{name} ({item['short_id']}) is no member any more; members that are away learn it when they come back")
    return 0


# --- leaving --------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        ("p2pc leave", "this computer is alone then"),
        ("p2pc -g lab leave", "a further group goes with its node and its jobs"),
        ("p2pc leave --forget-keys", "all groups, the key, jobs and results: as if it had never been here"),
    ],
)
@click.option("--forget-keys", is_flag=True, help="Leave all groups, and remove the key and all that is kept here.")
@yes_option
@json_option
def leave(forget_keys: bool, yes: bool, json_: bool) -> int:
    """Give up membership of the group.  A pause is another thing: p2pc pause, p2pc node stop."""
    paths = find_paths()
    if forget_keys:
        return _forget(yes=yes, json_=json_)
    connection = open_connection()
    is_first = paths.group == FIRST_GROUP
    left: dict[str, Any] = {"name": paths.group, "is_alone": True}
    if is_first or not _is_unused(paths):
        left = connection.request("GET", "/v1/status")["group"]
    if left["is_alone"] and is_first:
        raise UsageError("this computer is alone in its group", "there is nothing to leave", None, code="alone")
    what = f"Leave {left['name']}? Only a new invitation brings you back."
    if not is_first:
        what = f"Leave {left['name']}? Its jobs and results on this computer go with it."
    if not yes:
        ask(what, needs="leaving needs a yes", why="it can be undone only by a new invitation", is_mute=json_)
    if not left["is_alone"]:
        connection.request("POST", "/v1/leave", {}, timeout_s=LEAVE_S_MAX)
    if not is_first:
        _end(paths)
        for directory in dict.fromkeys((paths.data, paths.state)):
            _remove(directory)
    if json_:
        print_json({"schema": "p2pc.leave/1", "group": left["name"]})
    elif is_first:
        print(f"left {left['name']}; this computer is alone now")
    else:
        print(f"left {left['name']}; nothing of it is on this computer any more")
    return 0


def _is_unused(paths: Paths) -> bool:
    """True when no node of a group has been here: it was made and nothing else."""
    directories = [directory for directory in (paths.data, paths.state) if directory.is_dir()]
    return all(left.name == "config.toml" for directory in directories for left in directory.iterdir())


def _end(paths: Paths) -> None:
    """Stop a group's node.

    Raises:
        NodeUnavailable: it does not stop.
    """
    from p2pcompute.cli.daemon_start import is_running, wait_stopped

    if is_running(paths):
        Connection(paths.socket).request("POST", "/v1/shutdown", {"drain": False})
        if not wait_stopped(paths, LEAVE_S_MAX):
            raise NodeUnavailable("the node has not stopped yet", "", f"p2pc -g {paths.group} node stop --now")


def _forget(*, yes: bool, json_: bool) -> int:
    """Leave all groups and remove the key and all that is kept."""
    base = _paths(FIRST_GROUP).base
    if not yes:
        question = f"Remove the key of this computer, its memberships, jobs and results ({base})?"
        ask(question, needs="leaving needs a yes", why="its key, jobs and results are gone then", is_mute=json_)
    for name in reversed(groups_here(base)):
        paths = _paths(name)
        connection = Connection(paths.socket, timeout_s=LEAVE_S_MAX)
        if connection.is_answering():
            if not connection.request("GET", "/v1/status")["group"]["is_alone"]:
                connection.request("POST", "/v1/leave", {})
            _end(paths)
        for directory in dict.fromkeys((paths.data, paths.state)):
            for left in sorted(directory.iterdir()) if directory.is_dir() else ():
                if left.name != "config.toml":
                    _remove(left)
    if json_:
        print_json({"schema": "p2pc.leave/1", "group": None})
    else:
        print("this computer has left all groups; its key and all that was kept are gone")
    return 0


def _remove(path: Path) -> None:
    import shutil

    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot remove {path}", error.strerror or str(error), f"rm -r {path}") from error
