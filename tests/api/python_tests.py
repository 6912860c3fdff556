"""Where CPython keeps its own tests of `concurrent.futures`."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
import unittest
from types import ModuleType

import cloudpickle

from p2pcompute.api import pickling

ROOT = "test.test_concurrent_futures"
DEBIAN = f"/usr/lib/python{sys.version_info.major}.{sys.version_info.minor}/test"


def python_tests() -> list[ModuleType]:
    """Return the modules with the tests; none when they are not installed.

    Of the running Python, or Debian's of the same version (libpython3.X-testsuite) where that came without them.
    """
    is_beside = False
    try:
        if importlib.util.find_spec(ROOT) is None:
            importlib.import_module("test").__path__.append(DEBIAN)
            is_beside = True
        root = importlib.import_module(ROOT)
    except (ImportError, unittest.SkipTest):
        return []
    if not hasattr(root, "__path__"):
        found = [root]
    else:
        found = [importlib.import_module(f"{ROOT}.{part.name}") for part in pkgutil.iter_modules(root.__path__)]
    for module in found if is_beside else ():
        cloudpickle.register_pickle_by_value(module)  # workers cannot import it
        pickling._libraries[module.__name__] = False
    return found
