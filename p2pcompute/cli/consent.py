"""What a person agrees to who joins a group or invites somebody: what members may do on this computer."""

from __future__ import annotations

import os
from typing import Final

from p2pcompute.config import load_settings, write_setting
from p2pcompute.errors import UsageError
from p2pcompute.places import find_paths

_VARIABLE: Final = "P2PC_NODE__ACCEPT"
ACCEPTED: Final = {
    "none": "this computer takes no work of others",
    "wasm": "members of the group can run WASM modules on this computer, which see nothing of it",
    "sandboxed": "members of the group can run programs on this computer, in sandboxes: without its files and network",
    "all": "every member of the group can run anything on this computer, as the user {user}",
}
"""By value of the setting node.accept."""


def accepted() -> str:
    """Return the setting."""
    return load_settings(find_paths(os.environ), os.environ).node.accept


def power(accept: str) -> str:
    """Say what others can do here."""
    return ACCEPTED[accept].format(user=_user())


def agree(accept: str) -> None:
    """Write the setting, when it is another than it was.

    Raises:
        UsageError: it would not hold, because an environment variable goes before it.
    """
    if accept == accepted():
        return
    if _VARIABLE in os.environ:
        raise UsageError(
            f"a node here goes by node.accept={accepted()}, not {accept}",
            f"{_VARIABLE} goes before the settings file",
            f"unset {_VARIABLE}, where the node is started too",
        )
    write_setting(find_paths(os.environ).config_file, "node.accept", accept)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
