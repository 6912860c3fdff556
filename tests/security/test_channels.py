"""Attacks on channels of a real daemon: downgrades, what was recorded and sent again, somebody in between."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.real_streams import dialler_context, listener_context
from p2pcompute.limits import PREAMBLE_BYTES
from p2pcompute.node.doors import JOIN
from p2pcompute.transport import handshake
from p2pcompute.transport.credentials import ANYBODY, WORDS_KEY, invite_key
from p2pcompute.transport.messages import MessageType, Purpose
from p2pcompute.trust.invites import Token, join_proof, parse_token
from tests.e2e.mesh import Daemon, Mesh
from tests.security.stranger import CRYPTO, Closed, Stranger
from tests.security.test_joining import port_of


@pytest.fixture
def ada(mesh: Mesh) -> Daemon:
    return mesh.add("ada").start()


@pytest.fixture
def token(ada: Daemon) -> Token:
    return parse_token(ada.p2pc("invite", "--token").check().out.strip())


def preamble(key: bytes = WORDS_KEY, listener: bytes = ANYBODY, wall: float | None = None) -> bytes:
    nonce = os.urandom(handshake.PREAMBLE_NONCE_BYTES)
    return handshake.make_preamble(key, listener=listener, wall=wall or time.time(), nonce=nonce)


def speaks_tls(port: int, first: bytes, context: ssl.SSLContext | None = None) -> bool:
    """Whether a node answers with TLS to these first bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(first)
        try:
            with (context or dialler_context()).wrap_socket(plain):
                return True
        except (OSError, ssl.SSLError):
            return False


def test_older_tls_is_not_spoken(ada: Daemon, token: Token) -> None:
    """Old versions have weaker handshakes; nobody needs them."""
    port, key = port_of(ada), invite_key(token.secret)
    old = dialler_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert not speaks_tls(port, preamble(key, token.inviter), old)
    assert speaks_tls(port, preamble(key, token.inviter))


def test_a_recorded_preamble_opens_nothing(ada: Daemon, token: Token) -> None:
    """Also not one that is old, from the future, or made for another node."""
    port, key = port_of(ada), invite_key(token.secret)
    recorded = preamble(key, token.inviter)
    assert speaks_tls(port, recorded) and not speaks_tls(port, recorded)
    for skew_s in (-400, 400):
        assert not speaks_tls(port, preamble(key, token.inviter, time.time() + skew_s))
    assert not speaks_tls(port, preamble(key, b"k" * 32))
    assert not speaks_tls(port, preamble()), "no invitation by words is open"


def test_versions_are_not_talked_down(ada: Daemon, token: Token) -> None:
    """Who claims to know only what is not spoken here is refused and told so, instead of being met there."""
    stranger = Stranger(port_of(ada), key=invite_key(token.secret), listener=token.inviter)
    _type, body = stranger.receive()
    hello = handshake.check_hello(CRYPTO, body, binding=stranger.binding(), listener=token.inviter)
    auth = handshake.make_auth(
        stranger.identity, purpose=Purpose.JOIN, binding=stranger.binding(), nonce=hello.nonce, listener=hello.key,
        instance=b"stranger", hello={"name": "x"},
    )  # fmt: skip
    stranger.send(MessageType.AUTH, {**auth, "versions": [60000, 60001]})
    kind, refusal = stranger.receive()
    assert kind == MessageType.ERROR and "protocol" in refusal["what"], refusal
    stranger.close()


def test_an_invitation_opens_no_other_channel(ada: Daemon, token: Token) -> None:
    """A joiner that asks for a control channel is cut off before anything of the group is said to it."""
    for purpose in (Purpose.CONTROL, Purpose.BLOB):
        stranger = Stranger(port_of(ada), key=invite_key(token.secret), listener=token.inviter)
        with pytest.raises(Closed):
            stranger.prove(purpose)
        stranger.close()


def test_a_proof_is_good_on_its_own_channel_only(ada: Daemon, token: Token) -> None:
    """Who sees a proof (a node that is taken for the inviter) cannot use it at the inviter."""

    def stranger() -> Stranger:
        one = Stranger(port_of(ada), key=invite_key(token.secret), listener=token.inviter)
        assert one.prove()[0] == MessageType.WELCOME
        return one

    def ask(one: Stranger, proof: bytes) -> tuple[int, object]:
        one.send(JOIN, ["token", [token.invite_id, proof], "bob"], 1)
        return one.receive()

    def proof_of(one: Stranger) -> bytes:
        return join_proof(token.secret, binding=one.session, joiner=one.identity.public_key, inviter=token.inviter)

    bob, eve = stranger(), stranger()
    stolen = proof_of(bob)
    kind, body = ask(eve, stolen)
    assert kind == MessageType.ERROR and "proof" in str(body), body
    assert ask(bob, stolen)[0] == MessageType.REPLY
    late = stranger()
    kind, body = ask(late, proof_of(late))
    assert kind == MessageType.ERROR and "used" in str(body), "a token that was used is of no use to who steals it"
    for one in (bob, eve, late):
        one.close()


@pytest.fixture
def relay(ada: Daemon) -> Iterator[int]:
    """Somebody in between who ends TLS on both sides and passes every byte on; returns its port."""
    context, _binding = listener_context()
    target = port_of(ada)
    listening = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = []
    pumps: list[threading.Thread] = []

    def pump(source: ssl.SSLSocket, sink: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                ends.append(listening.accept()[0])
            except OSError:
                return
            with contextlib.suppress(OSError):
                first = ends[-1].recv(PREAMBLE_BYTES, socket.MSG_WAITALL)
                near = context.wrap_socket(ends[-1], server_side=True)
                ends.append(near)
                ends.append(socket.create_connection(("127.0.0.1", target)))
                ends[-1].sendall(first)
                far = dialler_context().wrap_socket(ends[-1])
                ends.append(far)
                for pair in ((near, far), (far, near)):
                    pumps.append(threading.Thread(target=pump, args=pair))
                    pumps[-1].start()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    for one in pumps:
        one.join()
    for end in [listening, *ends]:
        end.close()


def test_somebody_in_between_is_found_out(mesh: Mesh, ada: Daemon, relay: int) -> None:
    """A relay shows its own certificate, for which the listener's identity does not vouch."""
    made = ada.p2pc("invite", "--json").check().json()
    stranger = Stranger(relay)
    _type, body = stranger.receive()
    with pytest.raises(RemoteProtocolError, match="certificate"):
        handshake.check_hello(CRYPTO, body, binding=stranger.binding(), listener=None)
    stranger.close()
    bob = mesh.add("bob").start()
    fooled = bob.p2pc("join", f"{made['code']}@127.0.0.1:{relay}", "--accept", "all")
    assert fooled.code in (5, 6) and bob.get("/v1/status")["group"]["is_alone"], fooled.err
    bob.p2pc("join", f"{made['code']}@127.0.0.1:{port_of(ada)}", "--accept", "all").check()


def test_what_is_sent_back_to_its_sender_proves_nothing(ada: Daemon, token: Token) -> None:
    """Reflection: the listener's own words, returned to it."""
    stranger = Stranger(port_of(ada), key=invite_key(token.secret), listener=token.inviter)
    kind, body = stranger.receive()
    stranger.send(kind, body)
    with pytest.raises(Closed):
        stranger.receive()
    stranger.close()
