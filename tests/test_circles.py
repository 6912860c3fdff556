"""No module of ours needs, directly or by others, one that needs it: imports for types count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import p2pcompute

ROOT = Path(p2pcompute.__file__).parent
PUBLIC = "p2pcompute"
"""The package itself names what programs use; its names are looked up when they are used."""


def imported(source: str, known: Mapping[str, str]) -> Iterator[str]:
    """Yield the modules of `known` that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (one for one in (name if name in known else node.module,) if one in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def check(sources: Mapping[str, str]) -> None:
    """Raise CycleError when modules, by their names, import one another in a circle."""
    graph = {name: {*imported(source, sources)} - {name} for name, source in sources.items()}
    TopologicalSorter(graph).prepare()


def test_no_imports_run_in_a_circle() -> None:
    sources = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
        for path in ROOT.rglob("*.py")
    }
    assert len(sources) > 300
    del sources[PUBLIC]
    check(sources)


def test_circles_are_found() -> None:
    sources = {
        "a": "from b import x",
        "b": "def f():\n    import c",
        "c": "if TYPE_CHECKING:\n    from d import e",
        "d": "",
        "d.e": "import a",
    }
    with pytest.raises(CycleError):
        check(sources)
    check(sources | {"d.e": "import d"})
