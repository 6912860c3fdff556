"""Moving blobs: what arrives is what was named, nothing is fetched twice, no peer can make us grow or crash."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.errors import BlobUnavailable, P2pcError, RemoteError, StoreError
from p2pcompute.host.blob_digest import ref_of
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.limits import (
    BLOB_BUDGET_CHUNKS,
    BLOB_CHUNK_BYTES,
    BLOB_CHUNKS_MAX,
    BLOB_PARTIALS_MAX,
    BLOB_SERVES_WAITING_MAX,
    BLOB_WINDOW_CHUNKS,
)
from p2pcompute.node import blob_exchange
from p2pcompute.node.blob_exchange import BlobExchange, BlobMessage, Source
from p2pcompute.transport.channels import Channel, Purpose
from p2pcompute.transport.credentials import PeerInfo
from tests.transport.hosts import WORLDS, Node, SimWorld, World, wait_for


def content(chunks: float, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(int(chunks * BLOB_CHUNK_BYTES))


class FileStore:
    """Of the store, only the blobs."""

    def __init__(self, directory: Path) -> None:
        self.blobs = FileBlobs(directory)


class BlobNode(Node):
    """A node that has blobs."""

    def __init__(self, world: World, name: str, directory: Path) -> None:
        super().__init__(world, name)
        self.own_host = self.host
        if world.kind == "real":
            self.own_host = replace(self.host, store=FileStore(directory / name))  # type: ignore[arg-type]
        self.blobs = self.own_host.store.blobs
        self.readers: Callable[[PeerInfo, BlobRef], bool] = lambda peer, ref: True
        self.exchange = BlobExchange(self.own_host, self.channels, self.scope, self.may_read)

    @property
    def source(self) -> Source:
        return self.key, [self.address]

    def may_read(self, peer: PeerInfo, ref: BlobRef) -> bool:
        return self.readers(peer, ref)

    async def put(self, data: bytes) -> BlobRef:
        return await self.world.on(self.host, self.blobs.put(data))

    async def fetch(self, ref: BlobRef, *sources: BlobNode) -> None:
        await self.world.on(self.host, self.exchange.fetch(ref, [node.source for node in sources]))

    async def fetch_all(self, refs: Sequence[BlobRef], *sources: BlobNode) -> None:
        await self.world.on(self.host, self.exchange.fetch_all(refs, [node.source for node in sources]))

    async def read(self, ref: BlobRef) -> bytes:
        return await self.world.on(self.host, self.blobs.read(ref))

    def replace_serving(self, message: BlobMessage, serve: Callable[[Channel, Any], Awaitable[Any]]) -> None:
        """Answer in another way than honest nodes do."""
        self.channels._shared.responders[message] = serve

    async def stop(self, *, expect_errors: bool = False) -> None:
        await super().stop(expect_errors=expect_errors)
        await self.world.on(self.host, self.exchange.close())
        if isinstance(self.blobs, FileBlobs):
            assert list(self.blobs._tmp.iterdir()) == [], "no partial file is left behind"
            self.blobs.shut()


Case = Callable[[World, list[BlobNode]], Awaitable[None]]
Play = Callable[[Case], None]


@pytest.fixture(params=sorted(WORLDS))
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Run a case with four nodes, in the real world and in the simulated one."""
    return lambda case: _play(WORLDS[request.param](), case, tmp_path)


@pytest.fixture
def simulate(tmp_path: Path) -> Play:
    """Run a case with four simulated nodes."""
    return lambda case: _play(SimWorld(), case, tmp_path)


def _play(world: World, case: Case, directory: Path) -> None:
    async def main(world: World) -> None:
        nodes = [BlobNode(world, name, directory) for name in ("ann", "bob", "cat", "dan")]
        for node in nodes:
            await node.start()
        await case(world, nodes)
        for node in nodes:
            await node.stop()

    world.run(main)


@pytest.mark.parametrize("chunks", [0, 1e-5, 1, 1.1, 20.5])
def test_a_fetched_blob_is_the_blob(play: Play, chunks: float) -> None:
    """Otherwise tasks run on other inputs than were sent."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        data = content(chunks)
        ref = await bob.put(data)
        assert not await ann.blobs.has(ref)
        await ann.fetch(ref, bob)
        assert await ann.read(ref) == data
        assert bob.exchange.counters.served_bytes == ann.exchange.counters.fetched_bytes == len(data)
        await ann.fetch(ref, bob)
        assert ann.exchange.counters.fetched_blobs == 1, "what is here is not fetched"
        assert all(channel.purpose is Purpose.BLOB for channel in ann.channels._open)

    play(case)


def test_missing_and_forbidden_look_the_same(play: Play) -> None:
    """Otherwise a stranger learns who has which data, or reads it."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        secret, shared = await bob.put(content(2)), await bob.put(content(0.1))
        asked: list[tuple[bytes, BlobRef]] = []

        def may_read(peer: PeerInfo, ref: BlobRef) -> bool:
            asked.append((peer.key, ref))
            return ref == shared

        bob.readers = may_read
        await ann.fetch(shared, bob)
        errors = []
        for ref in (secret, ref_of(content(2, 1)), ref_of(b"never stored")):
            with pytest.raises(BlobUnavailable) as missing:
                await ann.fetch(ref, bob)
            errors.append((missing.value.code, missing.value.why))
        assert errors[0] == errors[1] and errors[0][0] == errors[2][0] == "blob-missing"
        assert asked[0] == (ann.key, shared) and (ann.key, secret) in asked
        assert bob.exchange.counters.refused_reads == ann.exchange.counters.not_found == 3

    play(case)


@pytest.mark.parametrize("chunks", [0.5, 20])
def test_wrong_bytes_drop_their_source_and_the_next_one_goes_on(play: Play, chunks: float) -> None:
    """Otherwise one bad node stops a job, or its bytes get the name of the right ones."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, liar, bob, _ = nodes
        data = content(chunks)
        ref = await liar.put(data)
        assert await bob.put(data) == ref
        honest = liar.exchange._serve_chunk

        async def lie(channel: Channel, body: Any) -> bytes:
            chunk = await honest(channel, body)
            return chunk if body[2] < 12 and chunks > 1 else b"\0" + chunk[1:]

        liar.replace_serving(BlobMessage.CHUNK, lie)
        await ann.fetch(ref, liar, bob)
        assert await ann.read(ref) == data
        counters = ann.exchange.counters
        assert counters.forged == 1 and counters.fetched_bytes == len(data)
        assert bob.exchange.counters.served_bytes < len(data) or chunks < 1, "verified chunks are not fetched again"
        assert [channel.peer.key for channel in ann.channels._open] == [bob.key]

    play(case)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (BlobMessage.MANIFEST, bytes(64)),
        (BlobMessage.MANIFEST, b""),
        (BlobMessage.MANIFEST, None),
        (BlobMessage.CHUNK, b""),
        (BlobMessage.CHUNK, bytes(BLOB_CHUNK_BYTES + 1)),
        (BlobMessage.CHUNK, ["x"]),
    ],
)
def test_hostile_answers_are_an_error_and_leave_nothing(simulate: Play, message: BlobMessage, answer: Any) -> None:
    """Otherwise a peer crashes the one that asks it."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, liar, *_ = nodes
        ref = await liar.put(content(2))

        async def lie(channel: Channel, body: Any) -> Any:
            return answer

        liar.replace_serving(message, lie)
        with pytest.raises(BlobUnavailable) as failed:
            await ann.fetch(ref, liar)
        assert failed.value.code == "blob-unavailable" and ann.exchange.counters.forged == 1
        assert not await ann.blobs.has(ref) and not ann.exchange._partials
        liar.replace_serving(BlobMessage.MANIFEST, liar.exchange._serve_manifest)
        liar.replace_serving(BlobMessage.CHUNK, liar.exchange._serve_chunk)
        await ann.fetch(ref, liar)

    simulate(case)


def test_a_broken_transfer_goes_on_where_it_stopped(play: Play) -> None:
    """Otherwise a large file never arrives over a bad line."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, cat, _ = nodes
        data = content(40)
        ref = await bob.put(data)
        honest = bob.exchange._serve_chunk

        async def break_off(channel: Channel, body: Any) -> bytes:
            if body[2] == 25:
                await bob.channels.stop_listening()
                channel.abort("the line broke")
            return await honest(channel, body)

        bob.replace_serving(BlobMessage.CHUNK, break_off)
        with pytest.raises(BlobUnavailable) as failed:
            await ann.fetch(ref, bob)
        assert failed.value.code == "blob-unavailable"
        came = ann.exchange.counters.fetched_bytes
        assert 10 * BLOB_CHUNK_BYTES < came < 30 * BLOB_CHUNK_BYTES
        assert not await ann.blobs.has(ref), "nothing is visible before it is whole"
        assert await cat.put(data) == ref
        await ann.fetch(ref, cat)
        assert await ann.read(ref) == data
        assert ann.exchange.counters.resumed_transfers == 1
        assert cat.exchange.counters.served_bytes == len(data) - came

    play(case)


def test_a_source_whose_channel_breaks_now_and_then_is_asked_again(simulate: Play) -> None:
    """Otherwise the only source of a file is given up at its first hiccup."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        data = content(40)
        ref = await bob.put(data)
        honest, broken = bob.exchange._serve_chunk, []

        async def hiccup(channel: Channel, body: Any) -> bytes:
            if body[2] % 10 == 9 and body[2] not in broken:
                broken.append(body[2])
                channel.abort("the line broke")
            return await honest(channel, body)

        bob.replace_serving(BlobMessage.CHUNK, hiccup)
        await ann.fetch(ref, bob)
        assert await ann.read(ref) == data
        assert broken == [9, 19, 29, 39] and ann.exchange.counters.fetched_bytes == len(data)

    simulate(case)


def test_concurrent_fetches_share_one_transfer_and_all_their_sources(play: Play) -> None:
    """Otherwise 100 tasks of a job fetch its shared file 100 times."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, cat, _ = nodes
        data = content(10)
        ref = await bob.put(data)
        first = asyncio.ensure_future(ann.fetch(ref, cat))
        await asyncio.gather(*(ann.fetch(ref, bob) for _ in range(9)), first)
        assert await ann.read(ref) == data
        assert ann.exchange.counters.shared_fetches == 9 and ann.exchange.counters.fetched_blobs == 1
        assert bob.exchange.counters.served_bytes == len(data)

    play(case)


def test_a_fetch_ends_when_nobody_waits_for_it_any_more(simulate: Play) -> None:
    """Otherwise a cancelled job goes on filling the disk, or takes other jobs' inputs down with it."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        data = content(20)
        ref = await bob.put(data)
        gate = asyncio.Event()
        honest = bob.exchange._serve_chunk

        async def wait_at_ten(channel: Channel, body: Any) -> bytes:
            if body[2] >= 10:
                await gate.wait()
            return await honest(channel, body)

        bob.replace_serving(BlobMessage.CHUNK, wait_at_ten)
        waiting = [asyncio.ensure_future(ann.fetch(ref, bob)) for _ in range(2)]
        came = 10 * BLOB_CHUNK_BYTES
        await wait_for(lambda: ann.exchange.counters.fetched_bytes == came, "half of it")
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        assert len(ann.exchange._transfers) == 1, "the other one still waits"
        waiting[1].cancel()
        await asyncio.gather(waiting[1], return_exceptions=True)
        assert not ann.exchange._transfers
        await wait_for(lambda: ann.exchange._partials, "putting aside")
        gate.set()
        await ann.fetch(ref, bob)
        assert await ann.read(ref) == data
        assert ann.exchange.counters.resumed_transfers == 1 and ann.exchange.counters.fetched_bytes == len(data)

    simulate(case)


def test_chunks_are_asked_for_ahead_and_within_bounds(simulate: Play) -> None:
    """Otherwise the round trip rules the speed, or memory grows with the number of transfers."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, *others = nodes
        asked: dict[bytes, int] = {node.key: 0 for node in others}
        most: dict[bytes, int] = dict(asked)
        most_in_all = 0
        refs: list[BlobRef] = []
        for number, node in enumerate(others):
            refs += [await node.put(content(24, 10 * number + n)) for n in range(3)]

            async def slow(channel: Channel, body: Any, node: BlobNode = node) -> bytes:
                nonlocal most_in_all
                asked[node.key] += 1
                most[node.key] = max(most[node.key], asked[node.key])
                most_in_all = max(most_in_all, sum(asked.values()))
                await node.host.clock.sleep(1.0)
                asked[node.key] -= 1
                return await node.exchange._serve_chunk(channel, body)

            node.replace_serving(BlobMessage.CHUNK, slow)
        started = world.now()
        await ann.fetch(refs[0], others[0])
        assert world.now() - started < 24 / 3, "not a round trip for each chunk"
        await asyncio.gather(*(ann.fetch(ref, others[n // 3]) for n, ref in enumerate(refs)))
        assert most_in_all == BLOB_BUDGET_CHUNKS and max(most.values()) == BLOB_WINDOW_CHUNKS
        assert world.now() - started < 9 * 24 / 3
        for ref in refs:
            assert await ann.blobs.has(ref)

    simulate(case)


def test_many_blobs_at_once(play: Play) -> None:
    """Otherwise a task with many inputs waits for a round trip each, or misses some."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, cat, _ = nodes
        datas = [content(0.001, seed) for seed in range(60)] + [content(3, 99)]
        refs = [await (bob if n % 2 else cat).put(data) for n, data in enumerate(datas)]
        await ann.fetch_all([*refs, refs[0]], bob, cat)
        assert [await ann.read(ref) for ref in refs] == datas
        assert len(ann.channels._open) == 2, "one channel per source"
        with pytest.raises(BlobUnavailable) as missing:
            await ann.fetch_all([refs[0], ref_of(b"nowhere"), ref_of(b"nor here")], bob, cat)
        assert missing.value.code == "blob-missing"
        with pytest.raises(BlobUnavailable) as missing:
            await ann.fetch_all([ref_of(b"nowhere")])
        assert missing.value.code == "blob-unavailable"
        await ann.fetch_all([])

    play(case)


def test_a_source_that_cannot_be_dialled_is_asked_on_the_channel_that_it_opened(play: Play) -> None:
    """Otherwise the results of a worker behind a NAT never reach the owner."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        data = content(6)
        ref = await bob.put(data)
        await bob.channels.stop_listening()
        await bob.connect(ann)
        await wait_for(lambda: ann.opened, "opening")
        await world.on(ann.host, ann.exchange.fetch(ref, [(bob.key, [])]))
        assert await ann.read(ref) == data

    play(case)


def test_a_full_disk_is_our_own_fault(simulate: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every source is tried in vain and blamed."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        ref = await bob.put(content(20))
        create = ann.blobs.create

        async def create_full() -> Any:
            writer = await create()
            write, count = writer.write, 0

            async def write_some(data: bytes) -> None:
                nonlocal count
                count += 1
                if count > 5:
                    raise StoreError("no room", code="disk-full")
                await write(data)

            writer.write = write_some  # type: ignore[method-assign]
            return writer

        monkeypatch.setattr(ann.blobs, "create", create_full)
        with pytest.raises(StoreError) as full:
            await ann.fetch(ref, bob)
        assert full.value.code == "disk-full"
        assert ann.exchange.counters.lost == ann.exchange.counters.forged == 0 and not ann.exchange._partials
        monkeypatch.setattr(ann.blobs, "create", create)
        await ann.fetch(ref, bob)
        assert ann.exchange._budget._value == BLOB_BUDGET_CHUNKS

    simulate(case)


def test_broken_transfers_are_kept_up_to_a_limit(simulate: Play) -> None:
    """Otherwise a peer that breaks off fills our disk with beginnings."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        honest = bob.exchange._serve_chunk

        async def only_the_first(channel: Channel, body: Any) -> bytes:
            if body[2]:
                raise P2pcError("no more", code="tired")
            return await honest(channel, body)

        bob.replace_serving(BlobMessage.CHUNK, only_the_first)
        for seed in range(BLOB_PARTIALS_MAX + 3):
            with pytest.raises(BlobUnavailable):
                await ann.fetch(await bob.put(content(2, seed)), bob)
        assert len(ann.exchange._partials) == BLOB_PARTIALS_MAX
        assert ann.exchange.counters.partials_dropped == 3

    simulate(case)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        [bytes(32), 1],
        [bytes(31), 1, 0],
        ["digest", 1, 0],
        [bytes(32), True, 0],
        [bytes(32), -1, 0],
        [bytes(32), 1, -1],
        [bytes(32), 1, 1],
        [bytes(32), BLOB_CHUNK_BYTES + 1, 2],
        [bytes(32), BLOB_CHUNKS_MAX * BLOB_CHUNK_BYTES + 1, 0],
    ],
)
def test_hostile_requests_are_refused(simulate: Play, body: Any) -> None:
    """Otherwise any member can crash a node with one message."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        channel = await ann.connect(bob)
        for message in BlobMessage:
            with pytest.raises(RemoteError) as refused:
                await ann.request(channel, message, body)
            assert refused.value.code == "protocol"
        assert bob.channels.counters.refused == 2 and channel.is_open

    simulate(case)


def test_a_flood_of_requests_is_refused(simulate: Play) -> None:
    """Otherwise one peer makes a node read its whole disk into memory."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        ref = await bob.put(content(1))
        channel = await ann.connect(bob, purpose=Purpose.BLOB)
        count = BLOB_SERVES_WAITING_MAX + 20

        async def flood() -> list[Any]:
            asks = [channel.request(BlobMessage.CHUNK, [*ref, 0], timeout_s=60) for _ in range(count)]
            return await asyncio.gather(*asks, return_exceptions=True)

        answers = await world.on(ann.host, flood())
        refused = [answer for answer in answers if isinstance(answer, RemoteError)]
        assert all(error.code == "busy" for error in refused) and len(refused) >= 10
        assert bob.exchange.counters.refused_busy >= 10 and channel.is_open
        assert not bob.exchange._serving

    simulate(case)


def test_a_blob_that_is_too_large_is_not_begun(simulate: Play) -> None:
    """Otherwise a reference with a senseless size costs memory for its manifest."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        with pytest.raises(BlobUnavailable) as refused:
            await ann.fetch(BlobRef(bytes(32), BLOB_CHUNKS_MAX * BLOB_CHUNK_BYTES + 1), bob)
        assert refused.value.code == "blob-too-large" and not ann.channels._open

    simulate(case)


def test_manifests_of_many_pages(simulate: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise blobs above 8 GiB cannot be fetched."""
    monkeypatch.setattr(blob_exchange, "BLOB_MANIFEST_PAGE", 3)

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        for chunks in (2, 3, 4, 6.5):
            ref = await bob.put(content(chunks))
            await ann.fetch(ref, bob)
            assert await ann.read(ref) == content(chunks)

    simulate(case)


def test_a_fetch_ends_with_the_node(simulate: Play) -> None:
    """Otherwise a stopping node waits for its peers."""

    async def case(world: World, nodes: list[BlobNode]) -> None:
        ann, bob, *_ = nodes
        ref = await bob.put(content(2))

        async def never(channel: Channel, body: Any) -> bytes:
            await asyncio.get_running_loop().create_future()
            return b""

        bob.replace_serving(BlobMessage.CHUNK, never)
        waiting = asyncio.ensure_future(ann.fetch(ref, bob))
        await wait_for(lambda: bob.channels._shared.serving, "the request")
        await world.on(ann.host, ann.scope.close())
        with pytest.raises(P2pcError):
            await waiting

    simulate(case)
