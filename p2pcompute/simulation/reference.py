"""The settings of an experiment as a list: key, what is allowed, default and meaning, all from its Struct."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

from p2pcompute.errors import UsageError
from p2pcompute.simulation.scenario import EXPERIMENTS, allowed_text, bare_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key of a scenario."""

    key: str
    """Dotted, as ``--set`` takes it."""
    section: str
    """TOML table that it stands in: "network.nat"; "" for the top level."""
    allowed: str
    """Type and bounds, in words."""
    default: Any
    """As JSON has it."""
    text: str
    """Meaning and unit."""

    def default_text(self) -> str:
        """The default as TOML, or "none"."""
        return "none" if self.default is None else json.dumps(self.default, ensure_ascii=False)


def settings_of(experiment: str) -> list[Setting]:
    """Return every setting of an experiment, in the order of its Struct."""
    return list(_walk(inspect.type_info(EXPERIMENTS[experiment].settings_type()), ""))


def _walk(kind: inspect.Type, section: str) -> Iterator[Setting]:
    kind, _ = bare_type(kind)
    assert isinstance(kind, inspect.StructType)
    tables = []
    for field in kind.fields:
        inner, text = bare_type(field.type)
        if isinstance(inner, inspect.VarTupleType):
            inner, _ = bare_type(inner.item_type)
        key = f"{section}.{field.name}" if section else field.name
        if isinstance(inner, inspect.StructType):
            tables.append((inner, key))
            continue
        default = None if field.default is msgspec.NODEFAULT else msgspec.to_builtins(field.default)
        yield Setting(key=key, section=section, allowed=allowed_text(field.type), default=default, text=text)
    for table, key in tables:
        yield from _walk(table, key)


def settings_in(experiment: str, section: str) -> list[Setting]:
    """Return the settings of a section and of those within it, or the one that has this key.

    Raises:
        UsageError: there is neither; the sections are named.
    """
    found = settings_of(experiment)
    wanted = section.strip("[]")
    chosen = [one for one in found if wanted in (one.section, one.key) or one.section.startswith(f"{wanted}.")]
    if not chosen:
        sections = list(dict.fromkeys(one.section for one in found if one.section))
        near = difflib.get_close_matches(wanted, [*sections, *(one.key for one in found)], n=1)
        raise UsageError(
            f'there is no section "{section}"',
            f'did you mean "{near[0]}"?' if near else "",
            f"name one of {', '.join(sections)}, or none for all",
            code="scenario",
        )
    return chosen
