"""Simulated nodes that ask one another what they have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from p2pcompute.errors import ChannelLost, P2pcError, RemoteError
from p2pcompute.host.interfaces import Attribute
from p2pcompute.limits import QUESTIONS_WAITING_PER_PEER_MAX
from p2pcompute.resources import service
from p2pcompute.resources.attributes import encode_attributes
from p2pcompute.resources.expressions import compile_expression
from p2pcompute.resources.questions import Findings, Message, Query, unheard_names
from p2pcompute.resources.service import Resources
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel

NEAR_RAM = [("ram", "mem.total")]
SMALL = RunnerModel(slot_count=1)
LARGE = RunnerModel(slot_count=8, attributes={"gpu.count": 2}, has=frozenset({"ffmpeg", "docker"}))


def play(models: Sequence[RunnerModel], scene: Callable[[Mesh], Awaitable[None]], seed: int = 1) -> None:
    """Run a scene with a node for each model, once all know one another."""
    with Simulation(seed) as simulation:
        mesh = Mesh(simulation, len(models), runner=models)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            await scene(mesh)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
        for member in mesh.members:
            if member.node is not None:
                member.node.resources.known.check_invariants()


async def find(mesh: Mesh, text: str, *, by: int = 0, rank: str | None = None, **limits: Any) -> Findings:
    member = mesh.members[by]
    query = Query(
        expression=compile_expression(text), rank=None if rank is None else compile_expression(rank), **limits
    )
    return await member.host.call(member.running.find(query))


def names(findings: Findings) -> list[Any]:
    return [found.attributes["name"].value for found in findings.found]


def test_those_that_match_are_found_and_the_others_counted() -> None:
    """People get nodes that do not fit, or take silence for a no."""

    async def scene(mesh: Mesh) -> None:
        found = await find(mesh, "cpus>=8")
        assert sorted(names(found)) == ["node-2", "node-3"]
        assert (found.candidates, found.answered, found.unknown, found.silent, found.not_asked) == (4, 4, 0, 0, 0)
        assert not found.is_cut_off and found.took_s < 1
        for item in found.found:
            assert item.attributes["cpus"].value == 8.0 and item.attributes["slots.total"].value == 8
        assert sorted(names(await find(mesh, "has=ffmpeg"))) == ["node-2", "node-3"]
        assert names(await find(mesh, "has=gcc")) == []
        nothing = await find(mesh, "battery")
        assert (nothing.answered, nothing.unknown) == (0, 4), "unknown is not false"
        assert len((await find(mesh, "battery || cpus>=8")).found) == 2
        many = " || ".join(f"has=a{number}" for number in range(40))
        assert (await find(mesh, many)).unknown == 4, "more than can be looked up is unknown, and no bug"
        assert len((await find(mesh, "has='ffmpeg' || has=g_1")).found) == 2

    play([SMALL, SMALL, LARGE, LARGE], scene)


def test_limits_of_answers_and_rank() -> None:
    """The best node is not among the answers, or everybody is asked for one answer."""

    async def scene(mesh: Mesh) -> None:
        one = await find(mesh, "cpus>=1", answers_max=1)
        assert len(one.found) == 1 and one.not_asked == 5
        cheap = await find(mesh, "cpus>=9 || load>1000", asked_max=2, age_s=0.0)
        assert (cheap.asked, cheap.answered, cheap.not_asked) == (2, 3, 3), "it costs no more than it may"
        assert (await find(mesh, "cpus>=1", asked_max=0, age_s=0.0)).asked == 0
        best = await find(mesh, "cpus>=1", rank="cpus", answers_max=2)
        assert names(best) == ["node-3", "node-1"] and [item.rank for item in best.found] == [9.0, 5.0]
        assert best.answered == 6
        asked = mesh.members[0].running.resources.counters.asked
        best = await find(mesh, "cpus>=1", rank="has=ffmpeg", answers_max=1)
        assert names(best) == ["node-5"] and best.found[0].rank == 1.0, "the rank's words are asked for too"
        assert mesh.members[0].running.resources.counters.asked == asked + 5

        at_once = await find(mesh, "cpus>=3", time_s=0.0, age_s=0.0)
        assert names(at_once) == ["node-0"] and at_once.not_asked == 5, "this node needs no message to answer"
        for rank, unheard in (("cpus", []), ("nosuch + gpu.mem", [("nosuch", ""), ("gpu.mem", "")]), ("ram", NEAR_RAM)):
            query = Query(expression=compile_expression("cpus>=1"), rank=compile_expression(rank))
            assert unheard_names(query, await find(mesh, "cpus>=1", rank=rank)) == unheard

    tool = RunnerModel(slot_count=1, has=frozenset({"ffmpeg"}))
    play([*(RunnerModel(slot_count=count) for count in (3, 5, 1, 9, 2)), tool], scene)


def test_what_was_said_lately_is_not_asked_again() -> None:
    """Each question costs a message to every node, or people get values of yesterday."""

    async def scene(mesh: Mesh) -> None:
        resources = mesh.members[0].running.resources
        await find(mesh, "cpus>=1")
        asked = resources.counters.asked
        again = await find(mesh, "cpus>=1")
        assert resources.counters.asked == asked == 2 and again.answered == 3
        assert max(item.age_s for item in again.found) > 0
        assert len((await find(mesh, "has=ffmpeg")).found) == 1, "that was not asked before"
        assert resources.counters.asked == asked + 2
        await asyncio.sleep(40)
        await find(mesh, "cpus>=1")
        assert resources.counters.asked == asked + 2, "it does not change"
        await find(mesh, "load>=0")
        assert resources.counters.asked == asked + 4, "the load of 40 s ago is no answer"
        await asyncio.sleep(1)
        await find(mesh, "load>=0", age_s=0.5)
        assert resources.counters.asked == asked + 6

    play([SMALL, SMALL, LARGE], scene)


def test_an_application_that_comes_or_goes_is_told() -> None:
    """Jobs wait five minutes for a program that is there, or nodes talk about what nobody asked."""

    async def scene(mesh: Mesh) -> None:
        asker, worker = mesh.members[0].running.resources, mesh.members[1]
        key, counters = worker.identity.public_key, worker.running.resources.counters

        def said() -> Any:
            knowledge = asker.known.get(key)
            assert knowledge is not None
            return knowledge.attributes["has"].value, knowledge.words

        def install(*words: str) -> None:
            worker.host.runner_model = replace(SMALL, has=frozenset(words))

        await mesh.members[0].host.call(asker.describe(key, ["ffmpeg"]))
        assert said() == ((), {"ffmpeg"})
        install("gcc")
        await asyncio.sleep(10)
        assert counters.changed == 0, "nobody asked for that"
        install("ffmpeg", "gcc")
        await asyncio.sleep(5)
        assert said() == (("ffmpeg",), {"ffmpeg"}) and counters.changed == 1
        install()
        await asyncio.sleep(5)
        assert said() == ((), {"ffmpeg"}) and counters.changed == 2
        await asyncio.sleep(service.HAS_LIFETIME_S + 5)
        install("ffmpeg")
        await asyncio.sleep(10)
        assert counters.changed == 2, "it is not believed any more"
        assert names(await find(mesh, "has=ffmpeg")) == ["node-1"]

    play([SMALL, SMALL], scene)


def test_a_node_that_tells_of_changes_without_end_wakes_nobody() -> None:
    """Whoever was asked once could have the scheduler look for work as often as messages fit on the channel."""

    async def scene(mesh: Mesh) -> None:
        asker, worker = mesh.members[0], mesh.members[1]
        key, resources = worker.identity.public_key, asker.running.resources
        await asker.host.call(resources.describe(key, ["ffmpeg"]))
        woken: list[float] = []
        resources.on_news = lambda: woken.append(asker.host.clock.now())
        channel = worker.running.channels.get(asker.identity.public_key)
        assert channel is not None
        attributes = await worker.host.call(worker.running.resources.own(["ffmpeg"]))
        body = [["ffmpeg"], encode_attributes(attributes, worker.host.clock.wall())]
        for _ in range(100):
            for _ in range(50):
                worker.host.enter(lambda: channel.send(Message.CHANGED, body))
            await asyncio.sleep(0.1)
        assert len(woken) <= service.CHANGES_BURST + 10 / service.CHANGE_LOOK_S + 1
        assert resources.counters.flooded == 5000 - len(woken)

    play([SMALL, SMALL], scene)


def test_a_node_that_is_silent_or_old_is_counted_as_such() -> None:
    """A question waits for a dead node, or an earlier version is taken for one that does not fit."""

    async def scene(mesh: Mesh) -> None:
        mesh.members[1].running.channels._shared.responders.pop(Message.QUERY)
        mesh.members[1].running.channels._shared.responders.pop(Message.DESCRIBE)
        mesh.crash(mesh.members[2], is_silent=True)
        found = await find(mesh, "cpus>=1", time_s=2.0)
        assert sorted(names(found)) == ["node-0", "node-3"]
        assert (found.answered, found.too_old, found.silent) == (2, 1, 1) and found.took_s < 2.5
        silent = mesh.members[2].identity.public_key
        assert "does not answer" in (await mesh.members[0].host.call(mesh.members[0].running.describe(silent))).trouble
        assert not found.is_cut_off
        asker = mesh.members[0]
        view = await asker.host.call(asker.running.describe(mesh.members[1].identity.public_key))
        assert "earlier version" in view.trouble and not view.attributes
        assert view.age_s is None
        with pytest.raises(RemoteError):
            await asker.host.call(asker.running.resources.describe(mesh.members[1].identity.public_key))

    play([SMALL] * 4, scene)


def test_cut_off_from_all_what_was_known_is_shown() -> None:
    """Without a network people learn nothing at all, or take what was for what is."""

    async def scene(mesh: Mesh) -> None:
        await find(mesh, "cpus>=8")
        await asyncio.sleep(1)
        for member in mesh.members[1:]:
            mesh.crash(member, is_silent=True)
        found = await find(mesh, "cpus>=8", age_s=0.0)
        assert found.is_cut_off and found.silent == 2
        assert names(found) == ["node-1", "node-2"] or names(found) == ["node-2", "node-1"]
        assert all(item.is_silent and item.age_s > 1 for item in found.found)

    play([SMALL, LARGE, LARGE], scene)


@pytest.mark.parametrize("away_s", [30, 50])
def test_a_silent_node_is_no_answer_and_is_marked(away_s: int) -> None:
    """A dead node is printed as a match, and counted among those that answered: as a peer still, and later."""

    async def scene(mesh: Mesh) -> None:
        asker, gone = mesh.members[0].running, mesh.members[2].identity.public_key
        await find(mesh, "cpus>=1")
        mesh.crash(mesh.members[2], is_silent=True)
        await asyncio.sleep(away_s)
        assert gone in asker.network.silent()
        assert not (await find(mesh, "cpus>=1")).is_cut_off, "the others were heard lately"
        found = await find(mesh, "cpus>=8")
        assert (found.candidates, found.answered, found.silent, found.not_asked) == (4, 3, 1, 0)
        assert [(item.key == gone, item.is_silent) for item in found.found] == [(False, False), (True, True)]
        assert not found.is_cut_off
        assert names(await find(mesh, "cpus>=8", answers_max=1)) == ["node-3"]
        assert names(await find(mesh, "cpus>=8", rank="-slots.total")) == ["node-3", "node-2"]
        await asyncio.sleep(120)
        found = await find(mesh, "cpus>=8")
        assert names(found) == ["node-3"] and (found.answered, found.silent) == (3, 1), "that was long ago"

    play([SMALL, SMALL, LARGE, LARGE], scene)


def test_a_trigger_fires_once_it_is_true() -> None:
    """Who waits for an idle node waits for ever, or is told of a busy one."""

    async def scene(mesh: Mesh) -> None:
        asker, worker = mesh.members[0], mesh.members[2]
        resources = asker.running.resources
        waiting = asyncio.create_task(asker.host.call(asker.running.when(compile_expression("slots.busy>=1"))))
        await asyncio.sleep(90)
        assert not waiting.done()
        assert resources.counters.asked < 2 * 5, "the question waits at the others; it is not asked again and again"
        await mesh.submit(worker, [20.0] * 40)
        began = mesh.simulation.now
        found = await waiting
        assert found.attributes["slots.busy"].value == 1
        assert mesh.simulation.now - began < 3

    play([SMALL] * 3, scene)


def test_a_trigger_learns_of_nodes_that_come() -> None:
    """A node that joins while somebody waits for it is never asked."""

    async def scene(mesh: Mesh) -> None:
        asker = mesh.members[0]
        waiting = asyncio.create_task(asker.host.call(asker.running.when(compile_expression("cpus>=8"))))
        mesh.crash(mesh.members[1])
        await asyncio.sleep(30)
        await mesh.start_one(mesh.members[2])
        found = await waiting
        assert found.attributes["name"].value == "node-2"

    with Simulation(2) as simulation:
        mesh = Mesh(simulation, 3, runner=[SMALL, SMALL, LARGE])

        async def main() -> None:
            await mesh.start(mesh.members[:2])
            await asyncio.sleep(5)
            await scene(mesh)

        simulation.run(main(), time_s_max=200)
        mesh.check_errors()


def test_a_trigger_in_a_group_too_large_to_watch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes beyond the first ones are never asked, or all are asked without a pause."""
    monkeypatch.setattr(service, "QUESTION_LANES", 3)

    async def scene(mesh: Mesh) -> None:
        asker, worker = mesh.members[0], mesh.members[-1]
        resources = asker.running.resources
        waiting = asyncio.create_task(asker.host.call(asker.running.when(compile_expression("slots.busy>=1"))))
        await asyncio.sleep(10)
        assert not waiting.done()
        assert 7 <= resources.counters.asked <= 3 * 10 / service.WATCH_AGAIN_S + 3
        await mesh.submit(worker, [60.0])
        began = mesh.simulation.now
        await waiting
        assert mesh.simulation.now - began < 4 * service.WATCH_AGAIN_S

    play([SMALL] * 8, scene)


def test_questions_that_wait_are_bounded_and_end_with_their_asker() -> None:
    """A member fills another node's memory with questions that are never true."""

    async def scene(mesh: Mesh) -> None:
        asker, holder = mesh.members
        channel = asker.running.channels.get(holder.identity.public_key)
        assert channel is not None
        served = holder.running.resources

        async def ask() -> object:
            try:
                return await channel.request(Message.QUERY, ["cpus>=99", "", 50_000], timeout_s=60.0)
            except P2pcError as error:
                return error.code

        asks = [asyncio.create_task(asker.host.call(ask())) for _ in range(QUESTIONS_WAITING_PER_PEER_MAX + 3)]
        await asyncio.sleep(2)
        assert [await each for each in asks[-3:]] == ["busy"] * 3
        assert served.counters.busy == 3 and sum(served._waiting.values()) == QUESTIONS_WAITING_PER_PEER_MAX
        channel.close()
        await asyncio.sleep(2)
        assert not served._waiting
        for each in asks[:-3]:
            assert isinstance(await each, str)

    play([SMALL, SMALL], scene)


def test_hostile_questions_and_answers() -> None:
    """An expression that is none, attributes that are none, another node's name: a peer breaks this node or lies."""

    async def scene(mesh: Mesh) -> None:
        asker, holder = mesh.members
        key = holder.identity.public_key
        channel = asker.running.channels.get(key)
        assert channel is not None

        async def ask(body: Any) -> str:
            try:
                await channel.request(Message.QUERY, body, timeout_s=5.0)
            except P2pcError as error:
                return error.code
            return ""

        assert await asker.host.call(ask(["cpus>=", "", 0])) == "expression"
        assert await asker.host.call(ask(["nosuch==1", "", 0])) == "", "a later version may know it"
        assert await asker.host.call(ask(["cpus>=1", "cpus>", 0])) == "expression"
        assert holder.running.resources.counters.refused == 2

        async def lie(_channel: Any, _body: Any) -> Any:
            return [answer]

        holder.running.channels._shared.responders.pop(Message.DESCRIBE)
        holder.running.channels.on_request(Message.DESCRIBE, lie)
        answer: Any = b"\xff"
        resources = asker.running.resources
        with pytest.raises(P2pcError):
            await asker.host.call(resources.describe(key))
        assert resources.counters.malformed == 1 and resources.known.get(key) is None
        liar = Resources.own

        async def claims() -> bytes:
            from p2pcompute.resources.attributes import encode_attributes

            own = await liar(holder.running.resources)
            return encode_attributes({**own, "id": Attribute("somebody else", 0.0)}, holder.host.clock.wall())

        answer = await holder.host.call(claims())
        known = await asker.host.call(resources.describe(key))
        assert known.attributes["id"].value != "somebody else"

    play([SMALL, SMALL], scene)


def test_descriptions_asked_for_at_once_share_a_message() -> None:
    """A matcher that looks at a node for a thousand tasks sends a thousand messages."""

    async def scene(mesh: Mesh) -> None:
        asker, holder = mesh.members
        resources, key = asker.running.resources, holder.identity.public_key

        async def many() -> None:
            found = await asyncio.gather(*(resources.describe(key, ["ffmpeg"]) for _ in range(50)))
            assert all(item is found[0] for item in found)
            assert found[0].view(asker.host.clock.wall(), ["ffmpeg"])["has"] == ("docker", "ffmpeg")
            await resources.describe(key, age_s=10.0)
            assert resources.counters.asked == 1
            await resources.describe(key, ["gcc"], age_s=10.0)
            assert resources.counters.asked == 2

        await asker.host.call(many())
        assert resources.known.get(key) is not None and resources.known.get(b"?" * 32) is None
        mesh.crash(holder, is_silent=True)
        with pytest.raises(P2pcError) as caught:
            await asker.host.call(resources.describe(key))
        assert caught.value.code in ("no-answer", ChannelLost.default_code)

    play([SMALL, LARGE], scene)


def test_the_same_seed_gives_the_same_trace() -> None:
    """Runs with questions in them cannot be replayed."""

    def trace(seed: int) -> str:
        hashes: list[str] = []

        async def scene(mesh: Mesh) -> None:
            await find(mesh, "cpus>=1", rank="cpus")
            await find(mesh, "load>=0", by=3, age_s=0.0)
            hashes.append(mesh.simulation.trace_hash())

        play([SMALL] * 6, scene, seed)
        return hashes[0]

    assert trace(3) == trace(3) != trace(4)
