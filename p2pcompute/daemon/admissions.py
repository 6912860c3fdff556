"""Standing ways into this node's group, from its settings and the files that these name."""

from __future__ import annotations

import logging
from pathlib import Path

from p2pcompute.config import AdmitSettings
from p2pcompute.dht.reach import is_private
from p2pcompute.errors import IdentityError, P2pcError, UsageError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.files import read_private
from p2pcompute.trust.admission import Admission, KeyAdmission, NearbyAdmission, PskAdmission, check_psk
from p2pcompute.trust.pins import Pins
from p2pcompute.trust.ssh_keys import read_authorized_keys

log = logging.getLogger("p2pcompute.node")


def read_psk(path: Path) -> bytes:
    """Return the pre-shared key in a file.

    Raises:
        IdentityError: there is none, or others may read it.
        UsageError: it is too short to be safe.
    """
    data = read_private(path, power="can join the group, and be taken for one of its members by who joins")
    if data is None:
        raise IdentityError(f"there is no file {path}", "", f"make one: (umask 077; openssl rand -base64 32 > {path})")
    return check_psk(data, str(path))


def check_admission(key: str, value: str | bool) -> None:
    """Refuse a setting that names a file which could not be used.

    Raises:
        IdentityError, UsageError: what is wrong with it.
    """
    if key in ("admit.psk", "admit.keys") and value and not Path(str(value)).expanduser().is_absolute():
        what, why = f"{key} is {str(value)!r}, not a whole path", "the node looks for it from another directory"
        raise UsageError(what, why, f"p2pc config set {key} {Path(str(value)).absolute()}", code="config")
    if key == "admit.psk" and value:
        read_psk(Path(str(value)).expanduser())
    if key == "admit.keys" and value:
        read_authorized_keys(Path(str(value)).expanduser())


def admissions_of(settings: AdmitSettings, crypto: Crypto, pins: Pins) -> list[Admission]:
    """Return the ways that are open.  One whose file cannot be used stays closed, and the log says why."""
    found: list[Admission] = []
    if settings.psk:
        try:
            found.append(PskAdmission(crypto, read_psk(Path(settings.psk).expanduser())))
        except P2pcError as error:
            _warn("admit.psk", error)
    if settings.keys:
        path = Path(settings.keys).expanduser()
        try:
            read_authorized_keys(path)
        except P2pcError as error:
            _warn("admit.keys", error)
        found.append(KeyAdmission(crypto, lambda: read_authorized_keys(path)))
    if settings.nearby:
        found.append(NearbyAdmission(crypto, pins, is_private))
    return found


def _warn(key: str, error: P2pcError) -> None:
    log.warning("nobody can join by %s: %s: %s; %s", key, error.what, error.why, error.fix)
