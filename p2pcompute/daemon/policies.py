"""Finds the pool policy that ``node.policy`` names: one that comes along, or a plugin's."""

from __future__ import annotations

from typing import Any, Final, cast

from p2pcompute.errors import ConfigError
from p2pcompute.scheduler.policies import DEFAULT, POLICIES, Policy

PLUGIN_GROUP: Final = "p2pc.policies"


def find_policy(name: str) -> Policy | None:
    """Return the policy; None for the default, which needs none: those that wait are served in turn.

    Raises:
        ConfigError: there is none of this name, or its package is broken.
    """
    if name in ("", DEFAULT):
        return None
    if name in POLICIES:
        return POLICIES[name]()
    from importlib.metadata import entry_points

    plugins = {entry.name: entry for entry in entry_points(group=PLUGIN_GROUP)}
    if name not in plugins:
        known = ", ".join([*POLICIES, *sorted(plugins)])
        raise ConfigError(f'there is no pool policy "{name}"', f"there are {known}", "p2pc config set node.policy NAME")
    try:
        policy: Any = plugins[name].load()()
    except Exception as error:  # a plugin may raise anything
        raise ConfigError(
            f'the pool policy "{name}" cannot be loaded',
            f"{type(error).__name__}: {error}",
            "p2pc config unset node.policy",
        ) from error
    return cast(Policy, policy)
