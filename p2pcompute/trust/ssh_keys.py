"""Keys of OpenSSH: lists of those that may join (`authorized_keys`), private ones, what they say of an installation.

Only Ed25519, in plain lines: an option that is not understood is a restriction that is not kept, so a list with one is
refused as a whole.  A private key is read by the command, signs one statement about this installation's key, and is
forgotten; the node never has it.

Source: sshd(8), AUTHORIZED_KEYS FILE FORMAT; RFC 4253 section 6.6 and RFC 8709 for the encoding of keys.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import IdentityError, RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.files import read_private
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    AUTHORIZED_KEYS_BYTES_MAX,
    AUTHORIZED_KEYS_MAX,
    VOUCHER_BYTES_MAX,
    VOUCHER_SKEW_S_MAX,
    VOUCHER_TTL_S,
)
from p2pcompute.wire import envelope

VOUCHER_TYPE: Final = "p2pc/ssh-voucher"
KEY_TYPE: Final = "ssh-ed25519"
_CERTIFICATE: Final = "-cert-v01@openssh.com"
_OTHER_TYPES: Final = (
    "ssh-rsa",
    "ssh-dss",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


def fingerprint(key: bytes) -> str:
    """Return a public key as ssh-keygen -l shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(_blob(key)).digest()).decode().rstrip("=")


def _blob(key: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in (KEY_TYPE.encode(), key))


# --- lists of keys --------------------------------------------------------------------------------


def read_authorized_keys(path: Path) -> dict[bytes, str]:
    """Return key → comment of a list.

    Raises:
        IdentityError: it cannot be read, or others than its owner could change it.
        UsageError: a line of it is not a plain Ed25519 key; nothing of it counts.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"{path} is not a plain file", "something else has its name", f"run: ls -ld {path}")
        if status.st_uid not in (0, os.geteuid()):
            raise IdentityError(
                f"{path} belongs to another user",
                f"its owner is uid {status.st_uid}, this process runs as uid {os.geteuid()}",
                f"run: chown {os.geteuid()} {path}",
            )
        if status.st_mode & 0o022:
            raise IdentityError(
                f"others may change {path}",
                f"its mode is {stat.S_IMODE(status.st_mode):04o}; whoever writes to it decides who may join",
                f"run: chmod go-w {path}",
            )
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(AUTHORIZED_KEYS_BYTES_MAX + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    return parse_authorized_keys(data, str(path))


def _unreadable(path: Path, error: OSError) -> IdentityError:
    return IdentityError(f"cannot read {path}", error.strerror or str(error), f"run: ls -ld {path.parent} {path}")


def parse_authorized_keys(data: bytes, where: str) -> dict[bytes, str]:
    """Return key → comment of the text of a list.

    Args:
        where: the file, for errors.

    Raises:
        UsageError: a line of it is not a plain Ed25519 key; nothing of it counts.
    """
    if len(data) > AUTHORIZED_KEYS_BYTES_MAX:
        raise UsageError(
            f"{where} is too long", f"{AUTHORIZED_KEYS_BYTES_MAX} bytes is the most", "split it", code="keys"
        )
    keys: dict[bytes, str] = {}
    for number, raw in enumerate(data.splitlines(), 1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError as error:
            raise _bad_line(where, number, "it is not text") from error
        if not line or line.startswith("#"):
            continue
        key, comment = _parse_line(line, lambda why, fix="", number=number: _bad_line(where, number, why, fix))
        keys[key] = comment
        if len(keys) > AUTHORIZED_KEYS_MAX:
            raise UsageError(
                f"{where} has too many keys", f"{AUTHORIZED_KEYS_MAX} is the most", "split it", code="keys"
            )
    return keys


def _parse_line(line: str, refusal: Callable[..., UsageError]) -> tuple[bytes, str]:
    first, _, rest = line.partition(" ")
    if _CERTIFICATE in first:
        raise refusal("it is a certificate, and only plain keys count here")
    if first in _OTHER_TYPES:
        raise refusal(f"its type is {first}, and only {KEY_TYPE} counts here", "make one: ssh-keygen -t ed25519")
    if first != KEY_TYPE:
        if KEY_TYPE in line or any(other in line for other in _OTHER_TYPES):
            raise refusal(
                f"it begins with options ({first[:40]}), which would not be kept here",
                "remove the options, or the line, or use a list of its own for p2pc",
            )
        if line.startswith("-----BEGIN") and "PRIVATE KEY" in line:
            raise refusal(
                "it is a private key, which stays where it is", "name the public half: the file ending in .pub"
            )
        raise refusal("it is not a key")
    text, _, comment = rest.strip().partition(" ")
    try:
        blob = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError as error:
        raise refusal("the key in it is damaged") from error
    key = blob[-PUBLIC_KEY_BYTES:]
    if len(key) != PUBLIC_KEY_BYTES or blob != _blob(key):
        raise refusal("the key in it is damaged")
    return key, "".join(char for char in comment if char.isprintable())[:64]


def _bad_line(where: str, number: int, why: str, fix: str = "") -> UsageError:
    return UsageError(
        f"line {number} of {where} cannot be used",
        f"{why}; nothing of the list counts while it has such a line",
        fix or "repair or remove the line",
        code="keys",
    )


# --- private keys ---------------------------------------------------------------------------------


def read_private_key(path: Path, ask_passphrase: Callable[[], str | None]) -> bytes:
    """Return the secret seed of an OpenSSH Ed25519 key.

    Args:
        ask_passphrase: called when the key is locked; None: nobody can be asked.

    Raises:
        IdentityError: it cannot be read, others may read it, or it is no such key; nothing was changed.
    """
    data = read_private(path, power="can log in, and join groups, as its owner")
    if data is None:
        raise IdentityError(f"there is no key file {path}", "", "make one: ssh-keygen -t ed25519")
    if data.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        kind = "a certificate" if _CERTIFICATE.encode() in data[:80] else "the public half of a key"
        raise _no_key(path, f"it is {kind}; the private one is needed")
    if b"-----BEGIN CERTIFICATE-----" in data:
        raise _no_key(path, "it is an X.509 certificate")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    def load(passphrase: str | None) -> Any:
        try:
            return load_ssh_private_key(data, None if passphrase is None else passphrase.encode())
        except TypeError:  # locked, and no passphrase was given
            return None
        except (ValueError, UnsupportedAlgorithm) as error:
            why = "the passphrase is wrong, or the file is damaged" if passphrase is not None else _shown(error)
            raise _no_key(path, why) from error

    key = load(None)
    if key is None:
        passphrase = ask_passphrase()
        if passphrase is None:
            raise _no_key(path, "it is locked with a passphrase, and there is no terminal to ask for it")
        key = load(passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, f"it is of another type; only {KEY_TYPE} can be used")
    seed: bytes = key.private_bytes_raw()
    return seed


def _shown(error: Exception) -> str:
    return f"it cannot be read: {str(error)[:80]}"


def _no_key(path: Path, why: str) -> IdentityError:
    return IdentityError(
        f"{path} cannot be used to join", why, "give the private key, like ~/.ssh/id_ed25519", code="ssh-key"
    )


# --- what a key says about an installation --------------------------------------------------------


def make_voucher(crypto: Crypto, seed: bytes, *, joiner: bytes, wall: float) -> bytes:
    """Return the statement that the owner of an OpenSSH key wants this installation in.

    Args:
        seed: of the OpenSSH key.
        joiner: public key of the installation: the statement is of no use to any other.
        wall: Unix seconds; it is good for VOUCHER_TTL_S.
    """
    return envelope.seal(crypto, seed, VOUCHER_TYPE, {"joiner": joiner, "expires": int(wall + VOUCHER_TTL_S)})


def check_voucher(crypto: Crypto, raw: object, *, joiner: bytes, wall: float) -> bytes:
    """Return the OpenSSH key that has signed a statement about `joiner`.

    Raises:
        TrustError: it has expired, or this machine's clock differs much from the other's.
        RemoteProtocolError: it is none, or about somebody else.
    """
    if not isinstance(raw, bytes):
        raise RemoteProtocolError("not a statement of a key")
    opened = envelope.open_envelope(crypto, raw, VOUCHER_TYPE, bytes_max=VOUCHER_BYTES_MAX)
    body = opened.payload
    if not isinstance(body, dict) or body.keys() != {"joiner", "expires"} or type(body["expires"]) is not int:
        raise RemoteProtocolError("not a statement of a key")
    if body["joiner"] != joiner:
        raise RemoteProtocolError("a statement about another installation")
    left_s = body["expires"] - wall
    if not -VOUCHER_SKEW_S_MAX < left_s < VOUCHER_TTL_S + VOUCHER_SKEW_S_MAX:
        raise TrustError(
            "the statement of your key is not good now",
            f"by the other computer's clock it {'ended' if left_s < 0 else 'ends'} "
            f"{abs(round(left_s))} s {'ago' if left_s < 0 else 'from now'}",
            "set the clocks of both machines, and try again",
            code="clock",
        )
    return opened.signer
