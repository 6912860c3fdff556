"""Programs that people have, between three installations, in the sandboxes of those that run them."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh, trio_of_daemons
from tests.sandboxes import need_sandbox

C_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  long sum = 0, end = atol(argv[1]);
  for (long i = 1; i <= end; i++) sum += i * i;
  printf("%s %ld\n", getenv("P2PC_NODE"), sum);
  return 0;
}
"""
ELF_MACHINE = 18
"""Where the number of the machine is that a program is for: elf(5), e_machine."""
OTHERS = {"x86_64": ("aarch64", 183), "aarch64": ("x86_64", 62)}


@pytest.fixture(scope="module")
def trio() -> Iterator[list[Daemon]]:
    need_sandbox()
    with trio_of_daemons({"P2PC_NODE__ACCEPT": "sandboxed"}) as daemons:
        yield daemons


def sum_of_squares(end: int) -> int:
    return end * (end + 1) * (2 * end + 1) // 6


def test_c_compiled_on_one_node_runs_on_others(trio: list[Daemon]) -> None:
    """The compiler is on one node only as far as the job knows; the program goes where its machine is."""
    ada = trio[0]
    if shutil.which("gcc") is None:
        pytest.skip("runs with gcc, which dev.py test installs on Debian as root")
    (ada.home / "squares.c").write_text(C_PROGRAM)
    made = ("--on", "cyd", "--require", "has=gcc", "--send", "{}", "--fetch", "squares")
    ada.p2pc("run", *made, "gcc -O2 {} -o squares", ":::", "squares.c").check()
    assert ada.tasks()[0]["node"] == "cyd"
    ends = [str(number) for number in range(1000, 1012)]
    flags = ("--require", f"arch={platform.machine()}", "--not-on", "cyd", "--share", "squares")
    ran = ada.p2pc("run", "-k", *flags, "./squares", "{}", ":::", *ends).check()
    words = [line.split() for line in ran.lines]
    assert [int(number) for _node, number in words] == [sum_of_squares(int(end)) for end in ends]
    assert {node for node, _number in words} == {"ada", "bob"}, words
    for name in ("bob", "cyd"):
        ran = ada.p2pc("run", "--on", name, "--share", "squares", "./squares", "{}", ":::", "3").check()
        assert ran.out == f"{name} 14\n"


def foreign_program(home: Path) -> str:
    """Put a program for another machine there; return that machine."""
    if platform.machine() not in OTHERS:
        pytest.skip(f"runs on {' and '.join(OTHERS)}: of others the number in an ELF header is not written down here")
    other, number = OTHERS[platform.machine()]
    program = bytearray(Path("/bin/true").read_bytes())
    program[ELF_MACHINE : ELF_MACHINE + 2] = number.to_bytes(2, "little")
    (home / "foreign").write_bytes(program)
    (home / "foreign").chmod(0o755)
    return other


def attempts(daemon: Daemon) -> int:
    """How often the first task of the last job was tried."""
    return int(daemon.p2pc("show", "--json", "last/0").check().json()["attempts"])


def test_a_program_for_another_machine(trio: list[Daemon]) -> None:
    """Asked for, that machine is missed before anything runs; not asked for, one node says what it is and helps."""
    ada = trio[0]
    other = foreign_program(ada.home)
    refused = ada.p2pc("run", "--require", f"arch={other}", "--share", "foreign", "./foreign", ":::", "1").check(4)
    assert "no node can ever run this" in refused.err and f"arch={other}" in refused.err, refused.err
    for command in (("./foreign",), ("--not-on", "ada", "./foreign"), ("./foreign {} 2>&1",)):
        failed = ada.p2pc("run", "--share", "foreign", *command, ":::", "1").check(1)
        assert f"it is a program for {other}" in failed.err and f"--require arch={other}" in failed.err, failed.err
        assert attempts(ada) == 1 and "retried" not in failed.err, failed.err


def test_machines_of_another_kind_may_try(mesh: Mesh) -> None:
    """Of two like machines one tries, and the one that is not like them; which kind it is the node says itself."""
    if shutil.which("linux32") is None:
        pytest.skip("runs with linux32 (util-linux), by which a machine says that it is another")
    like = [mesh.add(name, P2PC_NODE__SLOTS="1") for name in ("ada", "bob")]
    unlike = mesh.add("cyd", prefix=("linux32",), P2PC_NODE__SLOTS="1")
    for daemon in (*like, unlike):
        daemon.start()
    mesh.join(like[0], [like[1], unlike])
    ada = like[0]
    foreign_program(ada.home)
    ada.p2pc("run", "--share", "foreign", "--retries", "9", "./foreign", ":::", "1").check(1)
    shown = ada.p2pc("show", "last/0").check().out
    assert attempts(ada) == 2, shown
    assert "cyd" in shown, shown


def test_a_damaged_program_is_tried_once(trio: list[Daemon]) -> None:
    ada = trio[0]
    (ada.home / "damaged").write_bytes(Path("/bin/true").read_bytes()[:100])
    (ada.home / "damaged").chmod(0o755)
    failed = ada.p2pc("run", "--share", "damaged", "./damaged", ":::", "1").check(1)
    assert "damaged or cut off" in failed.err and attempts(ada) == 1, failed.err
