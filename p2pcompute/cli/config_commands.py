"""Settings files: `config show`, `get`, `set`, `unset`, `edit`, `path`, `schema`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from p2pcompute.cli.command import CONTEXT, Command, CommandGroup, check_text, json_option
from p2pcompute.cli.completing import complete_settings
from p2pcompute.cli.connection import Connection
from p2pcompute.cli.output import is_terminal, options, print_json, say, table
from p2pcompute.errors import ConfigError, P2pcError


@click.group(cls=CommandGroup, context_settings=CONTEXT)
def config() -> None:
    """Settings files."""


def _resolved() -> tuple[Any, Any]:
    """(paths, settings) as a command here sees them."""
    from p2pcompute.config import find_project_file, load_settings
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    project = find_project_file(Path.cwd())
    return paths, load_settings(paths, os.environ, project=project, warn=lambda text: say(f"warning: {text}"))


def _value_text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(value)
        case float() if value.is_integer():
            return str(int(value))
    return str(value)


def _json_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@config.command(cls=Command, examples=[("p2pc config show", "")])
@json_option
def show(json_: bool) -> int:
    """Show every setting, its value and where it comes from."""
    from p2pcompute.config import all_keys, help_of

    _, settings = _resolved()
    if json_:
        print_json(
            {
                "schema": "p2pc.config/1",
                "items": [
                    {
                        "key": key,
                        "value": _json_value(settings.get(key)),
                        "origin": settings.origin(key),
                        "help": help_of(key),
                    }
                    for key in all_keys()
                ],
            }
        )
        return 0
    rows = [(key, _value_text(settings.get(key)) or "–", settings.origin(key), help_of(key)) for key in all_keys()]
    print(table(("SETTING", "VALUE", "FROM", ""), rows, indent=0))
    return 0


@config.command(cls=Command, examples=[("p2pc config get node.slots", "")])
@click.argument("key", shell_complete=complete_settings)
@json_option
def get(key: str, json_: bool) -> int:
    """Print one value."""
    _, settings = _resolved()
    value = settings.get(key)
    if json_:
        print_json(
            {
                "schema": "p2pc.setting/1",
                "key": key,
                "value": _json_value(value),
                "origin": settings.origin(key),
            }
        )
    else:
        print(_value_text(value))
    return 0


@config.command("set", cls=Command, examples=[("p2pc config set node.slots 50%", "")])
@click.argument("key", shell_complete=complete_settings)
@click.argument("value")
@json_option
def set_(key: str, value: str, json_: bool) -> int:
    """Write one value."""
    from p2pcompute.cli.daemon_start import forget_flag
    from p2pcompute.cli.setting_checks import check_value
    from p2pcompute.config import convert, write_setting
    from p2pcompute.places import find_paths

    check_text([key, value], "settings files are text", "write it in UTF-8")
    paths = find_paths(os.environ)
    check_value(key, convert(key, value))
    write_setting(paths.config_file, key, value)
    forget_flag(paths, key)
    _changed(paths, key, json_=json_)
    return 0


@config.command(cls=Command, examples=[("p2pc config unset node.slots", "the default again")])
@click.argument("key", shell_complete=complete_settings)
@json_option
def unset(key: str, json_: bool) -> int:
    """Remove one value: the default holds again."""
    from p2pcompute.cli.daemon_start import forget_flag
    from p2pcompute.config import write_setting
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    write_setting(paths.config_file, key, None)
    forget_flag(paths, key)
    _changed(paths, key, json_=json_)
    return 0


def _changed(paths: Any, key: str, *, json_: bool) -> None:
    """Say what holds now, and when it takes effect."""
    _, settings = _resolved()
    value, origin = settings.get(key), settings.origin(key)
    if json_:
        print_json({"schema": "p2pc.setting/1", "key": key, "value": _json_value(value), "origin": origin})
        return
    say(f"{key} = {_value_text(value) or '–'}  ({origin})", level=1)
    if origin.startswith("$"):
        say(f"note: {origin} overrides the file in this shell", level=1)
    if not key.startswith("run.") and Connection(paths.socket).is_answering():
        say("the running node takes it at its next start: p2pc node restart", level=1)


@config.command(
    cls=Command, examples=[("p2pc config edit", ""), ("EDITOR=nano p2pc config edit", "with another editor")]
)
@json_option
def edit(json_: bool) -> int:
    """Open the settings file in $VISUAL or $EDITOR, check it, and take it.

    A file with a mistake is not taken: what you wrote is kept beside it, and opened again the next time.
    """
    from p2pcompute.cli.setting_checks import check_value
    from p2pcompute.config import read_file
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    target = paths.config_file.resolve()  # a link, as dotfile collections make them, stays a link
    draft = target.with_name(f"{target.stem}-draft{target.suffix}")
    try:
        before = target.read_text(encoding="utf-8") if target.exists() else _template()
        target.parent.mkdir(parents=True, exist_ok=True)
        if not draft.exists():
            draft.write_text(before, encoding="utf-8")
        while True:
            _open_editor(draft)
            try:
                values = read_file(draft)
                for key, value in values.items():
                    check_value(key, value)
                break
            except P2pcError as error:
                say(f"error: {error}")
                may_ask = is_terminal(sys.stdin) and not options().no_input
                if not (may_ask and click.confirm("edit it again?", default=True, err=True)):
                    raise ConfigError(
                        "the settings are as they were",
                        "what was written has a mistake",
                        f"it is kept in {draft}: p2pc config edit opens it again",
                    ) from error
        if target.exists():
            draft.chmod(target.stat().st_mode & 0o777)
        is_changed = draft.read_text(encoding="utf-8") != before
        if is_changed:
            draft.replace(target)
        else:
            draft.unlink()
    except OSError as error:
        raise ConfigError(f"{error.filename or target} cannot be written", str(error)) from error
    if json_:
        print_json({"schema": "p2pc.edited/1", "path": str(target), "changed": is_changed})
        return 0
    say(f"{target} is as it was" if not is_changed else f"{target} is taken", level=1)
    if is_changed and any(not key.startswith("run.") for key in values) and Connection(paths.socket).is_answering():
        say("the running node takes it at its next start: p2pc node restart", level=1)
    return 0


def _open_editor(path: Path) -> None:
    """Have the user edit a file.

    Raises:
        ConfigError: there is no editor, or it ended with an error.
    """
    try:
        click.edit(filename=str(path))
    except click.ClickException as error:
        raise ConfigError(
            "the editor did not end well", error.format_message(), "name another: EDITOR=nano p2pc config edit"
        ) from error


def _template() -> str:
    """A file that sets nothing: each setting with its default, as a comment."""
    from p2pcompute.config import SECTIONS, Settings, help_of

    settings = Settings()
    lines = ["# Settings of this computer.  What is commented out shows the default."]
    for section, kind in SECTIONS.items():
        lines += ["", f"[{section}]"]
        for item in fields(kind):
            value = json.dumps(_json_value(settings.get(f"{section}.{item.name}")), ensure_ascii=False)
            lines += [f"# {help_of(f'{section}.{item.name}')}", f"# {item.name} = {value}"]
    return "\n".join(lines) + "\n"


@config.command(cls=Command, examples=[("p2pc config schema > p2pc-config.schema.json", "for an editor")])
@json_option
def schema(json_: bool) -> int:
    """Print the JSON schema of the settings file, with or without --json."""
    from p2pcompute.config import schema_of_file

    print_json(schema_of_file())
    return 0


@config.command(cls=Command, examples=[("p2pc config path", "")])
@json_option
def path(json_: bool) -> int:
    """Print where the files are."""
    from p2pcompute.config import find_project_file
    from p2pcompute.places import find_paths

    paths = find_paths(os.environ)
    project = find_project_file(Path.cwd())
    places: dict[str, str | None] = {
        "config": str(paths.config_file),
        "system config": ", ".join(map(str, paths.system_configs)) or None,
        "project file": str(project) if project else None,
        "data": str(paths.data),
        "store": str(paths.store),
        "log": str(paths.log),
        "socket": str(paths.socket),
    }
    if json_:
        print_json({"schema": "p2pc.paths/1", **{name.replace(" ", "_"): place for name, place in places.items()}})
    else:
        for name, place in places.items():
            print(f"{name:14} {place or '–'}")
    return 0
