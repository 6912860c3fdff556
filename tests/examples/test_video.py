"""examples/video: a clip that three nodes encode in chunks has every frame of the clip, each where it was."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon
from tests.examples.conftest import EXAMPLES, run_program, shares

SCRIPT = EXAMPLES / "video" / "transcode.sh"
SECONDS, RATE, CHUNK_S = 24, 25, 2
ALIKE_DB = 30.0
"""Of frames that were encoded with a loss and are the same; testsrc's counter makes those of other seconds differ."""

pytestmark = pytest.mark.skipif(
    not shutil.which("ffmpeg"), reason="runs with ffmpeg, which dev.py test installs on Debian as root"
)


def ffmpeg(*words: str, cwd: Path) -> str:
    """Run ffmpeg and return what it says."""
    done = subprocess.run(
        ["ffmpeg", "-nostdin", *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stderr


def frames_of(path: Path) -> int:
    words = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-of", "csv=p=0"]
    words += ["-show_entries", "stream=nb_read_frames", str(path)]
    return int(subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout.strip(",\n"))


def test_a_clip_in_chunks_has_all_its_frames_and_its_sound(trio: list[Daemon], tmp_path: Path) -> None:
    picture = ("-f", "lavfi", "-i", f"testsrc=duration={SECONDS}:size=320x240:rate={RATE}")
    sound = ("-f", "lavfi", "-i", f"sine=duration={SECONDS}")
    ffmpeg(*picture, *sound, "-c:v", "mpeg4", "-q:v", "2", "-g", str(RATE), "clip.mkv", cwd=tmp_path)
    ran = run_program(trio[0], SCRIPT, "clip.mkv", "new.mp4", str(CHUNK_S), cwd=tmp_path).check()
    assert ran.out == f"{tmp_path}/new.mp4: from {SECONDS // CHUNK_S} chunks\n", ran.err
    job = trio[0].job()
    assert (job["total"], job["done"], job["retried"]) == (SECONDS // CHUNK_S, SECONDS // CHUNK_S, 0)
    assert len(shares(trio[0])) == 3, shares(trio[0])
    assert frames_of(tmp_path / "new.mp4") == frames_of(tmp_path / "clip.mkv") == SECONDS * RATE
    by_number = f"settb=AVTB,setpts=N/{RATE}/TB"
    compare = f"[0:v]{by_number}[new];[1:v]{by_number}[old];[new][old]psnr"
    said = ffmpeg("-i", "new.mp4", "-i", "clip.mkv", "-lavfi", compare, "-f", "null", "-", cwd=tmp_path)
    worst = re.search(r"PSNR .* min:([0-9.]+)", said)
    assert worst is not None and float(worst[1]) > ALIKE_DB, said[-500:]
    assert "Audio: aac" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "new.mp4"], "the chunks are removed"
