"""Lists of OpenSSH keys, what such keys say of an installation, pins, and the ways in that rest on them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pcompute.daemon.admissions import read_psk
from p2pcompute.errors import IdentityError, RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.limits import (
    AUTHORIZED_KEYS_BYTES_MAX,
    AUTHORIZED_KEYS_MAX,
    MEETINGS_BURST_OF_SOURCE,
    PIN_CHARS_MAX,
    PINS_MAX,
    VOUCHER_SKEW_S_MAX,
    VOUCHER_TTL_S,
)
from p2pcompute.trust.admission import KeyAdmission, Knock, NearbyAdmission, PskAdmission, check_psk
from p2pcompute.trust.pake import Exchange
from p2pcompute.trust.pins import Pins, load_pins, save_pins
from p2pcompute.trust.ssh_keys import (
    VOUCHER_TYPE,
    check_voucher,
    fingerprint,
    make_voucher,
    parse_authorized_keys,
    read_authorized_keys,
    read_private_key,
)
from p2pcompute.wire import envelope

CRYPTO = RealCrypto()
JOINER, INVITER, BINDING = b"j" * 32, b"i" * 32, b"b" * 32
WALL = 1_800_000_000.0
ED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEf5iZ5WPzqE9i3yLgvb0p7mOVWzVd0a9eW1Wg0Yh1rN ada@nova"
RSA = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7 bob"


def knock(**changes: Any) -> Knock:
    fields = {
        "now": 0.0, "wall": WALL, "joiner": JOINER, "name": "bob", "inviter": INVITER, "binding": BINDING,
        "host": "10.0.0.7", **changes,
    }  # fmt: skip
    return Knock(**fields)


def refused(error: UsageError | IdentityError | TrustError) -> bool:
    """Whether somebody can see what is wrong, why, and what to do."""
    return bool(error.what and error.why and error.fix)


# --- lists of keys --------------------------------------------------------------------------------


def test_a_list_as_ssh_has_it() -> None:
    keys = parse_authorized_keys(f"# ours\n\n  {ED}\r\n{ED.replace('ada@nova', '')}\n".encode(), "f")
    (key,) = keys
    assert len(key) == 32


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'command="/bin/true" {ED}', "options"),
        (f"restrict,from=10.0.0.1 {ED}", "options"),
        (f"cert-authority {ED}", "options"),
        (RSA, "ssh-rsa"),
        (f"no-pty {RSA}", "options"),
        ("sk-ssh-ed25519@openssh.com AAAA x", "sk-ssh-ed25519"),
        ("ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5 x", "certificate"),
        ("ssh-ed25519 AAAA!", "damaged"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEf5iZ5WPzqE9i3yLgvb0p7mOVWzVd0a9eW1Wg0Yh1r x", "damaged"),
        ("ssh-ed25519", "damaged"),
        ("-----BEGIN CERTIFICATE-----", "not a key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "it is a private key"),
        ("\udcff", "not text"),
    ],
)
def test_one_line_that_cannot_be_kept_refuses_the_list(line: str, says: str) -> None:
    """An option that is passed over is a restriction that is not kept."""
    with pytest.raises(UsageError, match="line 2") as caught:
        parse_authorized_keys(f"{ED}\n{line}\n".encode(errors="surrogateescape"), "keys")
    assert says in caught.value.why and refused(caught.value)


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from([ED, RSA, "x " + ED, "#", ED[:60], ""])).map(
    lambda lines: "\n".join(lines).encode())))  # fmt: skip
@example(b"x" * (AUTHORIZED_KEYS_BYTES_MAX + 1))
def test_whatever_is_in_a_list_it_is_read_or_refused(data: bytes) -> None:
    try:
        keys = parse_authorized_keys(data, "keys")
    except UsageError as error:
        assert refused(error)
    else:
        assert all(len(key) == 32 for key in keys)


def test_lists_are_bounded(tmp_path: Path) -> None:
    lines = []
    for number in range(AUTHORIZED_KEYS_MAX + 1):
        import base64

        blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + number.to_bytes(32, "big")
        lines.append("ssh-ed25519 " + base64.b64encode(blob).decode())
    with pytest.raises(UsageError):
        parse_authorized_keys("\n".join(lines).encode(), "keys")
    assert len(parse_authorized_keys("\n".join(lines[1:]).encode(), "keys")) == AUTHORIZED_KEYS_MAX


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_list_that_others_may_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text(ED)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="others may change") as caught:
        read_authorized_keys(path)
    assert "chmod go-w" in str(caught.value.fix)
    path.chmod(0o644)
    assert len(read_authorized_keys(path)) == 1
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(IdentityError):
            read_authorized_keys(bad)


# --- private keys ---------------------------------------------------------------------------------


def keygen(path: Path, *words: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-f", str(path), *words], check=True)


def test_keys_of_ssh_keygen(tmp_path: Path) -> None:
    """What ssh-keygen says of a key is what is said here; a passphrase is asked for."""
    plain, locked = tmp_path / "plain", tmp_path / "locked"
    keygen(plain, "-t", "ed25519", "-N", "")
    keygen(locked, "-t", "ed25519", "-N", "sesame")
    seed = read_private_key(plain, lambda: None)
    public = CRYPTO.public_key(seed)
    assert list(parse_authorized_keys(plain.with_suffix(".pub").read_bytes(), "pub")) == [public]
    said = subprocess.run(["ssh-keygen", "-lf", str(plain)], check=True, capture_output=True, text=True).stdout
    assert fingerprint(public) in said
    assert len(read_private_key(locked, lambda: "sesame")) == 32
    for passphrase in (None, "wrong"):
        with pytest.raises(IdentityError, match="cannot be used") as caught:
            read_private_key(locked, lambda passphrase=passphrase: passphrase)  # type: ignore[misc]
        assert refused(caught.value)


def test_files_that_are_no_such_keys(tmp_path: Path) -> None:
    """RSA keys, public halves, certificates, wide permissions, junk: what, why, fix, and nothing changed."""
    rsa, path = tmp_path / "rsa", tmp_path / "key"
    keygen(rsa, "-t", "rsa", "-b", "1024", "-N", "")
    cases = {
        rsa.read_bytes(): "another type",
        ED.encode(): "public half",
        b"ssh-ed25519-cert-v01@openssh.com AAAA": "certificate",
        b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n": "X.509",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n": "cannot be read",
        b"": "cannot be read",
        b"\xff" * 100: "cannot be read",
    }
    for data, says in cases.items():
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(IdentityError) as caught:
            read_private_key(path, lambda: None)
        assert says in caught.value.why and refused(caught.value), (data[:30], caught.value)
        assert path.read_bytes() == data
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="others may read"):
        read_private_key(path, lambda: None)
    with pytest.raises(IdentityError, match="no key file"):
        read_private_key(tmp_path / "none", lambda: None)


# --- what a key says ------------------------------------------------------------------------------

SEED = b"s" * 32


def test_a_statement_is_about_one_installation_and_for_a_while() -> None:
    raw = make_voucher(CRYPTO, SEED, joiner=JOINER, wall=WALL)
    latest = WALL + VOUCHER_TTL_S + VOUCHER_SKEW_S_MAX
    for wall in (WALL - VOUCHER_SKEW_S_MAX + 1, WALL, latest - 1):
        assert check_voucher(CRYPTO, raw, joiner=JOINER, wall=wall) == CRYPTO.public_key(SEED)
    for wall in (latest + 1, WALL - VOUCHER_SKEW_S_MAX - 1):
        with pytest.raises(TrustError, match="not good now") as caught:
            check_voucher(CRYPTO, raw, joiner=JOINER, wall=wall)
        assert caught.value.code == "clock"
    with pytest.raises(RemoteProtocolError, match="another installation"):
        check_voucher(CRYPTO, raw, joiner=b"k" * 32, wall=WALL)


@given(st.data())
def test_changed_statements_are_refused(data: st.DataObject) -> None:
    raw = bytearray(make_voucher(CRYPTO, SEED, joiner=JOINER, wall=WALL))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError):
        check_voucher(CRYPTO, bytes(raw), joiner=JOINER, wall=WALL)


@pytest.mark.parametrize(
    "body",
    [None, {}, {"joiner": JOINER}, {"joiner": JOINER, "expires": True}, {"joiner": JOINER, "expires": 2**63, "x": 1}],
)
def test_other_statements_are_refused(body: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        check_voucher(CRYPTO, envelope.seal(CRYPTO, SEED, VOUCHER_TYPE, body), joiner=JOINER, wall=WALL)
    right = {"joiner": JOINER, "expires": int(WALL)}
    with pytest.raises(RemoteProtocolError):
        check_voucher(CRYPTO, envelope.seal(CRYPTO, SEED, "p2pc/delegation", right), joiner=JOINER, wall=WALL)


# --- ways in --------------------------------------------------------------------------------------


def test_by_key() -> None:
    listed: dict[bytes, str] = {}
    way = KeyAdmission(CRYPTO, lambda: listed)
    raw = make_voucher(CRYPTO, SEED, joiner=JOINER, wall=WALL)
    with pytest.raises(TrustError, match="SHA256:"):
        way.admit(knock(), raw)
    listed[CRYPTO.public_key(SEED)] = ""
    assert way.admit(knock(), raw).roles == ("submit", "work"), "who was let in so invites nobody"
    with pytest.raises(RemoteProtocolError):
        way.admit(knock(joiner=b"k" * 32), raw)  # heard by somebody else
    with pytest.raises(RemoteProtocolError):
        way.meet(knock(), b"")

    def unusable() -> dict[bytes, str]:
        raise IdentityError("others may change it")

    with pytest.raises(TrustError, match="cannot be used"):
        KeyAdmission(CRYPTO, unusable).admit(knock(), raw)


def test_by_preshared_key() -> None:
    secret = check_psk(b" sixteen bytes or more\n", "f")
    way = PskAdmission(CRYPTO, secret)

    def run(password: bytes, **changes: Any) -> Any:
        asked = knock(**changes)
        own = Exchange(password, is_joiner=True, joiner=JOINER, inviter=INVITER, binding=asked.binding,
                       entropy=CRYPTO.random_bytes)  # fmt: skip
        own.finish(way.meet(asked, own.message))
        grant = way.admit(asked, own.own_proof)
        assert own.is_proof(grant.proof), "the joiner sees that the member knows it too"
        return grant

    assert run(secret).roles == ("submit", "work")
    with pytest.raises(TrustError, match="not the pre-shared key"):
        run(b"another one of sixteen", binding=b"c" * 32, now=100.0)
    with pytest.raises(RemoteProtocolError, match="without an exchange"):
        way.admit(knock(binding=b"d" * 32), b"x" * 32)
    with pytest.raises(RemoteProtocolError, match="second exchange"):
        run(secret, now=200.0)
    tries = [0]
    with pytest.raises(TrustError) as caught:
        for number in range(100):
            tries[0] = number
            run(secret, binding=number.to_bytes(32, "big"), now=300.0)
    assert caught.value.code == "invite-busy" and tries[0] == MEETINGS_BURST_OF_SOURCE


@pytest.mark.parametrize("secret", [b"", b"short", b" " * 40, b"x" * 1025])
def test_preshared_keys_that_could_be_guessed(secret: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_psk(secret, "f")
    assert refused(caught.value)
    with pytest.raises(IdentityError):
        read_psk(tmp_path / "none")


def test_nearby() -> None:
    pins = Pins()
    way = NearbyAdmission(CRYPTO, pins, lambda host: host.startswith("10."))
    assert way.admit(knock(), b"").roles == ("submit", "work")
    way.admit(knock(), b"")
    with pytest.raises(TrustError, match="own network"):
        way.admit(knock(host="203.0.113.9"), b"")
    with pytest.raises(TrustError, match="another key than before"):
        way.admit(knock(joiner=b"k" * 32), b"")
    with pytest.raises(RemoteProtocolError):
        way.admit(knock(), b"x")


# --- pins -----------------------------------------------------------------------------------------


def test_pins_are_kept_and_bounded(tmp_path: Path) -> None:
    one = Pins(keep=lambda known: save_pins(tmp_path, known))
    one.check("node nova", b"k" * 32, who="nova")
    assert load_pins(tmp_path) == {"node nova": b"k" * 32}
    save_pins(tmp_path, {f"node {'n' * 120} {number}": number.to_bytes(32, "big") for number in range(PINS_MAX)})
    pins = Pins(load_pins(tmp_path), keep=lambda known: save_pins(tmp_path, known), where="known_nodes")
    with pytest.raises(TrustError, match="too many"):
        pins.check("one more", b"k" * 32, who="n")
    pins.check(f"node {'n' * 120} 7"[:PIN_CHARS_MAX], (7).to_bytes(32, "big"), who="n")
    with pytest.raises(TrustError) as caught:
        pins.check(f"node {'n' * 120} 7", (8).to_bytes(32, "big"), who="nova")
    assert caught.value.code == "key-changed"
    assert load_pins(tmp_path / "nowhere") == {}
    for damage in (b"x y\n", b"\xff\n", (tmp_path / "known_nodes").read_bytes()[1:]):
        (tmp_path / "known_nodes").write_bytes(damage)
        with pytest.raises(IdentityError, match="damaged"):
            load_pins(tmp_path)
