"""Images that come with a job, given to an engine under no name.

An archive of an image says what the image is to be called, and an engine believes that: one called
docker.io/library/debian would from then on be what everybody on this machine gets under that name.  So its names are
taken out while it is handed over; what it is run by is its hash.

Source: docker-save(1), "manifest.json" (RepoTags); OCI image layout, annotations of index.json.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

_LIST_BYTES_MAX = 1 << 20
_LISTS = ("manifest.json", "index.json")
_NAMES = "repositories"
"""Of old archives; says nothing but names."""
_COPY_BYTES = 1 << 20


def load(engine: str, path: str, *, limit_s: float) -> str:
    """Hand the image in an archive to an engine; returns what that says, "" when it is none."""
    try:
        process = subprocess.Popen(
            [engine, "load", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return ""
    assert process.stdin is not None and process.stdout is not None
    said = b""
    limit = threading.Timer(limit_s, process.kill)
    limit.start()
    try:
        with process.stdin as sink, tarfile.open(path, "r|*") as source:
            _copy_nameless(source, sink)
        said = process.stdout.read(_LIST_BYTES_MAX)
    except (OSError, ValueError, EOFError, RecursionError, tarfile.TarError):
        process.kill()  # no archive, one whose list is nested too deeply, or the engine does not take it
    finally:
        process.stdout.close()
        process.wait()
        limit.cancel()
    return said.decode("utf-8", "replace") if process.returncode == 0 else ""


def _copy_nameless(source: tarfile.TarFile, sink: IO[bytes]) -> None:
    """Copy an archive without what its images are to be called.

    Raises:
        OSError, ValueError, tarfile.TarError: it is none, or nobody reads.
    """
    with tarfile.open(fileobj=sink, mode="w|", bufsize=_COPY_BYTES) as target:
        for member in source:
            name = os.path.normpath(member.name)
            if name == _NAMES:
                continue
            data = source.extractfile(member) if member.isreg() else None
            if name in _LISTS:
                if data is None or member.size > _LIST_BYTES_MAX:
                    raise ValueError("its list is no file, or too long")
                text = json.dumps(_nameless(json.loads(data.read()))).encode()
                member.size, data = len(text), io.BytesIO(text)
            target.addfile(member, data)


def _nameless(value: Any) -> Any:
    """Return a list of images without their names."""
    match value:
        case list():
            return [_nameless(item) for item in value]
        case dict():
            return {key: _nameless(item) for key, item in value.items() if key not in ("RepoTags", "annotations")}
    return value
