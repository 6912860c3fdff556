"""What is said of results of members that nobody believes yet.

If these fail, a job that has been computed stands still, and its submitter is not told why, or what would help.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from p2pcompute.daemon.views import job_json, progress_json
from p2pcompute.node.facade import JobView
from p2pcompute.node.views import waiting_count
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.trust.levels import Level
from tests.node.test_placement import explained, name, submit


def waiting(models: Sequence[RunnerModel], *, is_owner_left_out: bool = False) -> tuple[JobView, list[str], list[str]]:
    """Return a job of members half a minute after its submission, their names, and where its tasks were at first."""
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, len(models), runner=models, level=Level.MEMBER, custodians=0)
        found: list[tuple[JobView, list[str], list[str]]] = []

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            left_out = (mesh.members[0].identity.public_key,) * is_owner_left_out
            job_id = await submit(mesh.members[0], [1.0] * 4, not_on=left_out)
            await asyncio.sleep(2.0)
            node = mesh.members[0].running
            tasks = await mesh.members[0].host.call(node.tasks(job_id))
            await asyncio.sleep(28.0)
            names = [name(mesh, number) for number in range(len(models))]
            found.append((node.job(job_id.hex()), names, [task.node_name for task in tasks]))

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
        return found[0]


def test_the_only_member_is_named_and_both_ways_out() -> None:
    view, names, _places = waiting([RunnerModel(slot_count=0), RunnerModel(slot_count=2)])
    assert view.checking == 4 and not view.done
    no_other = "no trusted node works here, and no other member to find the same"
    assert view.doubt == f"4 results of {names[1]} are not believed yet: {no_other}"
    assert view.doubt_fix == f"is it yours?  p2pc trust set {names[1]} trusted, or invite another"
    assert progress_json(view)["doubt"] == {"what": view.doubt, "fix": view.doubt_fix} == job_json(view)["doubt"]


def test_where_a_trusted_node_works_nothing_is_asked_of_anybody() -> None:
    view, _names, _places = waiting([RunnerModel(slot_count=1), RunnerModel(slot_count=2)])
    assert view.done == 4 and not view.doubt and progress_json(view)["doubt"] is None


def test_a_trusted_node_that_may_not_run_it_is_no_judge() -> None:
    """With --not-on, as here, or another system than it asks for."""
    models = [RunnerModel(slot_count=1), RunnerModel(slot_count=2)]
    view, names, _places = waiting(models, is_owner_left_out=True)
    no_other = "no trusted node works here, and no other member to find the same"
    assert view.doubt == f"4 results of {names[1]} are not believed yet: {no_other}"


def test_a_task_that_a_member_computes_is_shown_as_running_there() -> None:
    _view, names, places = waiting([RunnerModel(slot_count=0), RunnerModel(slot_count=4, speed=0.2)])
    assert places == [names[1]] * 4


def test_no_fewer_than_none_wait_while_several_compute_one() -> None:
    """If it broke: "10 running · -5 waiting"."""
    assert waiting_count(25, 10, 10) == 15
    assert waiting_count(5, 10, 5) == 0, "each of five is computed twice"
    assert waiting_count(9, 10, 3) == 6, "three are computed three times, and six were not given to anybody"
    assert waiting_count(9, 2, 8) == 7, "two are at work on the first of what they have"


def test_a_failure_that_waits_for_a_trusted_node_says_so_and_ends() -> None:
    """If it broke, `--require name=="bob"` of a command that fails would show "1 waiting" for ever, and not why."""
    with Simulation(1) as simulation:
        models = [RunnerModel(slot_count=1), RunnerModel(slot_count=2, failure=1.0)]
        mesh = Mesh(simulation, 2, runner=models, level=Level.MEMBER, custodians=0)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await submit(owner, [1.0], not_on=(owner.identity.public_key,))
            await asyncio.sleep(30)
            assert owner.running.job(job_id.hex()).state != "failed", "a trusted node may come"
            (said,) = [one for one in (await explained(mesh, job_id)).slow if one.code == "unconfirmed"]
            assert "members say it alone" in said.what and said.fix
            await asyncio.sleep(60)
            assert owner.running.job(job_id.hex()).state == "failed"

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
