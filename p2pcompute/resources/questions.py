"""What nodes ask one another about what they have: messages on a control channel, and the answers of many.  Pure.

A node is asked for everything that it knows of itself (DESCRIBE), or whether an expression is true of it (QUERY).  The
second one may wait at the asked node until it becomes true, so that a trigger costs a message, not a poll.  Which
applications a node has it looks up when it is asked about them: a question names them, and nobody sends lists of
programs around.

Every `parse_*` takes a decoded body from a peer and raises RemoteProtocolError unless it is what is documented here;
further fields are of a later version and passed over (`wire.fields`).  A peer of an earlier build answers with
the error "unknown".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.limits import (
    ATTRIBUTES_BYTES_MAX,
    EXPRESSION_CHARS_MAX,
    QUESTION_ASKED_MAX,
    QUESTION_WAIT_S_MAX,
    QUESTION_WORD_CHARS_MAX,
    QUESTION_WORDS_MAX,
)
from p2pcompute.resources.attributes import Attributes
from p2pcompute.resources.expressions import (
    Expression,
    check_condition,
    check_rank,
    compile_expression,
    is_heard,
    names_of_some,
    nearest_name,
)
from p2pcompute.wire.fields import listed


class Message(IntEnum):
    DESCRIBE = 80
    """request: [[word, …]] → [attributes]: all that a node knows of itself; `has` is complete for these words."""
    QUERY = 81
    """request: [expression, rank or "", wait ms] → [verdict, attributes]; answered at once when the expression is true,
    else after the wait.  Attributes (b"" unless the verdict is TRUE) are all that is known without looking for more
    than both expressions name; `has` is complete for their words.  The asker computes the rank."""
    CHANGED = 84
    """message: [[word, …], attributes], to a node that was told something about these words lately: an application has
    come or gone since.  All that a node knows of itself; `has` is complete for these words."""


class Verdict(IntEnum):
    """What an expression is of a node."""

    FALSE = 0
    TRUE = 1
    UNKNOWN = 2
    """It depends on something that the node does not know of itself."""

    @classmethod
    def of(cls, value: bool | None) -> Verdict:
        return cls.UNKNOWN if value is None else cls.TRUE if value else cls.FALSE


UNKNOWN_REQUEST: Final = "unknown"
"""Code of the error with which a peer answers a request that it does not know."""


def describe_body(words: Collection[str]) -> list[Any]:
    """Body of a DESCRIBE; no application has a name that is longer than may be asked for."""
    return [[word for word in dict.fromkeys(words) if len(word) <= QUESTION_WORD_CHARS_MAX][:QUESTION_WORDS_MAX]]


def parse_describe(body: Any) -> tuple[str, ...]:
    """Return the words."""
    return _parse_words(listed(body, 1, "describe")[0])


def parse_changed(body: Any) -> tuple[tuple[str, ...], bytes]:
    """Return the words and encoded attributes."""
    words, data = listed(body, 2, "change")
    if not _is_attributes(data):
        raise RemoteProtocolError("not a description")
    return _parse_words(words), data


def _parse_words(words: Any) -> tuple[str, ...]:
    if (
        not isinstance(words, list)
        or len(words) > QUESTION_WORDS_MAX
        or not all(isinstance(word, str) and len(word) <= QUESTION_WORD_CHARS_MAX for word in words)
    ):
        raise RemoteProtocolError("not the words of a question")
    return tuple(words)


def parse_description(body: Any) -> bytes:
    """Return encoded attributes."""
    (data,) = listed(body, 1, "description")
    if not _is_attributes(data):
        raise RemoteProtocolError("not a description")
    return bytes(data)


def query_body(query: Query, wait_s: float) -> list[Any]:
    return [query.expression.text, "" if query.rank is None else query.rank.text, int(wait_s * 1000)]


def parse_query(body: Any) -> tuple[str, str, float]:
    """Return the texts of an expression and of a rank, not compiled, and the wait in seconds."""
    expression, rank, wait_ms = listed(body, 3, "query")
    if not (
        all(isinstance(text, str) and len(text) <= EXPRESSION_CHARS_MAX for text in (expression, rank))
        and type(wait_ms) is int
        and 0 <= wait_ms <= QUESTION_WAIT_S_MAX * 1000
    ):
        raise RemoteProtocolError("not a query")
    return expression, rank, wait_ms / 1000


def parse_verdict(body: Any) -> tuple[Verdict, bytes]:
    """Return the verdict and, when it is TRUE, encoded attributes."""
    number, attributes = listed(body, 2, "verdict")
    if type(number) is not int or number not in set(Verdict):
        raise RemoteProtocolError("not a verdict")
    verdict = Verdict(number)
    if not _is_attributes(attributes) or bool(attributes) != (verdict is Verdict.TRUE):
        raise RemoteProtocolError("not the attributes of a verdict")
    return verdict, attributes


def _is_attributes(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) <= ATTRIBUTES_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question to many nodes, with its limits."""

    expression: Expression
    rank: Expression | None = None
    answers_max: int = 20
    time_s: float = 2.0
    age_s: float = 60.0
    """What a node said less long ago is as good as an answer."""
    asked_max: int = QUESTION_ASKED_MAX
    """Other nodes that may be asked: what it may cost.  0: only what is known here already."""

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes that it is about, each once."""
        return tuple(dict.fromkeys(name for part in self._parts for name in part.names))

    @property
    def words(self) -> tuple[str, ...]:
        """Applications that it may ask for, each once."""
        return tuple(dict.fromkeys(word for part in self._parts for word in part.words))

    @property
    def _parts(self) -> tuple[Expression, ...]:
        return (self.expression,) if self.rank is None else (self.expression, self.rank)


def condition(text: str) -> Expression:
    """Return what a person wants to be true of a node.

    Raises:
        UsageError: it cannot be true or false; the message points at the column.
    """
    expression = compile_expression(text)
    check_condition(expression)
    return expression


def ranking(text: str) -> Expression:
    """Return what a person wants to have most of.

    Raises:
        UsageError: it gives no number; the message points at the column.
    """
    expression = compile_expression(text)
    check_rank(expression)
    return expression


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A node of which an expression is true."""

    key: bytes
    attributes: Attributes
    age_s: float
    """Since the node said so."""
    rank: float | None = None
    is_silent: bool = False
    """It did not answer this time: what it said earlier is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The answer to a question to many nodes, and how far it can be relied on."""

    found: Sequence[Found]
    """Best rank first; without a rank in the order of the answers."""
    candidates: int
    """Nodes that might have been asked, this one included."""
    answered: int = 0
    """Nodes that said yes or no now or lately, this one included."""
    unknown: int = 0
    """Nodes that do not know what is asked."""
    silent: int = 0
    """Nodes that did not answer, or could not be reached."""
    too_old: int = 0
    """Nodes of an earlier build, which does not know the question."""
    not_asked: int = 0
    """Nodes left out because there were enough answers or no more time."""
    asked: int = 0
    """Nodes that were sent the question."""
    took_s: float = 0.0
    is_cut_off: bool = False
    """None of those that were asked has answered: those that fit by what they said earlier are in here, silent."""


def unheard_names(query: Query, findings: Findings) -> list[tuple[str, str]]:
    """Return what a question names and probably no node has, each with what may be meant, or "".

    Of a condition: when nobody could tell whether it is true.  Of a rank: when it is unknown of all that were found.
    """
    names: list[str] = []
    if findings.unknown and not findings.answered:
        names += names_of_some(query.expression.names)
    if query.rank is not None and findings.found and all(one.rank is None for one in findings.found):
        said = dict.fromkeys(name for one in findings.found for name in one.attributes)
        names += [name for name in query.rank.names if not is_heard(name, said)]
    unusual = names_of_some(names)
    return [(name, nearest_name(name, ()) if name in unusual else "") for name in dict.fromkeys(names)]


@dataclass(slots=True)
class ResourceCounters:
    """Counted over the life of a node."""

    described: int = 0
    """Requests for a description that were answered; so were the queries."""
    queried: int = 0
    refused: int = 0
    """Queries whose expression was malformed."""
    busy: int = 0
    """Queries refused because too many wait here already."""
    changed: int = 0
    """Peers that were told that an application has come or gone here."""
    flooded: int = 0
    """Changes of which peers told more often than they may: they are not listened to."""
    asked: int = 0
    """Requests to others, of both kinds."""
    silent: int = 0
    """Those that were not answered."""
    malformed: int = 0
    """Those that were answered with something that may not be said."""
    forgotten: int = 0
    """Descriptions of peers that were dropped for want of room."""
