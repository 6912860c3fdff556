"""Functions that travel as source: those with packages of their own, which the submitter may not have installed.

What arrives is the function itself, as if its module had been imported; it is loaded once for all tasks of a job.

`ship_source` is the submitter's side; the rest runs in worker processes and imports little.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from p2pcompute.execution.functions import ShippedFunction


class Source:
    """Pickled, it becomes the function that it names."""

    def __init__(self, name: str, function: str, file_name: str = "", text: bytes = b"") -> None:
        """Args:
        name: of the module.
        function: its name in there, with dots for attributes.
        file_name: of a script, for tracebacks; empty: the module is imported.
        text: of the script.
        """
        self._parts = (name, function, file_name, text)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return load, self._parts


def load(name: str, function: str, file_name: str, text: bytes) -> Any:
    """Return a function of a module; see `Source`.

    Raises:
        AttributeError: it has no such function.
    """
    value: Any = _run(name, file_name, text) if file_name else importlib.import_module(name)
    for part in function.split("."):
        value = getattr(value, part)
    return value


def _run(name: str, file_name: str, text: bytes) -> ModuleType:
    import linecache

    import cloudpickle

    module = ModuleType(name)
    module.__file__ = file_name
    lines = text.decode("utf-8", "replace").splitlines(keepends=True)
    linecache.cache[file_name] = (len(text), None, lines, file_name)
    sys.modules[name] = module
    try:
        exec(compile(text, file_name, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    cloudpickle.register_pickle_by_value(module)
    return module


def ship_source(target: str) -> ShippedFunction:
    """Return the function that ``file.py::name`` or ``package.module::name`` names, without importing anything.

    Raises:
        UsageError: there is no such file or module, it is no Python, or defines nothing of that name.
    """
    import ast

    import cloudpickle

    from p2pcompute.errors import UsageError
    from p2pcompute.execution.functions import ShippedFunction
    from p2pcompute.execution.modules import UserModule, find_own_module, imports_of, pack, with_imports

    place, _, function = target.rpartition("::")
    is_script = place.endswith(".py")
    module = UserModule(_module_name(place), Path(place), False) if is_script else find_own_module(place, [Path.cwd()])
    if module is None or not module.path.is_file():
        what = f"there is no file {place!r}" if is_script else f"there is no module {place!r} here"
        raise UsageError(what, "", "check what is before '::'", code="no-file" if is_script else "no-module")
    text = module.path.read_bytes()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"loading {place} failed", f"{type(error).__name__}: {error}", code="load-failed") from error
    defined = [name for node in tree.body for name in _names(node)]
    if function.partition(".")[0] not in defined:
        own = ", ".join(sorted(name for name in defined if not name.startswith("_"))[:10])
        raise UsageError(
            f"{place} has no function {function!r}",
            f"it has: {own}" if own else "it defines nothing",
            "check the name after '::'",
            code="no-function",
        )
    if is_script:
        source = Source(module.name, function, str(module.path), text)
        zipped = with_imports([], imports_of(module), [module.path.absolute().parent])
        zipped.pop(module.name, None)
    else:
        source, zipped = Source(module.name, function), with_imports([module], [], [Path.cwd()])
    return ShippedFunction(
        code=cloudpickle.dumps(source),
        modules_zip=pack(zipped.values()) if zipped else None,
        module_names=tuple(sorted({*zipped, module.name})),
    )


def _module_name(place: str) -> str:
    stem = Path(place).stem
    clean = "".join(char if char.isalnum() else "_" for char in stem)
    return f"script_{clean}"


def _names(node: Any) -> list[str]:
    import ast

    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, ast.If | ast.Try):
        return [name for child in [*node.body, *node.orelse] for name in _names(child)]
    return []
