"""examples/povray: a picture rendered in tiles by three nodes is the picture, pixel by pixel."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon
from tests.examples.conftest import EXAMPLES, run_program, shares

SCENE = Path("/usr/share/doc/povray/examples/advanced/chess2.pov")
TILES = EXAMPLES / "povray" / "tiles.py"
needs_povray = pytest.mark.skipif(
    not (shutil.which("povray") and SCENE.exists()), reason="needs povray and povray-examples"
)


@needs_povray
def test_a_hundred_tiles_are_the_picture_of_one_machine(trio: list[Daemon], tmp_path: Path) -> None:
    """POV-Ray jitters its rays for the blurred background: also these come out the same whoever renders a tile."""
    ada = trio[0]
    ran = run_program(ada, EXAMPLES / "povray" / "render.sh", SCENE, "160", "120", cwd=tmp_path).check()
    assert ran.lines == ["chess2.png: 160 x 120, from 100 tiles"]
    job = ada.job()
    assert (job["name"], job["total"], job["done"], job["retried"]) == ("chess2", 100, 100, 0)
    assert sum(shares(ada).values()) == 100 and min(shares(ada).values()) >= 10, shares(ada)
    words = ["povray", str(SCENE), "+W160", "+H120", "+FN8", "+Owhole.png", "-A", "-D", "-GA"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    compared = run_program(ada, "python3", TILES, "compare", "chess2.png", "whole.png", cwd=tmp_path).check()
    assert compared.out == "the same, pixel by pixel\n"


@needs_povray
def test_a_scene_that_povray_refuses_ends_the_script_with_its_reason_at_hand(
    trio: list[Daemon], tmp_path: Path
) -> None:
    (tmp_path / "odd.pov").write_text("sphere { <0, 0, 0>, 1 pigment { colour Mauve } }\n")
    ran = run_program(trio[1], EXAMPLES / "povray" / "render.sh", "odd.pov", "20", "20", "2", "1", cwd=tmp_path)
    ran.check(1)
    assert "2 failed" in ran.err and not (tmp_path / "odd.png").exists()
    logs = run_program(trio[1], "p2pc", "logs", "last", "--failed", cwd=tmp_path)
    assert "Mauve" in logs.out + logs.err


def test_tiles_cover_the_picture_once() -> None:
    for size in ("7 5 3 2", "160 120 10 10", "1 1 1 1"):
        done = subprocess.run(
            ["python3", str(TILES), "grid", *size.split()], capture_output=True, text=True, check=True
        )
        header, *lines = done.stdout.splitlines()
        assert header.split("\t") == ["tile", "left", "right", "top", "bottom"]
        seen: list[tuple[int, int]] = []
        for line in lines:
            left, right, top, bottom = (int(word) for word in line.split("\t")[1:])
            seen += [(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)]
        width, height = (int(word) for word in size.split()[:2])
        assert sorted(seen) == [(x, y) for x in range(1, width + 1) for y in range(1, height + 1)]
