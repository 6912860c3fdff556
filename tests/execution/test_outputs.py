"""Which names of files a task may bring back: the worker looks for them, the owner checks them, by the same rules."""

from __future__ import annotations

import os
import tempfile

from hypothesis import example, given
from hypothesis import strategies as st

from p2pcompute.execution.child_files import find_outputs
from p2pcompute.execution.child_tasks import Stop
from p2pcompute.execution.spec import is_output

PARTS = st.sampled_from(["a", "b", "ab", ".a", ".b", "a.txt", "[a]"])
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=8)
PATTERNS = st.lists(
    st.sampled_from(["a", "*", "**", "?", "a*", "[ab]", ".*", ".a", "*.txt", ".", "[a]"]), min_size=1, max_size=5
).map("/".join)


@given(NAMES, PATTERNS)
@example(["a/b/.a/c"], "**/.a/*")
@example(["a", "a/b"], "**")
def test_the_owner_takes_what_the_worker_finds(names: list[str], pattern: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        files = []
        for name in names:
            path = os.path.join(directory, name)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "xb"):
                    files.append(name)
            except OSError:
                continue  # a directory of this name is there, or a file above
        try:
            found = set(find_outputs(directory, (pattern,), 100))
        except Stop:
            found = set()
        assert {name for name in files if is_output(name, (pattern,))} == found or _names_a_directory(
            directory, pattern
        )


def _names_a_directory(directory: str, pattern: str) -> bool:
    """A pattern without wildcards that names a directory is an error there; its files are not named."""
    return os.path.isdir(os.path.join(directory, pattern)) or set(pattern) <= {".", "/"}


def test_nothing_leaves_the_directory() -> None:
    for name in ("", "/etc/passwd", "../a", "a/../../b", "a//b", "a\0", "./a"):
        assert not is_output(name, ("**", "*", name)), name
    assert is_output("a/b", ("./a//b",)) and not is_output("a/b", ("a",)) and not is_output("a", ())


def test_names_and_patterns_that_take_long() -> None:
    """Names are a stranger's: a backtracking matcher would try each way to divide them."""
    assert not is_output("/".join("a" * 2000), ("/".join(["**", "a"] * 20 + ["b"]),))
