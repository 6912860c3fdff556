"""Why packages could not be installed, for people: what uv said, in our words, and what to do about it."""

from __future__ import annotations

import re
from typing import Final

from p2pcompute.limits import ERROR_TEXT_BYTES_MAX

_SAID_CHARS: Final = min(2000, ERROR_TEXT_BYTES_MAX // 2)
_CASES: Final = (
    (
        r"hash mismatch|Hash mismatch",
        "a file of its packages is not the one that the submitter has seen",
        "that node's package index has other files under the same name: use the same index, or lock the packages anew",
        False,
    ),
    (
        r"Failed to build|build backend|Failed to prepare distributions|command '.*(gcc|cc|clang).*' failed",
        "one of its packages has to be built, and that failed",
        "use a version of it that has a wheel for this Python and machine, or install on that node what its build "
        "needs (a compiler, headers)",
        True,
    ),
    (
        r"no wheels? (are|is) usable|building (from source )?is disabled|no usable wheels|no-build|"
        r"no wheels? with a matching|only-binary|Buil(d|ding) .*disabled",
        "one of its packages has no wheel for this node",
        "use a version of it with a wheel for this machine, or run it on your own nodes: --on",
        False,
    ),
    (
        r"not found in the (cache|package registry|provided package locations)|there (is|are) no version|"
        r"No solution found|unsatisfiable",
        "its packages are not in that node's package index",
        "use versions that it has, or tell the node where they are: UV_INDEX or UV_FIND_LINKS in its environment",
        False,
    ),
    (
        r"error sending request|dns error|Failed to fetch|Could not connect|timed out|Network|offline|tcp connect",
        "that node cannot reach its package index",
        "check its network, or give it packages of its own: UV_FIND_LINKS in its environment",
        False,
    ),
    (
        r"No space left|os error 28|Disk quota",
        "that node has no room for its packages",
        "make room there",
        False,
    ),
)


class EnvironmentFailed(Exception):
    """The packages of a job cannot be had on this node."""

    def __init__(self, what: str, fix: str = "", said: str = "", *, is_final: bool = False) -> None:
        """Args:
        said: what uv said about it.
        is_final: it would fail on every node.
        """
        text = f"{what}; {fix}" if fix else what
        super().__init__(f"{text}\n{said}" if said else text)
        self.is_final = is_final


def explain(said: str, *, may_build: bool) -> EnvironmentFailed:
    """Return what uv's words mean.

    Args:
        may_build: packages were allowed to be built.
    """
    clean = re.sub(r"\x1b\[[0-9;]*m", "", said)
    clean = re.sub(r"(?<=://)[^/@\s]*@", "", clean)  # whoever submitted it need not know how we log in
    shown = clean if len(clean) <= _SAID_CHARS else f"{clean[: _SAID_CHARS // 2]}\n…\n{clean[-_SAID_CHARS // 2 :]}"
    for pattern, what, fix, is_final in _CASES:
        if re.search(pattern, clean):
            return EnvironmentFailed(what, fix, shown, is_final=is_final and may_build)
    return EnvironmentFailed("its packages could not be installed on that node", "see what uv says", shown)
