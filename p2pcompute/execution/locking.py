"""Finding out which packages a job needs, and their exact versions and files: the submitter's side of `locks`.

Requirements are read from where people keep them: the block of PEP 723 in a script, a lock of uv beside it, a
requirements file.  uv resolves them for every system at once, so that all nodes have the same versions.

Source: PEP 723 (inline script metadata); uv's reference, "uv pip compile" and "uv export".
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import UsageError
from p2pcompute.execution.environments import find_uv
from p2pcompute.execution.installing import install_command
from p2pcompute.execution.locks import Lock, is_possible, read_pylock

AUTO: Final = "auto"
NONE: Final = "none"
_BLOCK: Final = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_BESIDE: Final = ("uv.lock", "requirements.txt")
_OURS: Final = re.compile(r"p2pcompute(?![\w.-])", re.IGNORECASE)
"""This package: each node has its own, and its worker processes find it."""
_RESOLVE_S: Final = 300.0
_SAID_CHARS: Final = 3000


@dataclass(frozen=True, slots=True)
class Requirements:
    """Where a job says which packages it needs."""

    path: Path
    key: bytes
    """Hash of what is asked for: the same requirements, whatever versions there are meanwhile."""
    listed: tuple[str, ...] | None = None
    """Requirements of a script's block; None: the whole file lists them."""

    def if_any(self) -> Requirements | None:
        """Return it unless it is a script's block that asks for nothing but p2pcompute."""
        return None if self.listed is not None and all(map(_OURS.match, self.listed)) else self


def find_requirements(deps: str, script: Path | None, *, is_beside: bool) -> Requirements | None:
    """Return where the packages of a job are listed; None when it needs none of its own.

    A script whose block asks for nothing needs none, and so no uv either; a file that lists nothing is a wish to run
    with the standard library alone.

    Args:
        deps: "auto": the block in the script; "none"; or the path of a file.
        script: the program that runs, where it is a file here.
        is_beside: with "auto", a lock or requirements file beside a script without a block counts, too.

    Raises:
        UsageError: there is no such file, or its block cannot be read.
    """
    if deps == NONE:
        return None
    if deps != AUTO:
        path = Path(deps)
        if not path.is_file():
            raise UsageError(
                f"there is no file {deps!r}", "--deps names a list of packages", "auto, none or a file", code="no-file"
            )
        return _read(path).if_any()
    if script is None or not script.is_file():
        return None
    if script.suffix == ".py" and (found := _read(script)).listed is not None:
        return found.if_any()
    if is_beside:
        for name in _BESIDE:
            if (beside := script.with_name(name)).is_file():
                return _read(beside)
    return None


def _read(path: Path) -> Requirements:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read", error.strerror or "", code="no-file") from error
    if path.suffix != ".py":
        return Requirements(path, hashlib.blake2b(data, digest_size=16).digest())
    block = _block_of(path, data.decode("utf-8", "replace").replace("\r\n", "\n"))
    if block is None:
        return Requirements(path, b"")
    listed = block.get("dependencies", [])
    if not (isinstance(listed, list) and all(isinstance(item, str) for item in listed)):
        raise UsageError(
            f"the script block of {path} is not understood", "dependencies is a list of texts", code="deps"
        )
    _check_python(path, str(block.get("requires-python") or ""))
    text = repr((listed, block.get("requires-python"), block.get("tool")))
    return Requirements(path, hashlib.blake2b(text.encode(), digest_size=16).digest(), tuple(listed))


def _check_python(path: Path, wanted: str) -> None:
    """Refuse a script for another Python: its tasks run with the minor of the one that submits them.

    Raises:
        UsageError: it is.
    """
    specifiers = re.findall(r"(<=|>=|<|>|==|!=)\s*([0-9.*]+)", wanted)
    marker = " and ".join(f"python_full_version {op} '{version}'" for op, version in specifiers)
    if marker and not is_possible(marker, sys.version_info[:2]):
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UsageError(
            f"{path} asks for Python {wanted}, and this is {here}",
            "tasks run with the version that p2pc has where it submits them",
            "install p2pcompute with such a Python here, or change requires-python",
            code="deps-python",
        )


def _block_of(path: Path, text: str) -> dict[str, Any] | None:
    found = [match["content"] for match in _BLOCK.finditer(text)]
    if not found:
        return None
    content = "".join(line[2:] if line.startswith("# ") else line[1:] for line in found[0].splitlines(keepends=True))
    try:
        if len(found) > 1:
            raise ValueError("there are two of them")
        return tomllib.loads(content)
    except ValueError as error:
        raise UsageError(
            f"the script block of {path} is not understood", str(error), "it is TOML; see PEP 723", code="deps"
        ) from error


def make_lock(requirements: Requirements) -> Lock:
    """Return the lock for requirements; asks the package index that uv is set up for, where its cache does not know.

    Raises:
        UsageError: there is no uv here, or they cannot be met.
    """
    uv = find_uv()
    if uv is None:
        raise UsageError(
            "the job needs packages, and there is no uv here",
            f"{requirements.path} lists them, and uv finds their versions",
            f"{install_command('uv>=0.9')}, or --deps none",
            code="no-uv",
        )
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    path, listed = requirements.path, requirements.listed
    given = b""
    if path.name == "uv.lock":
        words = [uv, "export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--format", "pylock.toml"]
        words += ["--directory", str(path.absolute().parent)]
    else:
        words = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", minor, "--format", "pylock.toml"]
        words += ["--no-header", "--no-annotate"]
        if listed is not None and any(_OURS.match(item) for item in listed):
            given = "".join(f"{item}\n" for item in listed if not _OURS.match(item)).encode()
            path = Path("-")
        words.append(str(path))
    document = _run(words, given, requirements)
    return read_pylock(document, (sys.version_info.major, sys.version_info.minor))


def _run(words: Sequence[str], given: bytes, requirements: Requirements) -> bytes:
    try:
        done = subprocess.run(words, input=given, capture_output=True, timeout=_RESOLVE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"the packages in {requirements.path} cannot be resolved", str(error), code="deps") from error
    if done.returncode != 0:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr.decode("utf-8", "replace")).strip()
        why = said[-_SAID_CHARS:] or f"uv ended with exit code {done.returncode}"
        raise UsageError(
            f"the packages that {requirements.path} asks for cannot be had",
            why,
            "change what it asks for; uv reads UV_INDEX and UV_FIND_LINKS, or --deps none",
            code="deps",
        )
    return done.stdout
