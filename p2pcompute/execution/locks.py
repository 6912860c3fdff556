"""The Python packages that a job needs, as they travel: exact versions and the hashes of their files, and nothing else.

A lock is text of this one form, a package a line, in the order of their names::

    numpy==1.26.4 ; python_version < "3.13" --hash=sha256:666d… --hash=sha256:edd8…

It names no place to get files from: each node asks the package index that its owner has set up, and takes only files
whose hash is in the lock.  So there can be no addresses, paths or options in it, whoever wrote it.

Pure.  `locking` makes locks, on the submitter's side; `environments` installs them.

Source: PEP 508 (names, markers), PEP 440 (versions), PEP 425 (tags of wheels), PEP 751 (pylock.toml).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError, UsageError
from p2pcompute.limits import LOCK_BYTES_MAX, LOCK_HASHES_MAX, LOCK_PACKAGES_MAX

_LINE: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]{0,126})"
    r"(?: ; (?P<marker>[A-Za-z0-9_.\"'<>=!~ ()*+-]{1,1000}?))?"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)"
)
_OPTION: Final = re.compile(r"(^|\s)-")
_ARCHES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_SYSTEMS: Final = (("manylinux", "linux"), ("linux_", "linux"), ("macosx_", "macos"), ("win", "windows"))
_ANY: Final = "any"


@dataclass(frozen=True, slots=True)
class Lock:
    """The packages of a job."""

    text: bytes
    """Empty: only the standard library."""
    names: tuple[str, ...]
    platforms: tuple[str, ...] = ()
    """Where there is a wheel of each of them, as ``linux/x86_64``; empty: everywhere."""
    built: tuple[str, ...] = ()
    """Those without a wheel: they have to be built, which nodes do only for those whom they trust."""


def check_lock(data: bytes) -> None:
    """Refuse what is no lock.

    Raises:
        RemoteProtocolError: the submitter sent something else.
    """
    if len(data) > LOCK_BYTES_MAX:
        raise RemoteProtocolError("a list of packages that is too long")
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("a list of packages that is not plain text") from error
    if len(lines) > LOCK_PACKAGES_MAX:
        raise RemoteProtocolError("too many packages")
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or _OPTION.search(match["marker"] or ""):
            raise RemoteProtocolError(f"not a locked package: {line[:80]!r}")


def is_possible(marker: str, python: tuple[int, int]) -> bool:
    """Return whether a marker may be true with this minor of Python, on some system; what is no marker may be.

    Source: PEP 508, whose markers without ``~=`` and ``===`` are expressions of Python.
    """
    try:
        return _truth(ast.parse(marker.strip(), mode="eval").body, python) is not False
    except (SyntaxError, ValueError, RecursionError):
        return True


def _truth(node: ast.expr, python: tuple[int, int]) -> bool | None:
    match node:
        case ast.BoolOp(op, parts):
            found = [_truth(part, python) for part in parts]
            decides = isinstance(op, ast.Or)
            return decides if decides in found else None if None in found else not decides
        case ast.Compare(ast.Name("python_version" | "python_full_version"), [op], [ast.Constant(str(version))]):
            return _compare(python, type(op), version)
    return None


def _compare(python: tuple[int, int], op: type[ast.cmpop], version: str) -> bool | None:
    """Compare all releases of a minor with a version; None when that depends on which of them it is."""
    numbers = tuple(int(part) for part in version.removesuffix(".*").split(".") if part.isdigit())
    if len(numbers) < 2 and version.endswith("*"):
        return None
    minor, is_whole = (*numbers, 0)[:2], not any(numbers[2:])
    match op:
        case ast.Lt | ast.GtE:
            is_less = python < minor if is_whole or python != minor else None
            return is_less if is_less is None or op is ast.Lt else not is_less
        case ast.Gt | ast.LtE:
            return None if python == minor else (python > minor) == (op is ast.Gt)
        case ast.Eq | ast.NotEq if python != minor:
            return op is ast.NotEq
    return None


def read_pylock(document: bytes, python: tuple[int, int]) -> Lock:
    """Return the lock in a pylock.toml.

    Args:
        python: minor that the job's tasks run with: files for others are left out.

    Raises:
        UsageError: a package in it is none of an index: a path, an address, a repository.
    """
    packages = tomllib.loads(document.decode()).get("packages", [])
    lines, names, built = [], [], []
    everywhere: set[str] | None = None
    for package in sorted(packages, key=lambda item: str(item["name"])):
        name = str(package["name"])
        if not is_possible(str(package.get("marker") or ""), python):
            continue  # another version of it, or nothing, stands in for it
        if any(place in package for place in ("directory", "vcs", "archive")):
            raise UsageError(
                f"the package {name} cannot be sent",
                "it is taken from a folder, an address or a repository, which other nodes do not have",
                "name a release of it from a package index; modules of your own travel with the function by themselves",
                code="deps-local",
            )
        wheels = [wheel for wheel in package.get("wheels", ()) if _is_for(_tags(wheel), python)]
        files = [*wheels, *([package["sdist"]] if "sdist" in package else [])]
        hashes = sorted({str(file["hashes"]["sha256"]) for file in files if "sha256" in file.get("hashes", {})})
        if not hashes:
            raise UsageError(
                f"there is no file of {name} {package['version']} for Python {python[0]}.{python[1]}",
                "its releases are for other versions of Python",
                f"allow another version of {name}",
                code="deps-python",
            )
        marker = f" ; {package['marker']}" if package.get("marker") else ""
        lines.append(f"{name}=={package['version']}{marker}" + "".join(f" --hash=sha256:{item}" for item in hashes))
        names.append(f"{name} {package['version']}")
        if not wheels:
            built.append(name)
        elif not marker:  # with a marker it may not be wanted where it has no wheel
            here = {place for wheel in wheels for place in _platforms(_tags(wheel)[2])}
            if _ANY not in here:
                everywhere = here if everywhere is None else everywhere & here
        if len(hashes) > LOCK_HASHES_MAX or len(lines) > LOCK_PACKAGES_MAX:
            raise UsageError("these are too many packages for one job", f"up to {LOCK_PACKAGES_MAX}", "ask for fewer")
    if everywhere is not None and not everywhere:
        raise UsageError(
            "no machine can have all of these packages",
            "their wheels are for different systems",
            "allow other versions of them",
            code="deps-platform",
        )
    text = "".join(f"{line}\n" for line in lines).encode()
    try:
        check_lock(text)
    except RemoteProtocolError as error:
        raise UsageError("these packages cannot be sent", str(error), "ask for fewer or simpler ones") from error
    return Lock(text, tuple(names), tuple(sorted(everywhere or ())), tuple(built))


def _tags(wheel: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the tags in a wheel's name: Python, ABI, platform."""
    name = str(wheel.get("name") or wheel.get("url") or wheel.get("path") or "").rpartition("/")[2]
    parts = name.removesuffix(".whl").split("-")
    return (parts[-3], parts[-2], parts[-1]) if len(parts) >= 5 else ("", "", "")


def _is_for(tags: Sequence[str], python: tuple[int, int]) -> bool:
    """Whether a wheel is for CPython of this minor."""
    major, minor = python
    for tag in tags[0].split("."):
        if tag in (f"py{major}", f"cp{major}{minor}", f"py{major}{minor}"):
            return "cp" not in tag or tags[1] in (f"cp{major}{minor}", "abi3", "none")
        older = re.fullmatch(rf"(cp|py){major}(\d+)", tag)
        if older is not None and int(older[2]) <= minor and (older[1] == "py" or "abi3" in tags[1].split(".")):
            return True
    return False


def _platforms(tag: str) -> list[str]:
    """Return the machines that a platform tag is for, as ``linux/x86_64``; ["any"] for all."""
    found = []
    for part in tag.split("."):
        if part == _ANY:
            return [_ANY]
        system = next((name for prefix, name in _SYSTEMS if part.startswith(prefix)), "")
        if system == "macos" and part.endswith("universal2"):
            found += ["macos/aarch64", "macos/x86_64"]
            continue
        arch = next((arch for suffix, arch in _ARCHES.items() if part.endswith(f"_{suffix}")), "")
        if system and arch:
            found.append(f"{system}/{arch}")
    return found
