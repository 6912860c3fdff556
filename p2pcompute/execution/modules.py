"""The user's own modules: which they are, what they import, and how to pack them.

A module is the user's own when its source is neither in the standard library nor in a site-packages directory nor
part of p2pcompute: other nodes cannot be expected to have it.
"""

from __future__ import annotations

import ast
import dis
import importlib.machinery
import io
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

_LIBRARIES: Final = tuple(
    str(Path(path).resolve()) + "/" for path in dict.fromkeys(sysconfig.get_paths().values()) if path
)
_NEVER: Final = ("__main__", "__mp_main__", "p2pcompute")
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
"""The same sources make the same zip."""


@dataclass(frozen=True, slots=True)
class UserModule:
    """A module of the user's, imported or not."""

    name: str
    path: Path
    is_package: bool

    @property
    def root(self) -> Path:
        """The directory that must be on sys.path to import it."""
        depth = self.name.count(".") + (1 if self.is_package else 0)
        return self.path.parents[depth]

    @property
    def archive_name(self) -> str:
        """Its place in a zip."""
        return self.name.replace(".", "/") + ("/__init__.py" if self.is_package else ".py")


@lru_cache(maxsize=4096)
def is_own_path(path: str) -> bool:
    """True for a source file that belongs to the user."""
    if not path.endswith(".py"):
        return False
    resolved = str(Path(path).resolve())
    in_packages = "/site-packages/" in resolved or "/dist-packages/" in resolved
    return not in_packages and not any(resolved.startswith(prefix) for prefix in _LIBRARIES)


def own_modules() -> dict[str, UserModule]:
    """Return the user's own modules that are imported now, by name."""
    found = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or name.partition(".")[0] in _NEVER or getattr(module, "__name__", None) != name:
            continue
        if is_own_path(path):
            found[name] = UserModule(name, Path(path), hasattr(module, "__path__"))
    return found


def find_own_module(name: str, roots: Iterable[Path]) -> UserModule | None:
    """Return the user's module of that name, imported or not, looked for in `roots` and sys.path."""
    if name.partition(".")[0] in _NEVER or name.partition(".")[0] in sys.stdlib_module_names:
        return None
    imported = sys.modules.get(name)
    path = getattr(imported, "__file__", None)
    if isinstance(path, str):
        return UserModule(name, Path(path), hasattr(imported, "__path__")) if is_own_path(path) else None
    search: list[str] | None = [*(str(root) for root in roots), *sys.path]
    spec = None
    for position in range(name.count(".") + 1):
        part = ".".join(name.split(".")[: position + 1])
        spec = importlib.machinery.PathFinder.find_spec(part, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not is_own_path(spec.origin):
        return None
    return UserModule(name, Path(spec.origin), spec.submodule_search_locations is not None)


# --- imports ------------------------------------------------------------------------------------------


def _import_names(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that an import statement may name (`from a import b`: a and a.b)."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            kept = parents[: len(parents) - node.level + 1]
            base = ".".join([*kept, base] if base else kept)
        if base:
            yield base
            for alias in node.names:
                yield f"{base}.{alias.name}"


def imports_of(module: UserModule, *, inner_only: bool = False) -> list[str]:
    """Return the modules that a source file may import, in order of appearance.

    Args:
        inner_only: only imports inside functions, which happen when those run.
    """
    try:
        tree = ast.parse(module.path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    scopes: list[ast.AST] = [tree]
    if inner_only:
        scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    names: dict[str, None] = {}
    for scope in scopes:
        for node in ast.walk(scope):
            names.update(dict.fromkeys(_import_names(node, package)))
    return list(names)


def imports_in_code(code: CodeType) -> list[str]:
    """Return the modules that a function's body imports when it runs."""
    names: dict[str, None] = {}
    last = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            last = str(instruction.argval)
            names[last] = None
        elif instruction.opname == "IMPORT_FROM":
            names[f"{last}.{instruction.argval}"] = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(imports_in_code(constant)))
    return list(names)


def referenced(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield (name, object) of what a function refers to: closure, defaults, globals."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue
    for value in function.__defaults__ or ():
        yield "a default value", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield name, value
    for name in global_names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def global_names(code: CodeType) -> list[str]:
    """Return the names that a function's code, inner functions included, may look up among its globals."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(global_names(constant)))
    return list(names)


def late_imports(function: Any) -> list[str]:
    """Return what a callable and the script functions that it refers to import when they run."""
    names: dict[str, None] = {}
    seen: dict[int, None] = {}
    waiting = [function]
    while waiting:
        item = waiting.pop()
        if isinstance(item, partial):
            item = item.func
        if isinstance(item, MethodType):
            item = item.__func__
        if id(item) in seen or isinstance(item, ModuleType):
            continue
        seen[id(item)] = None
        if isinstance(item, FunctionType):
            if item.__module__ != "__main__" and not is_own_path(item.__code__.co_filename):
                continue
            names.update(dict.fromkeys(imports_in_code(item.__code__)))
            waiting += [value for _, value in referenced(item) if callable(value)]
        elif isinstance(item, type):
            if item.__module__ == "__main__":
                waiting += [value for value in vars(item).values() if callable(value)]
        else:
            waiting.append(type(item))
    return list(names)


# --- packing ------------------------------------------------------------------------------------------


def with_imports(start: Iterable[UserModule], more: Iterable[str], roots: Iterable[Path]) -> dict[str, UserModule]:
    """Return modules, the packages they are in, and all own modules that they import, by name in sorted order.

    Args:
        more: names of further modules to start from; those that are not the user's own are left out.
        roots: directories to look in beside those of the modules.
    """
    found: dict[str, UserModule] = {}
    search = dict.fromkeys(roots)
    waiting = list(start)
    waiting += [module for name in more if (module := find_own_module(name, search)) is not None]
    while waiting:
        module = waiting.pop()
        if module.name in found:
            continue
        found[module.name] = module
        search[module.root] = None
        parent = module.name.rpartition(".")[0]
        for name in [*imports_of(module), *([parent] if parent else [])]:
            if name not in found and (inner := find_own_module(name, search)) is not None:
                waiting.append(inner)
    return dict(sorted(found.items()))


def source_bytes(modules: Iterable[UserModule]) -> int:
    """Return the size of all sources."""
    return sum(module.path.stat().st_size for module in modules if module.path.exists())


def pack(modules: Iterable[UserModule]) -> bytes:
    """Return a zip of sources, the same bytes for the same sources.

    Raises:
        OSError: a source cannot be read.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for module in modules:
            entry = zipfile.ZipInfo(module.archive_name, _ZIP_TIME)
            archive.writestr(entry, module.path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
