"""What nodes ask one another about what they have: messages on a control channel, and the answers of many.  Pure.

A node is asked for everything that it knows of itself (DESCRIBE), or whether an expression is true of it (QUERY).  The
second one may wait at the asked node until it becomes true, so that a trigger costs a message, not a poll.  Which
applications a node has it looks up when it is asked about them: a question names them, and nobody sends lists of
programs around.

Every `parse_*` takes a decoded body from a peer and raises RemoteProtocolError unless it is exactly what is documented
here.  A peer of an earlier build answers with the error "unknown".
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
from p2pcompute.resources.expressions import Expression, check_condition, check_rank, compile_expression


class Message(IntEnum):
    DESCRIBE = 80
    """request: [[word, …]] → [attributes]: all that a node knows of itself; `has` is complete for these words."""
    QUERY = 81
    """request: [expression, rank or "", wait ms] → [verdict, attributes]; answered at once when the expression is true,
    else after the wait.  Attributes (b"" unless the verdict is TRUE) are all that is known without looking for more
    than both expressions name; `has` is complete for their words.  The asker computes the rank."""


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
    if not (isinstance(body, list) and len(body) == 1 and isinstance(body[0], list)):
        raise RemoteProtocolError("not a request for a description")
    words = body[0]
    if len(words) > QUESTION_WORDS_MAX or not all(
        isinstance(word, str) and len(word) <= QUESTION_WORD_CHARS_MAX for word in words
    ):
        raise RemoteProtocolError("not the words of a question")
    return tuple(words)


def parse_description(body: Any) -> bytes:
    """Return encoded attributes."""
    if not (isinstance(body, list) and len(body) == 1 and _is_attributes(body[0])):
        raise RemoteProtocolError("not a description")
    data: bytes = body[0]
    return data


def query_body(query: Query, wait_s: float) -> list[Any]:
    return [query.expression.text, "" if query.rank is None else query.rank.text, int(wait_s * 1000)]


def parse_query(body: Any) -> tuple[str, str, float]:
    """Return the texts of an expression and of a rank, not compiled, and the wait in seconds."""
    if not (
        isinstance(body, list)
        and len(body) == 3
        and all(isinstance(text, str) and len(text) <= EXPRESSION_CHARS_MAX for text in body[:2])
        and type(body[2]) is int
        and 0 <= body[2] <= QUESTION_WAIT_S_MAX * 1000
    ):
        raise RemoteProtocolError("not a query")
    return body[0], body[1], body[2] / 1000


def parse_verdict(body: Any) -> tuple[Verdict, bytes]:
    """Return the verdict and, when it is TRUE, encoded attributes."""
    if not (isinstance(body, list) and len(body) == 2 and type(body[0]) is int and body[0] in set(Verdict)):
        raise RemoteProtocolError("not a verdict")
    verdict = Verdict(body[0])
    if not _is_attributes(body[1]) or bool(body[1]) != (verdict is Verdict.TRUE):
        raise RemoteProtocolError("not the attributes of a verdict")
    return verdict, body[1]


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
    asked: int = 0
    """Requests to others, of both kinds."""
    silent: int = 0
    """Those that were not answered."""
    malformed: int = 0
    """Those that were answered with something that may not be said."""
    forgotten: int = 0
    """Descriptions of peers that were dropped for want of room."""
