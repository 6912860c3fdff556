"""What a peer that is told of a group may make a member do."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import create_identity
from p2pcompute.limits import LOG_ENTRIES_MAX, ROSTER_SHARED_MAX
from p2pcompute.node.log_exchange import LOG_NEWS, LogExchange
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.trust.groups import found_group

CRYPTO = RealCrypto()


class Line:
    """A channel, and all that are open: it keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.is_open = True

    def on_request(self, _type: int, _answer: Any) -> None: ...

    def on_message(self, _type: int, _answer: Any) -> None: ...

    def all(self) -> list[Any]:
        return [self] if self.is_open else []

    def send(self, message: int, body: Any) -> None:
        self.sent.append((message, body))


def exchange_over(line: Any) -> LogExchange:
    """That of the founder of a group, who is in it alone."""
    absent: Any = None
    clock, ada = RealClock(), create_identity(CRYPTO)
    host = Host(clock=clock, rng=SystemRng(), crypto=CRYPTO, net=absent, store=absent, runner=absent, probe=absent)
    group = found_group(ada, CRYPTO, "lab", clock.wall())
    credentials = GroupCredentials(host, ada, group, "ada", dict)
    credentials.roster.check(ada.public_key, group.chain, clock.wall())
    return LogExchange(host, credentials, line, TaskScope("test"), lambda _is_log: None, lambda: 1)


def test_who_wants_what_nobody_can_have_is_refused() -> None:
    line: Any = Line()
    exchange = exchange_over(line)
    wrong: list[Any] = [None, {}, [[]], [{}], [b"", []], [b""] * (LOG_ENTRIES_MAX + ROSTER_SHARED_MAX + 1)]
    for junk in wrong:
        with pytest.raises(RemoteProtocolError):
            exchange._give(line, junk)
    mark = exchange._credentials.roster.marks()
    exchange._give(line, [b"", bytes(8), *mark])
    assert [message for message, _body in line.sent] == [LOG_NEWS]


async def test_what_lost_peers_held_is_forgotten() -> None:
    """An answer may come with the end of its channel: what it says would be kept for ever."""
    line: Any = Line()
    exchange = exchange_over(line)
    exchange._same[line] = b"digest"
    line.is_open = False
    exchange._tell_some()
    assert not exchange._same


async def test_parts_that_a_later_build_adds_to_messages_are_passed_over() -> None:
    """Otherwise members of two versions tell each other nothing, removals included."""
    line: Any = Line()
    exchange = exchange_over(line)
    answer = await exchange._on_sync(line, [[], [], "more"])
    assert len(answer[1]) == 1, "its chain"

    async def later(_message: int, _body: Any, **_: Any) -> Any:
        return [*answer, {"more": True}]

    line.request = later
    await exchange._sync(line)
    assert exchange._same[line] == exchange._credentials.roster.digest, "it was read to its end"
    exchange._on_told(line, [[], [], 7])
    exchange._on_digest(line, [exchange._credentials.roster.digest, 7])
    exchange.close()
