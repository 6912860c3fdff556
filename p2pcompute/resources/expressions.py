"""Expressions over what is known of a node and of a job, with "unknown" as a third value.  Pure.

`compile_expression` reads CEL and the shorthand of `notation`; `Expression.evaluate` gives True, False, or None when
the answer depends on something that is not known.  CEL's ``||`` and ``&&`` absorb errors from either side, and a name
that is missing is an error, so ``node.gpu.count > 0 || node.cpus >= 8`` is true of a machine that says nothing of its
GPUs.  ``has(node.gpu)`` asks whether something is known.

A `View` holds the values of one node and one job in the library's own form: made once, then each evaluation takes
0.5 to 2 µs (100 µs from Python values).

Source: https://github.com/google/cel-spec/blob/master/doc/langdef.md, section Logical Operators.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from typing import Any, Final, NoReturn

from p2pcompute.host.interfaces import Value
from p2pcompute.resources.notation import (
    ALIASES,
    JOB_EXAMPLES,
    LABEL_EXAMPLE,
    MEANT,
    NODE_EXAMPLES,
    Clause,
    Comparison,
    read_clauses,
    refuse,
)

_LIBRARY: Final = "cel.cel"
_PARSE_ERROR: Final = re.compile(r"ERROR: <input>:1:(\d+): (.*)")
_NEAR: Final = 0.75
"""Likeness from which an unknown name is taken for a misspelt one, whatever nodes say."""
_NEAR_IN_GROUP: Final = 0.85
"""The same in a group like ``gpu.``, to which plugins may add."""
_NEAR_UNHEARD: Final = 0.6
"""The same of a name that no node has."""
_MIXED: Final = "this mixes different kinds of values"
_GROUPS: Final = tuple(dict.fromkeys(name.partition(".")[0] for name in NODE_EXAMPLES if "." in name))


def _library() -> Any:
    """Return the CEL library's extension module.

    The package around it imports its command line with rich and prompt_toolkit: 180 ms of CPU and 30 MB, against 20 ms
    and 5 MB of the module alone.
    """
    module = sys.modules.get(_LIBRARY)
    if module is None:
        package = importlib.util.find_spec("cel")
        spec = PathFinder.find_spec(_LIBRARY, None if package is None else package.submodule_search_locations)
        if spec is None or spec.loader is None:
            raise ImportError("the package common-expression-language is not installed")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_LIBRARY] = module
    return module


class View:
    """What is known of one node, and of one job, as expressions see it.

    Args:
        node: values by dotted name; what is missing is unknown.
        job: values of ``job.*``.
    """

    __slots__ = ("context", "node")

    def __init__(self, node: Mapping[str, Value], job: Mapping[str, Value] | None = None) -> None:
        self.node = node
        self.context: Any = _library().Context({"node": _nested(node), "job": _nested(job or {})})


def _nested(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return maps in maps.  Of two names of which one is the beginning of the other, the first stands."""
    root: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        place: Any = root
        for group in groups:
            place = place.setdefault(group, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(last, _converted(value))
    return root


def _converted(value: Value) -> Any:
    """All numbers are doubles: CEL does not convert between kinds of numbers in sums."""
    if isinstance(value, tuple):
        return list(value)
    return float(value) if type(value) is int else value


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition or a rank, compiled.  Equal when the text is."""

    text: str
    """As written."""
    clauses: tuple[Expression, ...] = field(compare=False, repr=False)
    """The parts that must all be true; of a part, itself alone is meant and this is empty."""
    names: tuple[str, ...] = field(compare=False, repr=False)
    """Attributes of the node that it names, in order, each once."""
    job_names: tuple[str, ...] = field(compare=False, repr=False)
    clause: Clause | None = field(compare=False, repr=False)
    """Of a part: what it says."""
    _program: Any = field(compare=False, repr=False)

    @property
    def words(self) -> tuple[str, ...]:
        """Applications that it may ask for: the texts in parts that name `has`, in order, each once."""
        clauses = [part.clause for part in self.parts() if part.clause is not None and "has" in part.names]
        return tuple(dict.fromkeys(text for clause in clauses for text in clause.texts))

    @property
    def comparison(self) -> Comparison | None:
        """The one comparison that it consists of; None for anything else."""
        return None if self.clause is None else self.clause.comparison

    def parts(self) -> tuple[Expression, ...]:
        """Return the parts that must all be true, at least one."""
        return self.clauses or (self,)

    def evaluate(self, view: View | Mapping[str, Value]) -> bool | None:
        """Return whether it is true; None when that depends on what is not known, or it is not a condition.

        Args:
            view: a mapping of the node's values will do where it is asked once.
        """
        view = view if isinstance(view, View) else View(view)
        found: bool | None = True
        for part in self.clauses or (self,):
            value = part._run(view)
            if value is False:
                return False
            if value is not True:
                found = None
        return found

    def rank(self, view: View | Mapping[str, Value]) -> float | None:
        """Return its value as a number, true as 1 and false as 0; None when it is not known."""
        view = view if isinstance(view, View) else View(view)
        if self.clauses:
            value: Any = self.evaluate(view)
        else:
            value = self._run(view)
        return float(value) if isinstance(value, bool | int | float) and not math.isnan(value) else None

    def why_unknown(self, view: View) -> str:
        """Return why a part is neither true nor false, in words; empty when it is."""
        value = self._run(view)
        if isinstance(value, bool):
            return ""
        missing = [name for name in self.names if not is_heard(name, view.node)]
        if missing:
            return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not known"
        return "it mixes different kinds of values" if isinstance(value, BaseException) else "it is not a condition"

    def _run(self, view: View) -> Any:
        """Return what the library says, an exception for an error."""
        return _guarded(self._program.execute, view.context)


def _guarded(call: Callable[[Any], Any], argument: Any) -> Any:
    """Return what the library returns, or the exception that it raises.

    A panic in it would be a BaseException.  None is known; but no text of a peer may end a node.
    """
    try:
        return call(argument)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of the library is one: no text of a peer may end a node
        return error


def is_heard(name: str, values: Collection[str]) -> bool:
    """Return whether an attribute, or a group of some, is among names."""
    return name in values or any(known.startswith(name + ".") for known in values)


def compile_expression(text: str) -> Expression:
    """Return the expression that `text` is.

    Raises:
        UsageError: not an expression, or beyond a limit; it points at the column.
    """
    parts = []
    for clause in read_clauses(text):
        program = _compile(text, clause)
        parts.append(Expression(clause.text, (), clause.names, clause.job_names, clause, program))
    if len(parts) == 1:
        only = parts[0]
        return Expression(text.strip(), (), only.names, only.job_names, only.clause, only._program)
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    job_names = tuple(dict.fromkeys(name for part in parts for name in part.job_names))
    return Expression(text.strip(), tuple(parts), names, job_names, None, None)


def _compile(text: str, clause: Clause) -> Any:
    program = _guarded(_library().compile, clause.cel)
    if isinstance(program, BaseException):
        _refuse_parse_error(text, clause, str(program))
    return program


def _refuse_parse_error(text: str, clause: Clause, message: str) -> NoReturn:
    found = _PARSE_ERROR.search(message)
    if found is None:
        refuse(text, clause.start, "this is not an expression")
    at, why = clause.place(int(found[1]) - 1), found[2]
    if at >= len(text.rstrip()) or "<EOF>'" in why.partition("expecting")[0]:
        refuse(text, clause.place(len(clause.cel)), "an expression ends too early")
    missing = re.search(r"missing '(.)'", why)
    what = f"{missing[1]} is missing here" if missing else "this cannot stand here in an expression"
    fix = "text needs quotes: 'like this'" if text[at].isalpha() else None
    refuse(text, at, what, "sizes have no space: 8GiB" if re.match(r"[KMGTP]i?B?\b", text[at:]) else fix)


def check_names(expression: Expression) -> None:
    """Refuse, for the person who wrote it, what no node could ever answer.  Peers' expressions are not checked so:
    theirs may be newer.

    Raises:
        UsageError: a misspelt or impossible name, or a comparison of different kinds of values.
    """
    for part in expression.parts():
        assert part.clause is not None
        for name in part.names:
            _check_name(expression.text, name, part.clause.start)
        for name in part.job_names:
            if name not in JOB_EXAMPLES:
                near = difflib.get_close_matches(name.lower(), JOB_EXAMPLES, n=1, cutoff=0.5)
                fix = f"did you mean job.{near[0]}?" if near else f"there are: job.{', job.'.join(JOB_EXAMPLES)}"
                at = _find_name(expression.text, f"job.{name}", part.clause.start)
                refuse(expression.text, at, f"no node could have job.{name}", fix)


def check_condition(expression: Expression) -> None:
    """Refuse what cannot be true or false; see `check_names`.

    Raises:
        UsageError: it gives something else, on a machine of which everything is known.
    """
    check_names(expression)
    examples = _examples(expression)
    view = View(examples, JOB_EXAMPLES)
    for part in expression.parts():
        assert part.clause is not None
        _check_equality(expression.text, part.clause.comparison, examples)
        value = part._run(view)
        if isinstance(value, bool) or any(name not in examples for name in part.names):
            continue
        if isinstance(value, TypeError):
            kinds = [(name, examples[name]) for name in part.names]
            kinds += [(f"job.{name}", JOB_EXAMPLES[name]) for name in part.job_names]
            fix = ", ".join(f"{name} is {_kind(value)}" for name, value in kinds)
            label = next((name for name in part.names if name.startswith("label.")), "")
            if label:
                fix += f"; as a number: double({label})"
            if "%" in part.clause.cel:
                fix = "% takes whole numbers: int(cpus) % int(2) == 0"
            refuse(expression.text, _start(expression, part), _MIXED, fix or None)
        if isinstance(value, BaseException):
            refuse(expression.text, _start(expression, part), f"this cannot be computed: {str(value)[:100]}")
        what = f"this gives {_kind(value)}, not true or false"
        refuse(expression.text, _start(expression, part), what, "compare it with something, like cpus>=8")


def _examples(expression: Expression) -> dict[str, Value]:
    """Return what a machine says of which everything is known that an expression names, but for what plugins bring."""
    labels = [name for name in expression.names if name.startswith("label.")]
    return {**NODE_EXAMPLES, **dict.fromkeys(labels, LABEL_EXAMPLE)}


def _check_equality(text: str, comparison: Comparison | None, examples: Mapping[str, Value]) -> None:
    """Refuse a value that an attribute never equals: CEL calls them different, and so no node would fit, or each."""
    if comparison is None or comparison.op not in ("==", "!=") or comparison.name not in examples:
        return
    kind = _kind(examples[comparison.name])
    if _kind(comparison.value) != kind:
        refuse(text, comparison.start, _MIXED, f"{comparison.name} is {kind}")


def check_rank(expression: Expression) -> None:
    """Refuse what gives neither a number nor true or false; see `check_names`.

    Raises:
        UsageError: it gives something else, on a machine of which everything is known.
    """
    check_names(expression)
    examples = _examples(expression)
    is_known = all(name in examples for name in expression.names)
    if is_known and expression.rank(View(examples, JOB_EXAMPLES)) is None:
        refuse(expression.text, 0, "a preference is a number or a condition", "for example: cpus, -load, or has=ffmpeg")


def _start(expression: Expression, part: Expression) -> int:
    """Where a part stands in the (stripped) text of its expression."""
    return max(0, expression.text.find(part.text))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list | tuple) else "no value"


def _check_name(text: str, name: str, start: int) -> None:
    if name in NODE_EXAMPLES or (name.startswith("label.") and _is_possible(name)):
        return
    if name in (*_GROUPS, "label"):
        members = [known for known in NODE_EXAMPLES if known.startswith(name + ".")] or ["label.NAME"]
        # has(node.gpu) asks for a group, and so does node["gpu"]; anything else means one of its members.
        if not re.search(rf"has\s*\(\s*(node\s*\.\s*)?{name}\s*\)|node\s*\[|\b{name}\s*\[", text):
            at = _find_name(text, name, start)
            refuse(text, at, f"node.{name} is several values", f"it is one of {', '.join(members)}")
        return
    if not _is_possible(name):
        _refuse_name(text, name, [*NODE_EXAMPLES, *ALIASES], start)
    known = [*NODE_EXAMPLES, *ALIASES, *(f"node.{known}" for known in NODE_EXAMPLES)]
    cutoff = _NEAR_IN_GROUP if name.partition(".")[0] in _GROUPS else _NEAR
    if difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
        _refuse_name(text, name, known, start)
    if "." not in name and re.search(rf"[=<>]\s*{re.escape(name)}\b", text):
        at = _find_name(text, name, start)
        refuse(text, at, f"{name} is no attribute of nodes", f"text needs quotes: '{name}'")


def names_of_some(names: Iterable[str]) -> list[str]:
    """Return those among names of attributes that not every node could say: labels, and what plugins bring."""
    return [name for name in names if name not in (*NODE_EXAMPLES, *_GROUPS)]


def nearest_name(name: str, heard: Iterable[str]) -> str:
    """Return what is probably meant by a name that no node has; empty when nothing is like it.

    Args:
        heard: names that nodes have, beside those that this build knows.
    """
    root, dot, _ = name.partition(".")
    for word in (name, root):
        if word in MEANT and not (dot and MEANT[word].startswith("label.")):  # site.rack may come with a plugin
            return MEANT[word]
    known = [*NODE_EXAMPLES, *ALIASES, *heard]
    if dot:  # every group may have a count: what comes first must be alike too
        known = [
            one for one in known if difflib.SequenceMatcher(None, root, one.partition(".")[0]).ratio() >= _NEAR_UNHEARD
        ]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_NEAR_UNHEARD)), "")


def refuse_unheard(text: str, name: str, near: str) -> NoReturn:
    """Refuse a name that no node has and that is probably misspelt.

    Raises:
        UsageError: always; it points at the column.
    """
    refuse(text, _find_name(text, name, 0), f"no node here has {name}", f"did you mean {near}?")


def _is_possible(name: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*", name) is not None


def _find_name(text: str, name: str, start: int) -> int:
    pattern = r"(?<![\w.])(?:node\s*\.\s*)?" + r"\s*\.\s*".join(re.escape(part) for part in name.split(".")) + r"\b"
    found = re.compile(pattern).search(text, max(0, min(start, len(text)))) or re.search(pattern, text)
    return found.start() if found else 0


def _refuse_name(text: str, name: str, known: list[str], start: int) -> NoReturn:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else "those that a node has: p2pc peers NODE"
    refuse(text, _find_name(text, name, start), f"no node could have {name}", fix)
