"""Real daemons of which some lie: no wrong result may reach the person who asked, and liars get no more work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.mesh import START_S_MAX, Daemon, Mesh, until

LIAR = str(Path(__file__).with_name("lying_daemon.py"))
NAMES = ("nova", "ada", "bob", "cyd", "dan", "eve", "liam", "lyra")
LIARS = ("liam", "lyra")


def start(mesh: Mesh, names: Sequence[str], liars: Sequence[str]) -> list[Daemon]:
    """Start daemons of one group whose members do not trust one another."""
    daemons = [mesh.add(name, P2PC_NODE__SLOTS="1") for name in names]
    for daemon in daemons:
        if daemon.name in liars:
            daemon.program = (LIAR,)
        daemon.spawn()
    for daemon in daemons:
        until(daemon._is_ready, START_S_MAX, f"{daemon.name} is up\n{daemon.log_end()}")
    token = mesh.token(daemons[0], uses=len(daemons) - 1, is_mine=False)
    for daemon in daemons[1:]:
        daemon.connection().request("POST", "/v1/join", {"token": token, "name": None})
    mesh.meet(daemons)
    return daemons


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    mesh = Mesh(tmp_path_factory.mktemp("mesh"))
    try:
        yield start(mesh, NAMES, LIARS)
    except BaseException:
        mesh.close(is_failing=True)
        raise
    mesh.close()


def test_no_wrong_result_is_accepted_though_two_of_eight_lie(mesh: list[Daemon]) -> None:
    nova = mesh[0]
    ran = nova.p2pc("run", "--range", "1..400", "-k", "echo", "{}", limit_s=120).check()
    assert ran.lines == [str(number) for number in range(1, 401)]
