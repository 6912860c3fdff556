#!/usr/bin/env python3
"""What the Python files of a tree define: a function for p2pc, and a table of what it found.

p2pc run --batch auto --send {} outline.py::measure :::: list > outline.jsonl
python3 outline.py outline.jsonl
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import warnings
from typing import Any


def measure(path: str) -> dict[str, Any]:
    """Return the size of a Python file, what it defines and its longest function.

    A file that is no Python is a finding, not a failure: the tests of Python itself have some.
    """
    with open(path, "rb") as file:
        source = file.read()
    found: dict[str, Any] = {
        "file": path,
        "sha256": hashlib.sha256(source).hexdigest(),
        "lines": source.count(b"\n"),
        "classes": 0,
        "functions": 0,
        "longest": None,
        "longest_lines": 0,
        "error": None,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, path)
    except (SyntaxError, ValueError) as error:
        return found | {"error": f"{type(error).__name__}: {error}"}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found["classes"] = sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    found["functions"] = len(functions)
    if functions:
        longest = max(functions, key=lambda node: (length(node), -node.lineno))
        found |= {"longest": longest.name, "longest_lines": length(longest)}
    return found


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    for name in ("lines", "classes", "functions"):
        print(f"{sum(one[name] for one in found):9,} {name} in {len(found):,} files")
    print("longest functions:")
    for one in sorted(found, key=lambda one: (-one["longest_lines"], one["file"]))[:5]:
        print(f"{one['longest_lines']:9,} lines: {one['longest']} in {one['file']}")
    print(f"{sum(one['error'] is not None for one in found):9,} files are no Python")


if __name__ == "__main__":
    main()
