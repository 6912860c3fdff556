"""The group file: the group of this installation, as it is kept.

The only I/O about groups; `groups` decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import IdentityError, ProtocolError, RemoteProtocolError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.files import read_private, replace_private
from p2pcompute.ids import PUBLIC_KEY_BYTES, short_device_id
from p2pcompute.trust.groups import GROUP_ID_BYTES, NETWORK_KEY_BYTES, Group, bytes_of, steps_of
from p2pcompute.wire import cbor

GROUP_FILE: Final = "group.cbor"
_FORMAT: Final = 1


def save_group(directory: Path, group: Group) -> None:
    """Write the group file (mode 0600) into the installation's directory, whole or not at all.

    Raises:
        IdentityError: it cannot be written; the old one stays.
    """
    body = {
        "format": _FORMAT,
        "group": group.group_id,
        "name": group.name,
        "network_key": group.network_key,
        "founder": group.founder,
        "chain": list(group.chain),
        "open": group.is_open_to_others,
        "former": [[key, int(until)] for key, until in group.former_keys],
    }
    replace_private(directory / GROUP_FILE, cbor.encode(body), unique=group.group_id.hex()[:16])


def load_group(directory: Path) -> Group | None:
    """Return the group kept in the installation's directory, None before the first start.

    The chain is not looked at here: see `load_own_group`.

    Raises:
        IdentityError: damaged, of another user, or readable by others.
    """
    path = directory / GROUP_FILE
    data = read_private(path)
    if data is None:
        return None
    try:
        return _group_from(cbor.decode(data))
    except ProtocolError as error:
        raise _damaged(path, error.what) from error


def load_own_group(directory: Path, crypto: Crypto, installation: bytes) -> Group | None:
    """Return the group that `load_group` finds, as one in which this installation is, or was, a member.

    Of the chain only the signatures are checked, and whose it is: it may have ended and be renewable.

    Raises:
        IdentityError: as `load_group`; or the membership is forged, or that of another key.
    """
    group, path = load_group(directory), directory / GROUP_FILE
    if group is None:
        return None
    try:
        subject = steps_of(crypto, group.chain, group_id=group.group_id)[-1].subject
    except RemoteProtocolError as error:
        raise _damaged(path, error.what) from error
    if subject != installation:
        raise IdentityError(
            f"the group file {path} belongs to another key",
            f"it is the membership of {short_device_id(subject)}, and this computer is {short_device_id(installation)}",
            f"put the key file back that belongs to it, or move it away and join again: mv {path} {path}.other-key",
        )
    return group


def _damaged(path: Path, why: str) -> IdentityError:
    return IdentityError(
        f"the group file {path} is damaged",
        f"{why}; the membership of this computer is in it",
        f"restore it from a backup, or move it away and join again: mv {path} {path}.damaged",
    )


def _group_from(body: Any) -> Group:
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise RemoteProtocolError("its format is unknown to this build")
    name, chain, is_open = body.get("name"), body.get("chain"), body.get("open")
    if not isinstance(name, str) or not isinstance(is_open, bool):
        raise RemoteProtocolError("it has no name")
    if not isinstance(chain, list) or not all(isinstance(item, bytes) for item in chain) or not chain:
        raise RemoteProtocolError("it has no chain of admit entries")
    former = body.get("former", [])
    if not isinstance(former, list):
        raise RemoteProtocolError("it has no list of former network keys")
    return Group(
        group_id=bytes_of(body, "group", GROUP_ID_BYTES),
        name=name,
        network_key=bytes_of(body, "network_key", NETWORK_KEY_BYTES),
        founder=bytes_of(body, "founder", PUBLIC_KEY_BYTES),
        chain=tuple(chain),
        former_keys=tuple(_former_key(item) for item in former),
        is_open_to_others=is_open,
    )


def _former_key(item: Any) -> tuple[bytes, float]:
    match item:
        case [bytes(key), int(until)] if len(key) == NETWORK_KEY_BYTES:
            return key, float(until)
    raise RemoteProtocolError("a former network key that cannot be read")
