"""LAN discovery keeps to the interfaces that the settings allow."""

from __future__ import annotations

import socket
import sys

import pytest

from p2pcompute.host.real_lan import hear_only


@pytest.mark.skipif(sys.platform != "linux", reason="socket filters by interface are Linux's")
def test_nothing_is_heard_from_other_interfaces() -> None:
    """A socket for multicast is bound to all of them; without the filter, a stranger's network could ask us."""
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    for interfaces, is_heard in ((["lo"], True), ([*others, "lo"], True), (others, not others)):
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as hearing,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as saying,
        ):
            hearing.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            hearing.bind(("::", 0))
            hear_only(hearing, interfaces)
            hearing.settimeout(5.0 if is_heard else 0.1)
            saying.sendto(b"x" * 1400, ("127.0.0.1", hearing.getsockname()[1]))
            if is_heard:
                assert hearing.recv(2000) == b"x" * 1400, "whole"
            else:
                with pytest.raises(TimeoutError):
                    hearing.recv(2000)
