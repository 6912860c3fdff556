"""Simulated nodes: a job runs where its requirement is met, and its own node says why it does not run elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import pytest

from p2pcompute.errors import UsageError
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.host.interfaces import Attributes
from p2pcompute.node.facade import ExplanationView, JobView
from p2pcompute.node.placement import REFUSED_S
from p2pcompute.node.views import find_node
from p2pcompute.scheduler.owner import UNFIT_S
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.simulation.host import SimProbe, Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.trust.levels import Level

PLAIN = RunnerModel(slot_count=2)
TOOLS = RunnerModel(slot_count=2, attributes={"gpu.count": 2}, has=frozenset({"ffmpeg"}))


def play(models: Sequence[RunnerModel], scene: Callable[[Mesh], Awaitable[None]], *, time_s_max: float = 2000) -> None:
    """Run a scene with a node for each model, once all know one another."""
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, len(models), runner=models)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            await scene(mesh)

        simulation.run(main(), time_s_max=time_s_max)
        mesh.check_errors()


async def submit(member: Member, works_s: Sequence[float], spec: dict[str, Any] | None = None, **terms: Any) -> bytes:
    async def go() -> bytes:
        node = member.running
        job_id = await node.submit_job(
            JobTerms(name="picky", **terms), JobSpec(kind=TaskKind.SIMULATED, **(spec or {}))
        )
        await node.add_tasks(job_id, [encode_payload(TaskPayload(work_s=work_s)) for work_s in works_s])
        await node.seal_job(job_id)
        return job_id

    return await member.host.call(go())


async def done_by(mesh: Mesh, job_id: bytes, *, limit_s: float = 60.0) -> dict[str, int]:
    """Wait for a job's end; return how many tasks each node ran."""
    view: JobView = await mesh.wait_for(mesh.members[0], job_id, limit_s=limit_s)
    assert view.state == "done"
    return {mesh.members[0].running.name_of(share.public_key): share.done for share in view.by_node if share.done}


async def explained(mesh: Mesh, job_id: bytes) -> ExplanationView:
    member = mesh.members[0]
    return await member.host.call(member.running.explain(job_id))


def name(mesh: Mesh, number: int) -> str:
    return mesh.members[number].host.name


def test_a_job_runs_where_its_requirement_is_met() -> None:
    """Tasks reach nodes that cannot run them: from the owner, or from a worker that holds too many."""

    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [1.0] * 40, require=("has=ffmpeg", "gpu>0"))
        assert list(await done_by(mesh, job_id)) == [name(mesh, 2)]

    play([PLAIN, PLAIN, TOOLS], scene)


def test_amounts_are_requirements() -> None:
    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [0.1] * 4, {"gpus": 1.0, "mem_bytes": 1 << 20})
        assert list(await done_by(mesh, job_id)) == [name(mesh, 2)]
        job_id = await submit(mesh.members[0], [0.1], {"mem_bytes": 1 << 50})
        await asyncio.sleep(30)
        assert mesh.members[0].running.job(job_id.hex()).done == 0

    play([PLAIN, PLAIN, TOOLS], scene)


def test_chosen_nodes() -> None:
    async def scene(mesh: Mesh) -> None:
        keys = [member.identity.public_key for member in mesh.members]
        job_id = await submit(mesh.members[0], [0.5] * 8, on=(keys[0], keys[2]), not_on=(keys[0],))
        assert list(await done_by(mesh, job_id)) == [name(mesh, 2)]
        job_id = await submit(mesh.members[0], [0.5] * 8, not_on=(keys[0], keys[1]))
        assert list(await done_by(mesh, job_id)) == [name(mesh, 2)]

    play([PLAIN] * 3, scene)


def test_a_node_runs_only_what_it_fits_whatever_the_owner_believes() -> None:
    """A submitter that does not look, or lies, has its tasks run anywhere; or thief and victim play ping-pong."""

    async def scene(mesh: Mesh) -> None:
        owner, other = mesh.members
        job_id = await submit(owner, [0.1] * 4, require=("fpga.count>0",))
        owner.running.scheduler.owner.core.jobs[job_id].fit = None
        owner.running.scheduler.worker.core.is_paused = True
        other.running.scheduler.wake()
        await asyncio.sleep(60)
        assert owner.running.job(job_id.hex()).done == 0
        declined = other.running.scheduler.thief.counters.grants_declined_count
        assert 1 <= declined <= 60 / UNFIT_S + 1

    play([PLAIN, PLAIN], scene)


def test_a_job_waits_until_a_node_fits() -> None:
    """What has changed at a node is never noticed."""
    changing = RunnerModel(slot_count=2, attributes={"fpga.count": 0})

    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [0.1] * 4, require=("fpga.count>0",))
        await asyncio.sleep(30)
        assert mesh.members[0].running.job(job_id.hex()).done == 0
        await mesh.stop(mesh.members[1])
        mesh.members[1].host.runner_model = RunnerModel(slot_count=2, attributes={"fpga.count": 1})
        await mesh.restart(mesh.members[1])
        assert list(await done_by(mesh, job_id)) == [name(mesh, 1)]

    play([PLAIN, changing], scene)


def test_preferred_nodes_get_the_tasks() -> None:
    """Preferences do nothing, or a job waits for ever for the node that it likes best."""

    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [0.1] * 2, prefer=("gpu.count", "has=ffmpeg"))
        assert await done_by(mesh, job_id) == {name(mesh, 2): 2}
        job_id = await submit(mesh.members[0], [5.0] * 6, prefer=("gpu.count",))
        assert sum((await done_by(mesh, job_id)).values()) == 6
        began = mesh.members[0].host.clock.now()
        await mesh.stop(mesh.members[2])
        job_id = await submit(mesh.members[0], [0.1] * 2, prefer=("gpu.count",))
        await done_by(mesh, job_id)
        assert mesh.members[0].host.clock.now() - began < 40

    play([PLAIN, PLAIN, TOOLS], scene)


def test_a_job_that_asks_for_nothing_costs_nothing() -> None:
    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [0.1] * 50)
        await done_by(mesh, job_id)
        for member in mesh.members:
            counters = member.running.placement.counters
            assert (counters.measured_count, counters.asked_count) == (0, 0)
        job_id = await submit(mesh.members[0], [0.1] * 500, require=("cpus>=1",))
        await done_by(mesh, job_id)
        for member in mesh.members:
            counters = member.running.placement.counters
            assert counters.measured_count <= 10 and counters.asked_count <= 10, "once for a node, not for a grant"

    play([PLAIN, PLAIN, TOOLS], scene)


def test_a_node_takes_the_jobs_that_it_wants() -> None:
    """The machine owner's condition holds for others' jobs, and not for the node's own."""

    async def scene(mesh: Mesh) -> None:
        owner, other = mesh.members
        for member in mesh.members:
            member.running._accepts = member.running.placement.accepts = "job.kind != 'simulated' || job.cpus <= 1"
        await submit(owner, [0.1] * 4)  # others learn by declining
        job_id = await submit(owner, [1.0] * 20, {"cpus": 2.0}, require=("cpus>=1",))
        assert list(await done_by(mesh, job_id)) == [name(mesh, 0)]
        job_id = await submit(owner, [1.0] * 20, {"cpus": 1.0}, require=("cpus>=1",))
        assert len(await done_by(mesh, job_id)) == 2
        job_id = await submit(owner, [0.1], {"cpus": 2.0}, on=(other.identity.public_key,))
        report = (await explained(mesh, job_id)).report
        assert [finding.code for finding in report.accounts[1].findings] == ["accept"]
        assert report.can_never_run

    play([PLAIN, PLAIN], scene)


def test_a_node_whose_owner_takes_jobs_again_is_found_within_minutes() -> None:
    """Its conditions are no measurements, which others ask for anew: it would get nothing until somebody restarts."""

    async def scene(mesh: Mesh) -> None:
        owner, other = mesh.members
        await other.host.call(_accept(other, "job.name != 'picky'"))
        job_id = await submit(owner, [0.1] * 4, on=(other.identity.public_key,))
        await asyncio.sleep(60)
        assert owner.running.job(job_id.hex()).done == 0
        await other.host.call(_accept(other, ""))
        assert list(await done_by(mesh, job_id, limit_s=REFUSED_S + 30)) == [name(mesh, 1)]

    play([PLAIN, PLAIN], scene)


async def _accept(member: Member, condition: str) -> None:
    member.running.set_own_accept(condition)


@pytest.mark.parametrize("level", [Level.TRUSTED, Level.MEMBER])
def test_a_ban_is_said_and_ends_when_somebody_says_so(level: Level) -> None:
    """Otherwise "it can take it now" is said of a node that never gets a task, and nobody knows how that ends."""

    async def scene(mesh: Mesh) -> None:
        owner, other = mesh.members
        owner.running.set_level(other.identity.public_key, Level.MEMBER, reason="simulated ones are trusted otherwise")
        record = owner.running.scheduler.acceptance.record(other.identity.public_key)
        record.banned = "too many wrong values"
        job_id = await submit(owner, [0.1], on=(other.identity.public_key,), verify="none")
        report = (await explained(mesh, job_id)).report
        assert report.can_never_run
        [finding] = report.accounts[1].findings
        assert (finding.code, finding.what) == ("banned", "banned here: too many wrong values")
        assert f"p2pc trust set {name(mesh, 1)} member ends the ban" in finding.fix
        assert [view.banned for view in owner.running.trust()] == ["", "too many wrong values"]
        assert not owner.running.set_level(other.identity.public_key, level, reason="told").banned
        assert not record.banned
        assert list(await done_by(mesh, job_id)) == [name(mesh, 1)]

    play([PLAIN, PLAIN], scene)


def test_a_requirement_outlives_its_owner() -> None:
    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [1.0] * 12, require=("has=ffmpeg",))
        await asyncio.sleep(2)
        mesh.crash(mesh.members[0])
        await mesh.restart(mesh.members[0])
        assert list(await done_by(mesh, job_id)) == [name(mesh, 2)]

    play([PLAIN, PLAIN, TOOLS], scene)


def test_a_member_that_fell_silent_stays_known_for_an_hour() -> None:
    """A node that was killed is a name that nobody knows, and "ever" is said of a job that it alone would run."""

    async def scene(mesh: Mesh) -> None:
        owner, gone = mesh.members[0], mesh.members[2]
        await submit(owner, [0.1], require=("has=ffmpeg",))
        await asyncio.sleep(5)
        mesh.crash(gone, is_silent=True)
        await asyncio.sleep(120)
        network, key = owner.running.network, gone.identity.public_key
        assert key not in network.peers
        found = find_node(owner.running.peers(), name(mesh, 2))
        assert found.public_key == key and found.state == "not seen" and 100 < (found.seen_s or 0) < 130
        assert len(owner.running.peers()) == 3 and owner.running.status().members_known == 3

        waiting = await submit(owner, [0.1], on=(key,))
        for job_id in (waiting, await submit(owner, [0.1], require=("has=ffmpeg",))):
            view = await explained(mesh, job_id)
            accounts = {peer.name: account for peer, account in zip(view.peers, view.report.accounts, strict=True)}
            assert not view.report.can_never_run and "network" not in view.report.not_the_cause
            assert accounts[name(mesh, 2)].verdict == "unknown"
            assert [one.code for one in accounts[name(mesh, 2)].findings] == ["not-seen"]
        impossible = await explained(mesh, await submit(owner, [0.1], require=("os=plan9",)))
        assert impossible.report.can_never_run, "what it said of itself holds while it is away"

        await mesh.restart(gone)
        assert list(await done_by(mesh, waiting)) == [name(mesh, 2)]
        assert not network.away() and find_node(owner.running.peers(), name(mesh, 2)).state == "up"
        mesh.crash(gone, is_silent=True)
        await asyncio.sleep(3700)
        assert key not in [peer.public_key for peer in owner.running.peers()], "an hour is enough"

    play([PLAIN, PLAIN, TOOLS], scene, time_s_max=5000)


def test_who_says_goodbye_is_not_missed() -> None:
    async def scene(mesh: Mesh) -> None:
        await mesh.stop(mesh.members[1])
        await asyncio.sleep(60)
        assert len(mesh.members[0].running.peers()) == 2

    play([PLAIN] * 3, scene)


def test_explanation_names_what_each_node_lacks() -> None:
    async def scene(mesh: Mesh) -> None:
        terms: dict[str, Any] = {
            "require": ("has=ffmpeg", "fpga.count>0"),
            "not_on": (mesh.members[0].identity.public_key,),
        }
        job_id = await submit(mesh.members[0], [1.0], **terms)
        await asyncio.sleep(1)
        mesh.crash(mesh.members[1])
        await asyncio.sleep(90)
        view = await explained(mesh, job_id)
        accounts = {peer.name: account for peer, account in zip(view.peers, view.report.accounts, strict=True)}
        own = accounts[name(mesh, 0)]
        assert own.verdict == "never" and {one.code for one in own.findings} == {"has", "fpga", "not-on"}
        assert [one.what for one in accounts[name(mesh, 2)].findings] == ["needs fpga.count>0; fpga.count is not known"]
        assert accounts[name(mesh, 2)].verdict == "unknown"
        assert view.report.suggestions[0].what == "drop fpga.count>0"
        assert view.report.suggestions[0].nodes == (name(mesh, 2),)
        assert not view.report.can_never_run
        [there] = view.about(mesh.members[0].identity.public_key).suggestions
        assert there.nodes == (name(mesh, 0),) and "drop has=ffmpeg" in there.what

    play([PLAIN, PLAIN, TOOLS], scene)


def test_a_dead_node_is_said_to_be_unreachable() -> None:
    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [1.0], require=("gpu>0",))
        mesh.crash(mesh.members[1], is_silent=True)
        await asyncio.sleep(20)
        report = (await explained(mesh, job_id)).report
        assert report.accounts[0].verdict == "never"
        assert len(report.accounts) == 1 or report.accounts[1].verdict in ("unknown", "never")

    play([PLAIN, PLAIN], scene)


def test_a_node_looks_only_for_what_a_job_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first task of a job that asks for memory waits until a container engine was tried."""
    wanted: list[set[str]] = []
    measure = SimProbe.attributes

    async def attributes(self: SimProbe, names: Collection[str] | None = None) -> Attributes:
        wanted.append({"everything"} if names is None else set(names))
        return await measure(self, names)

    monkeypatch.setattr(SimProbe, "attributes", attributes)

    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [0.1] * 4, require=("mem.total>=1GiB",), prefer=("-load",))
        await done_by(mesh, job_id)
        assert wanted and all(names == {"mem.total", "load"} for names in wanted), wanted

    play([PLAIN], scene)


def test_the_first_task_starts_at_once_where_it_fits() -> None:
    """In a small group a requirement costs a search, or a round of questions, before anything runs."""

    async def scene(mesh: Mesh) -> None:
        clock = mesh.members[0].host.clock
        for require in ((), ("cpus>=1",), ("has=ffmpeg",), ("gpu>0", "name=" + name(mesh, 2))):
            began = clock.now()
            job_id = await submit(mesh.members[0], [0.001], require=require)
            await done_by(mesh, job_id)
            assert clock.now() - began < 0.3, require
            await asyncio.sleep(5)

    play([PLAIN, PLAIN, TOOLS], scene)


def test_large_tasks_take_several_slots() -> None:
    """Four tasks of four cores run on four cores at once, or a GPU is given to two."""
    four = RunnerModel(slot_count=4, attributes={"gpu.count": 2})

    async def scene(mesh: Mesh) -> None:
        clock = mesh.members[0].host.clock
        keys = [member.identity.public_key for member in mesh.members]
        for spec, at_once in (({}, 4), ({"cpus": 2.0}, 2), ({"cpus": 4.0}, 1), ({"gpus": 1.0}, 2), ({"gpus": 2.0}, 1)):
            began = clock.now()
            job_id = await submit(mesh.members[0], [1.0] * 8, spec, on=(keys[0],))
            await done_by(mesh, job_id)
            took_s = clock.now() - began
            assert 8 / at_once <= took_s < 8 / at_once + 1.5, (spec, took_s)
        began = clock.now()
        job_id = await submit(mesh.members[0], [1.0] * 16, {"cpus": 4.0})
        assert min((await done_by(mesh, job_id)).values()) >= 5, "what waits for room goes to others"
        assert clock.now() - began < 12

    play([four, four], scene)


def test_who_can_run_a_job_itself_asks_nobody_before() -> None:
    """Every job with a memory limit begins with a round of questions to the whole group."""

    async def scene(mesh: Mesh) -> None:
        member = mesh.members[0]

        async def asked_for(require: str) -> tuple[int, bool]:
            before = member.running.resources.counters.asked
            spec, terms = JobSpec(kind=TaskKind.SIMULATED, mem_bytes=1 << 20), JobTerms(require=(require,))
            view = await member.host.call(member.running.explain((terms, spec), until_possible=True))
            return member.running.resources.counters.asked - before, view.report.can_never_run

        assert await asked_for("cpus>=1") == (0, False)
        assert await asked_for("has=ffmpeg") == (1, False)
        assert await asked_for("has=blender") == (1, True)

    play([PLAIN, TOOLS], scene)


def test_a_node_that_its_owner_paused_says_so() -> None:
    """A job waits for a node whose owner plays a game, and nobody knows why."""
    paused = RunnerModel(slot_count=2, attributes={"paused": "on battery"})

    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [1.0], on=(mesh.members[1].identity.public_key,), require=("load<0",))
        account = (await explained(mesh, job_id)).report.accounts[1]
        assert account.verdict == "later" and "paused: on battery" in [one.what for one in account.findings]

    play([PLAIN, paused], scene)


@pytest.mark.parametrize(
    ("withheld", "wanted", "what"),
    [
        ({"network": "none"}, {"network": True}, "no network"),
        ({"isolation": "sandbox"}, {"sandbox": "process"}, "in sandboxes"),
    ],
)
def test_what_a_node_withholds_from_others_is_said_and_not_tried(
    withheld: dict[str, Any], wanted: dict[str, Any], what: str
) -> None:
    """If it broke: such a job waits for ever unexplained, or is refused a hundred times."""

    async def scene(mesh: Mesh) -> None:
        keys = [member.identity.public_key for member in mesh.members]
        mesh.members[1].running.placement.is_fenced = "isolation" in withheld
        job_id = await submit(mesh.members[0], [0.1] * 4, wanted, on=(keys[1],))
        await asyncio.sleep(20)
        (account,) = (one for one in (await explained(mesh, job_id)).report.accounts if one.name == name(mesh, 1))
        assert account.verdict == "never" and what in account.findings[0].what, account
        view = mesh.members[0].running.job(job_id.hex())
        assert (view.done, view.retried) == (0, 0)
        job_id = await submit(mesh.members[0], [0.1] * 4, wanted)
        assert set(await done_by(mesh, job_id)) == {name(mesh, 0)}, "work of one's own has everything"

    play([PLAIN, RunnerModel(slot_count=2, attributes=withheld)], scene)


def test_a_name_that_no_node_has_is_said_at_once() -> None:
    """A job with a misspelt attribute waits for ever; or one whose plugin comes later is refused."""
    racked = RunnerModel(slot_count=2, attributes={"rack.row": 3, "label.zone": "b"})

    async def scene(mesh: Mesh) -> None:
        member = mesh.members[0]

        async def unheard(require: str) -> tuple[tuple[str, str], ...]:
            spec, terms = JobSpec(kind=TaskKind.SIMULATED), JobTerms(require=(require,))
            return (await member.host.call(member.running.explain((terms, spec), until_possible=True))).unheard

        assert await unheard("rack.row==3 && label.zone=b && cpus>=1") == ()
        assert await unheard("node.foo > 1") == (("foo", ""),)
        assert await unheard("rack.rwo > 1 || label.zoen=b") == (("rack.rwo", "rack.row"), ("label.zoen", "label.zone"))
        with pytest.raises(UsageError, match="no node here has ram") as caught:
            await unheard("cpus>=1 && ram>=1GiB")
        assert caught.value.fix == "did you mean mem.total?" and "column 12 of" in caught.value.why
        mesh.crash(mesh.members[1], is_silent=True)
        member.running.resources.known.clear()
        assert await unheard("ram>=1GiB") == (("ram", "mem.total"),), "who does not answer may have it"

    play([PLAIN, racked], scene)


def test_a_job_whose_submitter_turns_out_to_be_a_stranger_does_not_run() -> None:
    """That it asks for nothing is remembered from when nothing was known of him; who he is may come with a grant."""

    async def scene(mesh: Mesh) -> None:
        job_id = await submit(mesh.members[0], [1.0])
        envelope = mesh.members[0].running.scheduler.owner.core.jobs[job_id].envelope
        member = mesh.members[1]
        placement, thief = member.running.placement, member.running.scheduler.thief
        assert placement.fit_of(envelope) is None
        introduced: list[bytes] = []

        async def introduce(_channel: Any, installation: bytes) -> None:
            introduced.append(installation)
            placement.is_stranger = lambda who: who == installation

        thief._introduce = introduce
        thief._may_submit = lambda _job: True if introduced else None
        channel: Any = None
        assert not await member.host.call(thief._may_run(channel, envelope))
        assert introduced == [envelope.submitter] and placement.fit_of(envelope) is not None

    play([PLAIN] * 2, scene)
