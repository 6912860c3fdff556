"""Loading the function that a command line names: ``path/file.py::func`` or ``package.module::func``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from p2pcompute.errors import UsageError

_scripts: dict[str, Path] = {}
"""Modules that were loaded from a file named on the command line."""


def is_script_module(name: str) -> bool:
    """True for a module that `load_file_function` loaded from a file."""
    return name in _scripts


def load_file_function(target: str | Path, name: str | None = None) -> Callable[..., Any]:
    """Return the function that `target` names.

    The directory of the script (or the current one, for a module) is on sys.path only while it loads.

    Args:
        target: ``file.py::func`` or ``package.module::func``; with `name`, only what is before the ``::``.

    Raises:
        UsageError: no such file, module or function, or loading it failed.
    """
    place, separator, name = str(target).rpartition("::") if name is None else (str(target), "::", name)
    if not separator or not place or not name:
        raise UsageError(
            f"{str(target)!r} does not name a function",
            "it has no '::'",
            "write FILE.py::FUNCTION or PACKAGE.MODULE::FUNCTION",
            code="bad-target",
        )
    module = _load_script(Path(place)) if place.endswith(".py") else _load_module(place)
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise UsageError(
            f"{place} has no function {name!r}",
            _candidates(module, name),
            "check the name after '::'",
            code="no-function",
        )
    return value  # type: ignore[no-any-return]


def _candidates(module: ModuleType, name: str) -> str:
    import difflib

    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, own, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"it has: {', '.join(sorted(own)[:10])}" if own else "it has no functions"


def _load_script(path: Path) -> ModuleType:
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"there is no file {str(path)!r}", "", "check the path before '::'", code="no-file") from error
    name = path.stem
    if _scripts.get(name) == resolved and name in sys.modules:
        return sys.modules[name]
    if not name.isidentifier() or name in sys.modules or name in sys.stdlib_module_names:
        name = "script_" + "".join(char if char.isalnum() else "_" for char in name)
        while name in sys.modules and _scripts.get(name) != resolved:
            name += "_"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} is no Python file", "", "name a .py file", code="no-file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _with_path(str(resolved.parent), lambda: spec.loader.exec_module(module) if spec.loader else None, str(path))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _scripts[name] = resolved
    return module


def _load_module(name: str) -> ModuleType:
    module: list[ModuleType] = []
    _with_path(str(Path.cwd()), lambda: module.append(importlib.import_module(name)), name)
    return module[0]


def _with_path(directory: str, load: Callable[[], object], what: str) -> None:
    """Run `load` with `directory` first on sys.path; take that entry away again."""
    sys.path.insert(0, directory)
    try:
        load()
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{what}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module {what!r}", str(error), "check the name before '::'", code="no-module"
            ) from error
        raise UsageError(
            f"loading {what} failed", f"{type(error).__name__}: {error}", "make it importable first", code="load-failed"
        ) from error
    finally:
        if directory in sys.path:
            sys.path.remove(directory)
