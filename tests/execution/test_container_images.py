"""Images that come with a job.  If these fail, a stranger's archive ends the process that looks at it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from p2pcompute.execution import container_images

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("name", ["manifest.json", "index.json"])
@pytest.mark.parametrize("data", [DEEP, b"{", b"\xff", b"x" * (2 << 20)])
def test_a_list_that_is_none_is_no_image(tmp_path: Path, name: str, data: bytes) -> None:
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as made:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        made.addfile(member, io.BytesIO(data))
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\ncat > /dev/null; echo loaded\n")
    engine.chmod(0o755)
    assert container_images.load(str(engine), str(archive), limit_s=20.0) == ""


def test_what_is_an_archive_is_handed_over(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as made:
        member = tarfile.TarInfo("manifest.json")
        member.size = 2
        made.addfile(member, io.BytesIO(b"[]"))
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\ncat > /dev/null; echo loaded\n")
    engine.chmod(0o755)
    assert container_images.load(str(engine), str(archive), limit_s=20.0) == "loaded\n"
