"""What of settings only this machine, now, can judge: before one is written, and before a node stops for them."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Any

from p2pcompute.config import Settings, parse_moment
from p2pcompute.errors import ConfigError, IdentityError


def check_value(key: str, value: Any) -> None:
    """Look at what the type of a setting does not tell.

    Raises:
        P2pcError: the value cannot be used.
    """
    if key == "node.accept_if":
        from p2pcompute.resources.matching import check_acceptance

        check_acceptance(value)
    if key == "node.policy":
        from p2pcompute.daemon.policies import find_policy

        find_policy(value)
    if key == "node.slots":
        from p2pcompute.config import parse_slots

        parse_slots(str(value), float(os.cpu_count() or 1))
    if key == "node.until" and value and parse_moment(value) <= time.time():
        now = datetime.now().isoformat(timespec="minutes")
        raise ConfigError(f"node.until {value} is past", f"it is {now} here", "name a later moment, or leave it empty")
    if key.startswith("admit."):
        from p2pcompute.daemon.admissions import check_admission

        try:
            check_admission(key, value)
        except IdentityError as error:  # a value that cannot be used, as any other: no node was asked
            raise ConfigError(error.what, error.why, error.fix) from error


def check_start(settings: Settings) -> None:
    """Look whether a node would start with settings, as far as that can be told without starting one.

    Raises:
        P2pcError: it would not.
    """
    from p2pcompute.daemon.main import moment_to_leave
    from p2pcompute.host.real_interfaces import interface_addresses
    from p2pcompute.node.comfort_service import ComfortSettings

    for key in ("node.accept_if", "node.policy", "node.slots"):
        check_value(key, settings.get(key))
    ComfortSettings.of(settings)
    moment_to_leave(settings, time.time())
    interface_addresses(settings.node.interfaces or None)
