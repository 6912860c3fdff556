"""Flags of `p2pc node`."""

from __future__ import annotations

import pytest

from p2pcompute.cli.node_commands import _settings
from p2pcompute.errors import UsageError


def test_a_peer_is_an_address_or_a_domain() -> None:
    """If it broke: a domain given on the command line is refused, or looked up as a host."""
    given = _settings(peer=("nova:7878", "mesh.example.org", "[2001:db8::1]:1", "Other.example.org."))
    assert given == {
        "node.peers": "nova:7878,[2001:db8::1]:1",
        "node.seeds": "mesh.example.org,Other.example.org.",
    }
    assert _settings(peer=("nova:7878",), accept="wasm") == {"node.peers": "nova:7878", "node.accept": "wasm"}
    with pytest.raises(UsageError) as raised:
        _settings(peer=("nova",))
    assert "mesh.example.org" in (raised.value.fix or "") and "HOST:PORT" in (raised.value.fix or "")
