"""The notation of expressions: words, limits, shorthand, and their translation to CEL.  Pure.

People write ``node.os == 'linux'`` (CEL) or ``os=linux`` (shorthand); peers send either, and theirs are hostile.  So
nothing that a person or a peer wrote is handed to the CEL library: the text is cut into words here, checked against
the limits, and written anew from the words, so that the library can see nothing that was not understood here.

Shorthand, anywhere in an expression:
    - ``node.`` may be left out before a known attribute, and ``mem`` ``disk`` ``gpu`` ``gpus`` ``slots`` stand for
      ``mem.total`` ``disk.free`` ``gpu.count`` ``gpu.count`` ``slots.total``;
    - ``=`` is ``==``; after ``=`` and ``!=`` text needs no quotes: ``os=linux``, ``name!=lab-7``;
    - comparing a list with text asks whether the list has it: ``has=ffmpeg`` is ``'ffmpeg' in node.has``;
    - sizes are numbers: ``mem>=8GiB`` (powers of 1,024, as everywhere in p2pcompute);
    - all numbers are doubles, so that ``load * 2`` and ``mem.free / cpus`` need no conversion.

Limits, from measurements of common-expression-language 0.10: nested loops cost 0.4 µs per innermost step and grow with
the power of their depth, ``map`` multiplies memory, ``(a{100}){100}`` and ``\\w`` in regular expressions cost 9 ms and
0.5 ms each time.  Hence: no loop inside a loop, no ``map``, no braces, few and short literal patterns without counts.

Source: https://github.com/google/cel-spec/blob/master/doc/langdef.md, section Syntax.
Deviations: no comments, byte strings, maps, messages, triple quotes, durations and timestamps.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from p2pcompute.config import parse_size
from p2pcompute.errors import UsageError
from p2pcompute.host.interfaces import Value
from p2pcompute.limits import (
    EXPRESSION_CHARS_MAX,
    EXPRESSION_DEPTH_MAX,
    EXPRESSION_LOOPS_MAX,
    EXPRESSION_PATTERN_CHARS_MAX,
    EXPRESSION_PATTERN_ESCAPES_MAX,
    EXPRESSION_PATTERNS_MAX,
)

NODE_EXAMPLES: Final[Mapping[str, Value]] = {
    "id": "K7QD-3MZF",
    "name": "atlas",
    "version": "1.0.0",
    "accepts": "job.cpus <= 4",
    "os": "linux",
    "arch": "x86_64",
    "cpus": 8.0,
    "mem.total": 2**34,
    "mem.free": 2**33,
    "disk.total": 2**38,
    "disk.free": 2**37,
    "gpu.count": 1,
    "gpu.mem": 2**33,
    "gpu.model": "A100",
    "python": ("3.11",),
    "has": ("ffmpeg",),
    "tag": ("lab",),
    "load": 0.5,
    "slots.total": 8,
    "slots.busy": 1,
    "slots.ends": 12.5,
    "slots.wait": 0.0,
    "queue": 0,
    "staging": 0,
    "isolation": "sandbox",
    "network": "full",
    "paused": "on battery",
    "battery": False,
    "portable": True,
    "owner.present": False,
    "bandwidth": 1e8,
}
"""Every attribute that this build knows (besides labels), with a value of its type.  Plugins add others."""
JOB_EXAMPLES: Final[Mapping[str, Value]] = {
    "name": "thumbs",
    "kind": "command",
    "submitter": "K7QD-3MZF",
    "cpus": 1.0,
    "mem": 2**30,
    "gpus": 0.0,
    "disk": 2**30,
}
"""Every ``job.`` name, with a value of its type; `mem` and `disk` are 0 when the job does not say."""
LABEL_EXAMPLE: Final = "1"
"""A label is text; this one can be read as a number."""
ALIASES: Final[Mapping[str, str]] = {
    "mem": "mem.total",
    "disk": "disk.free",
    "gpu": "gpu.count",
    "gpus": "gpu.count",
    "slots": "slots.total",
}
"""What a name alone stands for in shorthand."""
MEANT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("cpu", "core", "cores", "ncpus", "threads", "vcpus", "processors"), "cpus"),
    **dict.fromkeys(("ram", "memory"), "mem.total"),
    **dict.fromkeys(("storage", "space"), "disk.free"),
    **dict.fromkeys(("cuda", "accelerator"), "gpu.count"),
    "vram": "gpu.mem",
    **dict.fromkeys(("host", "hostname", "node"), "name"),
    **dict.fromkeys(("platform", "system"), "os"),
    **dict.fromkeys(("architecture", "machine", "isa"), "arch"),
    **dict.fromkeys(("installed", "software", "apps"), "has"),
    **dict.fromkeys(("zone", "region", "room", "site"), "label.NAME"),
    **dict.fromkeys(("idle", "user", "present"), "owner.present"),
    **dict.fromkeys(("power", "charging"), "battery"),
    "speed": "bandwidth",
}
"""What people may mean by a name, or by the first part of one, that no node has."""
LOOPS: Final = ("all", "exists", "exists_one", "filter")
FUNCTIONS: Final = (
    *("has", "size", "matches", "contains", "startsWith", "endsWith", "int", "double", "string"),
    *LOOPS,
)
COMPARISONS: Final = ("==", "!=", "<", "<=", ">", ">=", "=")
_LITERALS: Final = ("true", "false", "null")
_ROOTS: Final = tuple(dict.fromkeys([name.partition(".")[0] for name in NODE_EXAMPLES] + ["label"]))
_OPEN: Final = {"(": ")", "[": "]"}
_NUMBER_MAX: Final = 1e300
_SHOWN_CHARS: Final = 76
"""Part of a long expression shown around an error."""

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<text>[rR]?(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
    |(?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?P<unit>[A-Za-z]*)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<op>&&|\|\||==|!=|<=|>=|[-<>=!+*/%?:.,()\[\]])""",
    re.VERBOSE,
)
_BARE: Final = re.compile(r"[ \t]*(\w[\w.+:/@-]*)(?=[ \t\r\n)]|&&|\|\||$)")
"""Text without quotes, after ``=`` or ``!=``."""
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "`": "`", "?": "?"}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    """name, number, text, bare (text without quotes, or what looks like it) or op."""
    text: str
    """As written; of a text, its content."""
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A clause of the simplest form, ``node.NAME OP VALUE``: what `explain` can phrase and relax."""

    name: str
    op: str
    """One of == != < <= > >= in, or "not in"; VALUE stands left of ``in``."""
    value: Value
    start: int
    """Where VALUE stands in the whole text, and where it ends."""
    end: int


@dataclass(frozen=True, slots=True)
class Clause:
    """One part of a conjunction."""

    text: str
    """As written."""
    start: int
    """Where it begins in the whole text."""
    cel: str
    places: tuple[tuple[int, int], ...]
    """(column in `cel`, column in the whole text), ascending."""
    names: tuple[str, ...]
    """Attributes of the node that it names, in order, each once."""
    job_names: tuple[str, ...]
    texts: tuple[str, ...]
    """Texts in it, like the applications that it asks for."""
    comparison: Comparison | None

    def place(self, column: int) -> int:
        """Return the place in the whole text of a column (from 0) of `cel`."""
        found = self.start
        for ours, theirs in self.places:
            if ours > column:
                break
            found = theirs
        return found if column < len(self.cel) else self.start + len(self.text)


def refuse(text: str, at: int, what: str, fix: str | None = None) -> NoReturn:
    """Refuse an expression, with a caret under the place.

    Raises:
        UsageError: always.
    """
    first = max(0, at - _SHOWN_CHARS // 2)
    shown = re.sub(r"\s", " ", text[first : first + _SHOWN_CHARS])
    where = f"column {at + 1} of this expression:\n{shown}\n{' ' * (at - first)}^"
    raise UsageError(what, where, fix, code="expression")


def read_clauses(text: str) -> tuple[Clause, ...]:
    """Return the parts that must all be true, at least one, translated to CEL.

    Raises:
        UsageError: beyond a limit, or not an expression; the error points at the place.
    """
    if len(text) > EXPRESSION_CHARS_MAX:
        what = f"an expression of {len(text)} characters is too long"
        raise UsageError(what, f"it may have {EXPRESSION_CHARS_MAX}", code="expression")
    tokens = _tokens(text)
    partners = _check(text, tokens)
    if not tokens:
        refuse(text, len(text), "an expression is empty", "for example: 'os=linux && mem>=8GiB'")
    return tuple(_translate(text, tokens, first, end, partners) for first, end in _split(text, tokens, partners))


# --- words ----------------------------------------------------------------------------------------


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    at = 0
    while at < len(text):
        bare = _BARE.match(text, at) if found and found[-1].text in ("=", "!=") else None
        if bare is not None and not _is_word(bare[1]):
            bare = None
        if bare is not None:
            found.append(Token("bare", bare[1], bare.start(1), bare.end()))
            at = bare.end()
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            _refuse_sign(text, at)
        if match["text"] is not None:
            found.append(Token("text", _unquote(text, match["text"], at), at, match.end()))
        elif match["number"] is not None:
            found.append(Token("number", match["number"] + match["unit"], at, match.end()))
        elif match["space"] is None:
            found.append(Token("name" if match["name"] else "op", match[0], at, match.end()))
        at = match.end()
    return found


def _is_word(bare: str) -> bool:
    """Whether it is meant as text, or as a number that may also be text; names and numbers are read as such."""
    root = bare.partition(".")[0]
    return root not in ("node", "job", *_LITERALS) and bare[0] not in "'\""


def _refuse_sign(text: str, at: int) -> NoReturn:
    sign = text[at]
    if sign in "'\"":
        refuse(text, at, "a text in an expression has no end", f"close it with another {sign}")
    if sign in "&|":
        refuse(text, at, f"a single {sign} in an expression means nothing", f"write {sign}{sign}")
    refuse(text, at, f"an expression cannot contain {sign!r}")


def _unquote(text: str, literal: str, at: int) -> str:
    if literal[0] in "rR":
        if "\\" + literal[1] in literal:
            refuse(text, at, "a raw text cannot contain its own quote", "use the other kind of quotes")
        return literal[2:-1]
    if "\\" not in literal:
        return literal[1:-1]

    def unescape(match: re.Match[str]) -> str:
        plain = _ESCAPES.get(match[1])
        if plain is None:
            where = at + 1 + match.start()
            refuse(text, where, f"\\{match[1]} means nothing in a text", "a backslash is written \\\\, or r'…' used")
        return plain

    return re.sub(r"\\(.)", unescape, literal[1:-1])


def _quote(value: str) -> str:
    """Return a CEL literal of a text: only letters, digits and plain signs as they are."""
    return '"' + "".join(_escaped(sign) for sign in value) + '"'


def _escaped(sign: str) -> str:
    code = ord(sign)
    if 32 <= code < 127 and sign not in "\"'\\`":
        return sign
    return f"\\U{code:08x}"


# --- limits ---------------------------------------------------------------------------------------


def _check(text: str, tokens: Sequence[Token]) -> dict[int, int]:
    """Check brackets and limits; return the index of the closing bracket for that of each opening one."""
    partners: dict[int, int] = {}
    opened: list[int] = []
    loops: list[int] = []
    """Indices at which the loops end that are open."""
    loop_count = pattern_count = 0
    for index, token in enumerate(tokens):
        if token.kind == "name" and _at(tokens, index + 1) == "(":
            if token.text not in FUNCTIONS:
                _refuse_function(text, token)
            if token.text in LOOPS and _at(tokens, index - 1) == ".":
                loop_count += 1
                if loops:
                    refuse(text, token.start, f"{token.text} inside another loop is not allowed")
                loops.append(len(opened))
            elif token.text in LOOPS:
                refuse(text, token.start, f"{token.text} needs a list before it", f"like has.{token.text}(x, x == 'a')")
            if token.text == "matches":
                pattern_count += 1
                if loops:
                    refuse(text, token.start, "matches inside a loop is not allowed")
        if token.kind != "op":
            continue
        if token.text in _OPEN:
            opened.append(index)
            if len(opened) > EXPRESSION_DEPTH_MAX:
                refuse(text, token.start, f"more than {EXPRESSION_DEPTH_MAX} brackets inside one another")
        elif token.text in _OPEN.values():
            if not opened or _OPEN[tokens[opened[-1]].text] != token.text:
                refuse(text, token.start, f"this {token.text} closes nothing")
            first = opened.pop()
            partners[first] = index
            if loops and loops[-1] == len(opened):
                loops.pop()
            if _at(tokens, first - 1) == "matches" and tokens[first - 1].kind == "name":
                _check_pattern(text, tokens[index - 1])
        if loop_count > EXPRESSION_LOOPS_MAX:
            refuse(text, token.start, f"more than {EXPRESSION_LOOPS_MAX} loops in an expression")
        if pattern_count > EXPRESSION_PATTERNS_MAX:
            refuse(text, token.start, f"matches more than {EXPRESSION_PATTERNS_MAX} times in an expression")
    if opened:
        token = tokens[opened[-1]]
        refuse(text, token.start, f"this {token.text} is never closed", f"a {_OPEN[token.text]} is missing")
    return partners


def _at(tokens: Sequence[Token], index: int) -> str:
    return tokens[index].text if 0 <= index < len(tokens) and tokens[index].kind != "text" else ""


def _refuse_function(text: str, token: Token) -> NoReturn:
    near = difflib.get_close_matches(token.text, FUNCTIONS, n=1)
    fix = f"did you mean {near[0]}?" if near else f"there are: {', '.join(FUNCTIONS)}"
    refuse(text, token.start, f"there is no function {token.text} in expressions", fix)


def _check_pattern(text: str, pattern: Token) -> None:
    if pattern.kind != "text":
        refuse(text, pattern.start, "the pattern of matches must be a text in quotes")
    if len(pattern.text) > EXPRESSION_PATTERN_CHARS_MAX:
        what = f"a pattern of {len(pattern.text)} characters is too long"
        refuse(text, pattern.start, what, f"it may have {EXPRESSION_PATTERN_CHARS_MAX}")
    if "{" in pattern.text:
        refuse(text, pattern.start, "a pattern cannot contain counts, { }", "repeat the part, or use + or *")
    if pattern.text.count("\\") > EXPRESSION_PATTERN_ESCAPES_MAX:
        refuse(text, pattern.start, f"more than {EXPRESSION_PATTERN_ESCAPES_MAX} backslashes in a pattern")
    if not pattern.text.isascii():
        refuse(text, pattern.start, "a pattern can contain ASCII only", "use . for other letters")


# --- structure ------------------------------------------------------------------------------------


def _split(text: str, tokens: Sequence[Token], partners: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the parts of the conjunction: cut at ``&&`` unless ``||`` or ``?`` binds more loosely."""
    first, end = 0, len(tokens)
    todo = [(first, end)]
    while todo:
        first, end = todo.pop()
        while end - first > 2 and partners.get(first) == end - 1 and tokens[first].text == "(":
            first, end = first + 1, end - 1
        cuts: list[int] = []
        index = first
        while index < end:
            token = tokens[index]
            if index in partners:
                index = partners[index]
            elif token.kind == "op" and token.text == "&&":
                cuts.append(index)
            elif token.kind == "op" and token.text in ("||", "?"):
                cuts = []
                break
            index += 1
        if not cuts:
            if first >= end:
                at = tokens[first].start if first < len(tokens) else len(text)
                refuse(text, at, "something is missing here", "&& needs a condition on both sides")
            yield first, end
            continue
        edges = [first - 1, *cuts, end]
        todo += reversed([(before + 1, after) for before, after in itertools.pairwise(edges)])


# --- translation ----------------------------------------------------------------------------------


class _Writer:
    """The CEL text under construction, and where its pieces come from."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self.places: list[tuple[int, int]] = []

    def add(self, piece: str, place: int) -> None:
        self.places.append((self._length, place))
        self._pieces.append(piece)
        self._length += len(piece) + 1

    @property
    def text(self) -> str:
        return " ".join(self._pieces)


def _translate(text: str, tokens: Sequence[Token], first: int, end: int, partners: Mapping[int, int]) -> Clause:
    writer = _Writer()
    names: dict[str, None] = {}
    job_names: dict[str, None] = {}
    bound = _bound_names(text, tokens, first, end, partners)
    comparison: Comparison | None = None
    index = first
    while index < end:
        token = tokens[index]
        if token.kind != "name" or token.text in (*_LITERALS, "in") or _at(tokens, index - 1) == ".":
            is_index = _at(tokens, index - 1) == "[" and index > 1 and _ends_operand(tokens[index - 2])
            writer.add(_plain(text, token, is_index=is_index), token.start)
            index += 1
            continue
        if token.text in bound or _at(tokens, index + 1) == "(":
            writer.add(token.text, token.start)
            index += 1
            continue
        is_group = _at(tokens, index - 1) == "(" and _at(tokens, index - 2) == "has"
        root, parts, after = _path(tokens, index, end, with_aliases=not is_group)
        if root == "node":
            if not parts:
                refuse(text, token.start, "node is a whole machine", "name one of its attributes, like node.cpus")
            names[".".join(parts)] = None
        elif not parts:
            refuse(text, token.start, "job is a whole job", "name one of its attributes, like job.cpus")
        else:
            job_names[".".join(parts)] = None
        name = ".".join(parts)
        written = _asks_membership(tokens, after, end, root, name)
        if written is not None:
            op, value, used = written
            writer.add(f"{op}( {_quote(value.text)} in {_selected(root, parts)} )", token.start)
            if first == index and used == end:
                comparison = Comparison(name, "not in" if op else "in", value.text, value.start, value.end)
            index = used
            continue
        writer.add(_selected(root, parts), token.start)
        if after < end and _at(tokens, after) in COMPARISONS and tokens[after].kind == "op":
            op = "==" if tokens[after].text == "=" else tokens[after].text
            writer.add(op, tokens[after].start)
            after += 1
            if after < end and tokens[after].kind != "op":
                value = tokens[after]
                literal = _value(text, value, op, root, name)
                if literal is not None:
                    writer.add(_literal(literal), value.start)
                    if first == index and after + 1 == end and root == "node":
                        comparison = Comparison(name, op, literal, value.start, value.end)
                    after += 1
                elif value.kind == "bare":
                    other = ALIASES.get(value.text, value.text)
                    names[other] = None
                    writer.add(_selected("node", other.split(".")), value.start)
                    after += 1
        index = after
    if comparison is None:
        comparison = _membership(tokens, first, end, names)
    start, stop = tokens[first].start, tokens[end - 1].end
    return Clause(
        text=text[start:stop],
        start=start,
        cel=writer.text,
        places=tuple(writer.places),
        names=tuple(names),
        job_names=tuple(job_names),
        texts=tuple(token.text for token in tokens[first:end] if token.kind in ("text", "bare")),
        comparison=comparison,
    )


def _bound_names(
    text: str, tokens: Sequence[Token], first: int, end: int, partners: Mapping[int, int]
) -> dict[str, None]:
    """Return the variables of the loops."""
    bound: dict[str, None] = {}
    for index in range(first, end):
        if tokens[index].kind != "name" or tokens[index].text not in LOOPS or index + 1 not in partners:
            continue
        variable = tokens[index + 2]
        if variable.kind != "name" or _at(tokens, index + 3) != ",":
            refuse(text, variable.start, f"{tokens[index].text} takes a name first", "like has.exists(x, x == 'a')")
        if variable.text in ("node", "job", "in", *_LITERALS):
            refuse(text, variable.start, f"{variable.text} cannot be the name of a loop", "call it x")
        bound[variable.text] = None
    return bound


def _path(tokens: Sequence[Token], index: int, end: int, *, with_aliases: bool) -> tuple[str, list[str], int]:
    """Return (node or job, names after it, index after them) of the path that begins at `index`."""
    words = [tokens[index].text]
    index += 1
    while index + 1 < end and _at(tokens, index) == "." and tokens[index + 1].kind == "name":
        if _at(tokens, index + 2) == "(":
            break
        words.append(tokens[index + 1].text)
        index += 2
    if words[0] in ("node", "job"):
        return words[0], words[1:], index
    if with_aliases and len(words) == 1 and words[0] in ALIASES:
        return "node", ALIASES[words[0]].split("."), index
    return "node", words, index


def _selected(root: str, parts: Sequence[str]) -> str:
    """Return CEL that selects an attribute; a name that CEL reserves is looked up as text."""
    return root + "".join(f'["{part}"]' if part in ("in", *_LITERALS) else f".{part}" for part in parts)


def _asks_membership(
    tokens: Sequence[Token], after: int, end: int, root: str, name: str
) -> tuple[str, Token, int] | None:
    """Return (negation, text, index after) when a list is compared with a text here."""
    if root != "node" or not isinstance(NODE_EXAMPLES.get(name), tuple) or after + 1 >= end:
        return None
    op, value = tokens[after], tokens[after + 1]
    if op.kind != "op" or op.text not in ("=", "==", "!="):
        return None
    is_word = value.kind in ("text", "bare") or (value.kind == "number" and op.text == "==")
    return ("!" if op.text == "!=" else "", value, after + 2) if is_word else None


def _value(text: str, token: Token, op: str, root: str, name: str) -> Value | None:
    """Return the literal that a token after a comparison is; None when it is an expression of its own.

    What text equals is text, also when it looks like a number (``name=7``); more than a number it is never.
    """
    example = (NODE_EXAMPLES if root == "node" else JOB_EXAMPLES).get(name)
    wants_text = op in ("==", "!=") and (isinstance(example, str) or (root == "node" and name.startswith("label.")))
    is_word = token.kind in ("bare", "number") or token.text in ("true", "false")
    if token.kind == "text" or (is_word and wants_text):
        return token.text
    if token.kind == "number" or (token.kind == "bare" and token.text[0].isdigit()):
        try:
            return _number(text, token)
        except UsageError:
            if token.kind == "bare" and example is None:
                return token.text
            raise
    if token.kind == "bare":
        # Of two names compared, as in load!=cpus, the second is a name; anything else is text.
        is_name = ALIASES.get(token.text, token.text) in NODE_EXAMPLES and example is not None
        return None if is_name else token.text
    if token.text in ("true", "false"):
        return token.text == "true"
    return None


def _number(text: str, token: Token) -> int | float:
    """Return the number of a literal like 8, 0.5, 0x10, 8u or 8GiB."""
    number: int | float
    try:
        if token.text[:2] in ("0x", "0X"):
            number = int(token.text, 16)
        elif token.text.rstrip("uU").isdigit():
            number = int(token.text.rstrip("uU"))
        elif token.text[-1].isalpha():
            number = parse_size(token.text)
        else:
            number = float(token.text)
    except (ValueError, UsageError):
        refuse(text, token.start, f"{token.text} is not a number or a size", "sizes are like 500M or 8GiB")
    if not abs(number) < _NUMBER_MAX:
        refuse(text, token.start, "this number is too large")
    return number


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quote(value)
    assert isinstance(value, int | float)
    return repr(float(value))


def _ends_operand(token: Token) -> bool:
    return (token.kind == "name" and token.text != "in") or (token.kind == "op" and token.text in (")", "]"))


def _plain(text: str, token: Token, *, is_index: bool) -> str:
    """Return CEL for a token by itself."""
    match token.kind:
        case "text":
            return _quote(token.text)
        case "number":
            number = _number(text, token)
            return repr(number) if is_index and isinstance(number, int) else repr(float(number))
        case "bare":
            return _quote(token.text)
    return "==" if token.text == "=" else token.text


def _membership(tokens: Sequence[Token], first: int, end: int, names: Mapping[str, None]) -> Comparison | None:
    """Return the comparison in ``'word' in node.name`` or ``!('word' in node.name)``."""
    op = "in"
    if end - first > 4 and [tokens[at].text for at in (first, first + 1, end - 1)] == ["!", "(", ")"]:
        first, end, op = first + 2, end - 1, "not in"
    if end - first < 3 or tokens[first].kind != "text" or _at(tokens, first + 1) != "in" or len(names) != 1:
        return None
    rest = "".join(token.text for token in tokens[first + 2 : end])
    name = next(iter(names))
    if rest not in (f"node.{name}", name):
        return None
    return Comparison(name, op, tokens[first].text, tokens[first].start, tokens[first].end)
