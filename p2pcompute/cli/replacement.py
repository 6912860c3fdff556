"""The command of a task: words in which ``{}`` and its relatives are replaced by the task's input.

``{}`` the input, ``{.}`` without extension, ``{/}`` basename, ``{//}`` directory, ``{/.}`` basename without extension,
``{1}`` ``{1.}`` … ``{-1}`` by column, ``{name}`` ``{name.}`` … by name, ``{#}`` number of the task from 1,
``{%}`` slot.
Anything else in braces is left alone.  A command without any of them gets the input appended.

Two forms.  ARGV: two or more words; no shell, the words are replaced one by one, and a word that is only ``{}`` becomes
one word for each column.  SHELL: one string for ``sh -c``; inputs are quoted for the place where they stand (bare, in
single or in double quotes), so that no input is ever read as shell code.  Where that cannot be done for certain (in
back-quotes, ``${…}``, here-documents, after a bare ``$`` or backslash) the command is refused.

Source: GNU parallel 20221122, %Global::replace; POSIX.1-2017 Shell Command Language, section 2.2 (quoting).
Deviations: a shell input in double quotes keeps its characters, where GNU parallel prints its backslashes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from p2pcompute.cli.inputs import Row
from p2pcompute.errors import UsageError

_TOKEN: Final = re.compile(r"\{([^{}]*?)(//|/\.|/|\.)?\}")
_SHELL_SIGNS: Final = re.compile(r"[\s|&;<>()$`\\\"'*?\[\]#~=!]")
_NAME: Final = re.compile(r"\{([A-Za-z_]\w*)(//|/\.|/|\.)?\}")
_AWK_WORDS: Final = ("exit", "getline", "next", "nextfile", "print")
"""Whole programs of awk, in braces."""
_SLOT: Final = "PARALLEL_JOBSLOT"
"""Set by the node that runs the task: only there the slot is known."""


def remove_extension(text: str) -> str:
    """{.}: "a/b.c" → "a/b"; "a.b/c" stays."""
    return re.sub(r"\.[^/.]*\Z", "", text)


def base_name(text: str) -> str:
    """{/}: "a/b.c" → "b.c"."""
    return text[text.rfind("/") + 1 :]


def directory_name(text: str) -> str:
    """{//}, by the rules of Perl's File::Basename: "a/b" → "a", "b" → ".", "a/b/" → "a", "/" → "/"."""

    def parse(path: str) -> tuple[str, str]:
        cut = path.rfind("/") + 1
        folder = path[:cut] or "./"
        return folder.rstrip("/") or "/", path[cut:]

    folder, name = parse(text)
    return folder if name else parse(folder)[0]


_OPERATIONS: Final[dict[str, Callable[[str], str]]] = {
    "": lambda text: text,
    ".": remove_extension,
    "/": base_name,
    "//": directory_name,
    "/.": lambda text: remove_extension(base_name(text)),
}


class Form(StrEnum):
    ARGV = "command"
    SHELL = "shell"


class _Place(StrEnum):
    """Where in a shell string a replacement stands."""

    BARE = "bare"
    SINGLE = "single"
    DOUBLE = "double"
    COMMENT = "comment"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Field:
    """A replacement string."""

    text: str
    """As typed."""
    subject: str
    """"" = all columns, a number, "#", "%", or a name."""
    operation: str
    place: _Place = _Place.BARE

    @property
    def is_positional(self) -> bool:
        """True when it stands for an input whatever the names are."""
        return self.subject == "" or re.fullmatch(r"-?[1-9]\d{0,8}", self.subject) is not None

    def values(self, row: Row, seq: int) -> list[str] | None:
        """Return what it stands for, one value a column for ``{}``; None when it is no replacement string here."""
        whole = self.text[1:-1]
        if whole in row.names:
            return [row.names[whole]]
        change = _OPERATIONS[self.operation]
        if self.subject == "":
            return [change(column) for column in row.columns]
        if self.is_positional:
            position = int(self.subject)
            index = position - 1 if position > 0 else len(row.columns) + position
            return [change(row.columns[index])] if 0 <= index < len(row.columns) else [""]
        if self.subject == "#" and not self.operation:
            return [str(seq)]
        if self.subject in row.names:
            return [change(row.names[self.subject])]
        return None

    @property
    def is_slot(self) -> bool:
        return self.text == "{%}"


Part = str | Field


def parse(text: str) -> list[Part]:
    """Return literal text and replacement strings in turn."""
    parts: list[Part] = []
    start = 0
    for match in _TOKEN.finditer(text):
        if match.start() > start:
            parts.append(text[start : match.start()])
        parts.append(Field(match[0], match[1], match[2] or ""))
        start = match.end()
    if start < len(text):
        parts.append(text[start:])
    return parts


def expand_list(text: str, row: Row, seq: int) -> list[str]:
    """Return the texts that `text` stands for: one for each column when it is only ``{}`` or ``{.}`` …"""
    parts = parse(text)
    if len(parts) == 1 and isinstance(parts[0], Field) and parts[0].subject == "":
        return parts[0].values(row, seq) or []
    return [_fill(parts, row, seq)]


def _fill(parts: Sequence[Part], row: Row, seq: int) -> str:
    out = []
    for part in parts:
        if isinstance(part, str):
            out.append(part)
            continue
        values = part.values(row, seq)
        out.append(part.text if values is None else " ".join(values))
    return "".join(out)


def unknown_names(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Return what looks like ``{name}`` in a command and is none, each once: it is left as it is, and may be meant so.

    Args:
        names: those that the inputs have.
    """
    found: dict[str, None] = {}
    for word in words:
        for match in _NAME.finditer(word):
            is_known = match[1] in names or match[0][1:-1] in names
            if not is_known and match[1] not in _AWK_WORDS and word[: match.start()][-1:] not in tuple("$%{\\"):
                found[match[0]] = None
    return list(found)


def choose_form(words: Sequence[str]) -> Form:
    """Return the form of a command: a single word with spaces or shell signs is for the shell."""
    if len(words) == 1 and _SHELL_SIGNS.search("".join(p for p in parse(words[0]) if isinstance(p, str))):
        return Form.SHELL
    return Form.ARGV


class Template:
    """A command to be filled in for each task.

    Args:
        words: the command as typed, at least one word; for SHELL they are joined by spaces.
        form: how it runs.

    Raises:
        UsageError: a replacement string stands where an input cannot be quoted safely.
    """

    def __init__(self, words: Sequence[str], form: Form) -> None:
        self.form = form
        if form is Form.SHELL:
            self._words = [_locate(parse(" ".join(words)))]
        else:
            self._words = [parse(word) for word in words]
        self._fields = [part for parts in self._words for part in parts if isinstance(part, Field)]
        self._has_slot = any(part.is_slot for part in self._fields)
        self._always_has_input = any(part.is_positional for part in self._fields)

    def _has_input(self, row: Row) -> bool:
        return self._always_has_input or any(
            part.text[1:-1] in row.names or part.subject in row.names or part.text in ("{#}", "{%}")
            for part in self._fields
        )

    def argv(self, row: Row, seq: int) -> list[str]:
        """Return what the node runs: the words, or one shell string."""
        if self.form is Form.SHELL:
            return [self._shell(row, seq)]
        words = self._expand(row, seq)
        if not self._has_slot:
            return words
        # The slot is known on the node only, so a shell puts it in.
        quoted = [shlex.quote(word).replace(_MARK, f"'\"${{{_SLOT}}}\"'") for word in words]
        return ["/bin/sh", "-c", "exec " + " ".join(quoted)]

    def text(self, row: Row, seq: int) -> str:
        """Return the command for people."""
        if self.form is Form.SHELL:
            return self._shell(row, seq)
        return " ".join(shlex.quote(word.replace(_MARK, "{%}")) for word in self._expand(row, seq))

    def _expand(self, row: Row, seq: int) -> list[str]:
        words: list[str] = []
        for parts in self._words:
            if len(parts) == 1 and isinstance(parts[0], Field) and parts[0].subject == "":
                words += parts[0].values(row, seq) or []
            else:
                words.append(
                    "".join(
                        _MARK
                        if isinstance(part, Field) and part.is_slot and "%" not in row.names
                        else _fill([part], row, seq)
                        for part in parts
                    )
                )
        if not self._has_input(row):
            words += row.columns
        return words

    def _shell(self, row: Row, seq: int) -> str:
        out = []
        for part in self._words[0]:
            if isinstance(part, str):
                out.append(part)
                continue
            values = part.values(row, seq)
            if values is not None:
                out.append(_quote(values, part))
            elif part.is_slot:
                out.append(f"'\"${{{_SLOT}}}\"'" if part.place is _Place.SINGLE else f"${{{_SLOT}}}")
            else:
                out.append(part.text)
        if not self._has_input(row) and row.columns:
            out.append(" " + _quote(row.columns, self._end))
        return "".join(out)

    @property
    def _end(self) -> Field:
        """The place after the last character, where inputs are appended."""
        *_, end = _locate([*self._words[0], " ", Field("{}", "", "")])
        assert isinstance(end, Field)
        if end.place in (_Place.SINGLE, _Place.DOUBLE):
            raise UsageError("a quotation mark of the command is not closed", "the input cannot be appended to it")
        return end


_MARK: Final = "\0slot\0"
"""Stands for {%} in a word until the command is built; no word can hold a NUL."""


# --- shell quoting ------------------------------------------------------------------------------------------------


def _quote(values: Sequence[str], field: Field) -> str:
    match field.place:
        case _Place.BARE:
            return " ".join(shlex.quote(value) for value in values)
        case _Place.SINGLE:
            return " ".join(values).replace("'", "'\"'\"'")
        case _Place.DOUBLE:
            return re.sub(r'([\\"$`])', r"\\\1", " ".join(values))
        case _Place.COMMENT:
            return " ".join(values).replace("\n", " ")
        case _Place.NEVER:
            raise UsageError(
                f"{field.text} stands where an input cannot be quoted safely",
                "in back-quotes, ${…}, a here-document, or right after $ or a backslash",
                "write it bare or in quotes, and $(…) for back-quotes",
                code="quoting",
            )


def _locate(parts: Sequence[Part]) -> list[Part]:
    """Return the parts of a shell string with the place of each replacement string."""
    scanner = _Scanner()
    out: list[Part] = []
    text = "".join(part for part in parts if isinstance(part, str))
    # The ")" of a case pattern inside $( ) looks like its end.
    is_doubtful = re.search(r"\bcase\b", text) is not None and "$(" in text
    for part in parts:
        if isinstance(part, str):
            scanner.read(part)
            out.append(part)
        else:
            place = _Place.NEVER if is_doubtful else scanner.place()
            out.append(Field(part.text, part.subject, part.operation, place))
            scanner.previous = "x"
    return out


class _Scanner:
    """Follows the quoting of a shell string, character by character.

    The stack holds what is open: "'" and '"' quotes, "(" a command substitution, "{" a parameter expansion, "`" and
    "#" a comment; empty means bare.
    """

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._depths: list[int] = []
        """Open parentheses within each "("."""
        self._is_escaped = False
        self._heredoc = False
        """A here-document is announced; its text begins at the next newline."""
        self._in_heredoc = False
        self._less_than = 0
        self.previous = "\n"

    def place(self) -> _Place:
        """Return the place after what was read."""
        if self._is_escaped or self._in_heredoc or self.previous == "$" or {"`", "{", "$'"} & set(self._stack):
            return _Place.NEVER
        match self._stack[-1] if self._stack else "":
            case "'":
                return _Place.SINGLE
            case '"':
                return _Place.DOUBLE
            case "#":
                return _Place.COMMENT
        return _Place.BARE

    def read(self, text: str) -> None:
        for char in text:
            if self._is_escaped:
                self._is_escaped = False
                self.previous = "x"
            else:
                self._step(char)
                self.previous = char

    def _step(self, char: str) -> None:
        top = self._stack[-1] if self._stack else ""
        match top:
            case "'":
                if char == "'":
                    self._stack.pop()
            case "$'":
                if char == "\\":
                    self._is_escaped = True
                elif char == "'":
                    self._stack.pop()
            case "#":
                if char == "\n":
                    self._stack.pop()
                    self._newline()
            case "`":
                if char == "\\":
                    self._is_escaped = True
                elif char == "`":
                    self._stack.pop()
            case _:
                self._open_text(char, top)

    def _open_text(self, char: str, top: str) -> None:
        """Bare text, double quotes, a command substitution or a parameter expansion."""
        is_double = top == '"'
        if char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._stack.pop() if is_double else self._stack.append('"')
        elif char == "`":
            self._stack.append("`")
        elif self.previous == "$" and char in "({":
            self._stack.append(char)
            if char == "(":
                self._depths.append(1)
        elif is_double:
            return
        elif char == "'":
            self._stack.append("$'" if self.previous == "$" else "'")
        elif top == "{":
            if char == "}":
                self._stack.pop()
        else:
            self._bare(char, top)

    def _bare(self, char: str, top: str) -> None:
        self._less_than = self._less_than + 1 if char == "<" else 0
        if self._less_than:
            self._heredoc = self._heredoc or self._less_than == 2
        elif char == "#" and self.previous in " \t\n;|&()":
            self._stack.append("#")
        elif char == "\n":
            self._newline()
        elif top == "(" and char in "()":
            self._depths[-1] += 1 if char == "(" else -1
            if self._depths[-1] == 0:
                self._depths.pop()
                self._stack.pop()

    def _newline(self) -> None:
        self._in_heredoc = self._in_heredoc or self._heredoc
