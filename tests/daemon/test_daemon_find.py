"""Questions over the control API: what scripts read, what is refused, and that nobody is asked for one who has gone."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from daemon_fake_node import OWN_KEY, PEER_KEY
from daemon_kit import Daemon, until

from p2pcompute.errors import UsageError
from p2pcompute.ids import format_device_id


async def get(daemon: Daemon, path: str) -> dict[str, Any]:
    return await daemon.call(lambda: daemon.connection.request("GET", path))


async def test_a_member_with_all_that_it_says(daemon: Daemon) -> None:
    """`p2pc peers NODE` shows nothing, or takes what a node said for what it says."""
    own = await get(daemon, f"/v1/peers/{format_device_id(OWN_KEY)}")
    assert own["schema"] == "p2pc.peer/1" and own["trouble"] is None and own["age_s"] == 0
    cpus = own["attributes"]["cpus"]
    assert (cpus["value"], cpus["lifetime_s"], cpus["accuracy"]) == (8.0, None, None) and cpus["age_s"] < 1
    assert own["attributes"]["has"]["value"] == ["ffmpeg"] and own["attributes"]["has"]["age_s"] >= 5
    other = await get(daemon, f"/v1/peers/{format_device_id(PEER_KEY)}")
    assert other["name"] == "atlas" and other["trouble"] == "the channel is gone" and other["age_s"] == 30
    for ref, code in ((format_device_id(bytes(32)), "no-such-node"), ("K7QD", "bad-id")):
        with pytest.raises(UsageError) as caught:
            await get(daemon, f"/v1/peers/{ref}")
        assert caught.value.code == code


async def test_find_has_the_documented_shape(daemon: Daemon) -> None:
    """Scripts read these fields, and the limits that they give count."""
    found = await get(
        daemon,
        f"/v1/find?expr={quote('cpus>=8 && has=ffmpeg')}&rank=-load&max_answers=3&max_time_s=0.5&max_age_s=7"
        "&max_asked=2",
    )
    assert found["schema"] == "p2pc.find/1" and found["names"] == ["cpus", "has", "load"]
    assert {name: found[name] for name in ("candidates", "answered", "unknown", "silent", "too_old", "not_asked")} == {
        "candidates": 3, "answered": 1, "unknown": 1, "silent": 1, "too_old": 0, "not_asked": 0,
    }  # fmt: skip
    assert (found["took_s"], found["oldest_s"], found["is_cut_off"]) == (0.25, 0.0, False)
    [item] = found["items"]
    assert (item["name"], item["state"], item["rank"], item["is_silent"]) == ("nova", "self", 2.0, False)
    [query] = daemon.node.queries
    assert (query.answers_max, query.time_s, query.age_s, query.asked_max) == (3, 0.5, 7.0, 2)
    assert found["asked"] == 1 and found["unheard"] == []
    assert query.expression.text == "cpus>=8 && has=ffmpeg" and query.rank is not None


@pytest.mark.parametrize(
    "query",
    [
        "", "expr=", "expr=cpus", "expr=cpuss>=1", "expr=cpus>=1&rank=name", "expr=cpus>=1&max_time_s=-1",
        "expr=cpus>=1&max_time_s=nan", "expr=cpus>=1&max_time_s=inf", "expr=cpus>=1&max_time_s=1e9",
        "expr=cpus>=1&max_age_s=x", "expr=cpus>=1&max_answers=x", "expr=cpus>=1&max_asked=x",
    ],
)  # fmt: skip
async def test_what_cannot_be_asked_is_refused(daemon: Daemon, query: str) -> None:
    """A mistyped question is asked, or answered as if nobody fitted."""
    with pytest.raises(UsageError):
        await get(daemon, f"/v1/find?{quote(query, safe='=&')}")
    assert not daemon.node.queries


async def follow(daemon: Daemon, query: str) -> list[tuple[str, Any]]:
    return await daemon.call(lambda: list(daemon.connection.stream_events(f"/v1/when?{quote(query, safe='=&')}")))


async def test_a_trigger_ends_with_the_node_or_the_time(daemon: Daemon) -> None:
    """Who waits is not told, or waits on after the time that it gave."""
    assert await follow(daemon, "expr=cpus>=99&timeout_s=0.05") == [("timeout", {})]
    waiting = asyncio.create_task(follow(daemon, "expr=cpus>=99"))
    await until(lambda: daemon.node.watched)
    assert daemon.api.triggers.follower_count == 1
    daemon.node.condition.set()
    [(name, found)] = await waiting
    assert name == "found" and found["name"] == "atlas" and found["names"] == ["cpus"]
    [(name, _)] = await follow(daemon, "expr=cpus>=99&timeout_s=0")
    assert name == "found", "what is so at once is found, however short the time is"
    with pytest.raises(UsageError):
        await follow(daemon, "expr=cpus>=")
    await until(lambda: not daemon.api.triggers.follower_count)


async def test_a_name_that_no_node_has_is_said(daemon: Daemon) -> None:
    """People wait for ever for a misspelt attribute."""
    daemon.node.answered = 0
    found = await get(daemon, f"/v1/find?expr={quote('ram>=1GiB && foo>1')}")
    assert found["unheard"] == [{"name": "ram", "near": "mem.total"}, {"name": "foo", "near": None}]
    events = await follow(daemon, "expr=ram>=99&timeout_s=0.05")
    assert events == [("unheard", {"items": [{"name": "ram", "near": "mem.total"}]}), ("timeout", {})]
    daemon.node.answered = 1
    assert (await get(daemon, f"/v1/find?expr={quote('ram>=1GiB || cpus>0')}"))["unheard"] == []


async def test_nobody_is_watched_for_a_follower_that_has_gone(daemon: Daemon) -> None:
    """Every interrupted `p2pc when` leaves questions behind at all nodes."""
    _reader, writer = await asyncio.open_unix_connection(daemon.connection.path)
    writer.write(b"GET /v1/when?expr=cpus%3E%3D99 HTTP/1.1\r\nHost: p2pc\r\n\r\n")
    await until(lambda: daemon.node.watched)
    writer.close()
    await writer.wait_closed()
    await until(lambda: not daemon.node.watched and not daemon.api.triggers.follower_count)


async def test_triggers_end_when_the_node_stops(daemon: Daemon) -> None:
    """A node cannot stop while somebody waits."""
    waiting = asyncio.create_task(follow(daemon, "expr=cpus>=99"))
    await until(lambda: daemon.node.watched)
    daemon.api.triggers.close()
    assert await waiting == []
    assert not daemon.node.watched
