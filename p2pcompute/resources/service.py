"""What this node has, what others have, and asking them.

Nothing is measured or sent until somebody asks.  A question goes to the nodes that are known, several at a time, until
there are enough answers or no more time; what a node says of itself is kept (`known`) and used again while it is fresh
enough for the next question.  Each node evaluates an expression itself, with values of that moment, so that those of
which it is not true send two bytes.

When an application comes or goes, those who were told otherwise lately (`told`), and are connected, hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from p2pcompute.errors import P2pcError, RemoteError, RemoteProtocolError, UsageError
from p2pcompute.host.interfaces import RUNTIMES, Address, Attribute, Attributes, Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.ids import format_device_id
from p2pcompute.limits import (
    ATTRIBUTE_WORDS_MAX,
    INDEX_WANT_MAX,
    QUESTION_ASKED_MAX,
    QUESTION_LANES,
    QUESTION_WAIT_S_MAX,
    QUESTION_WORDS_MAX,
    QUESTIONS_WAITING_MAX,
    QUESTIONS_WAITING_PER_PEER_MAX,
    RATE_SOURCES_MAX,
)
from p2pcompute.resources.attributes import decode_attributes, encode_attributes, values
from p2pcompute.resources.expressions import Expression, compile_expression
from p2pcompute.resources.known import HAS, Knowledge, KnownNodes
from p2pcompute.resources.questions import (
    UNKNOWN_REQUEST,
    Findings,
    Found,
    Message,
    Query,
    ResourceCounters,
    Verdict,
    describe_body,
    parse_changed,
    parse_describe,
    parse_description,
    parse_query,
    parse_verdict,
    query_body,
)
from p2pcompute.resources.told import Told
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.transport.rate import TokenBuckets

DESCRIBE_S: Final = 5.0
"""Wait for a description: the first one of a node tries its container engines."""
QUERY_S: Final = 5.0
"""The same for a verdict, beyond the wait that was asked for."""
OWN_S_MIN: Final = 0.5
"""This node is waited for at least so long: however little time there is, it costs no message to know of it."""
WATCH_S: Final = 1.0
"""How often a waiting query is evaluated again."""
WATCH_AGAIN_S: Final = 2.0
"""Least time between two questions of one lane of a trigger."""
SILENT_AGAIN_S: Final = 5.0
"""Pause of a trigger after a node that does not answer."""
_NAMED_PER_ANSWER: Final = 2
"""Nodes that an index is asked for, for each answer that is wanted: it does not know what changes from hour to hour."""
_INDEX_TIME_SHARE: Final = 0.5
"""Of the time of a question, at most so much goes into finding out whom to ask."""
HAS_LIFETIME_S: Final = 300.0
"""How long it may be believed that an application is there, or is not, where no change is told."""
CHANGE_LOOK_S: Final = 2.0
"""How often it is looked whether an application has come or gone, while somebody believes what was said: the probe
remembers for four seconds what it found."""
CHANGES_BURST: Final = 4
"""A node tells of changes once in CHANGE_LOOK_S: that often it is listened to, and so many at once where they were held
up on the way.  Each has the scheduler look for work."""

Peers = Mapping[bytes, Sequence[Address]]
Candidate = tuple[bytes, Sequence[Address]]
"""A node that may be asked, and where."""
Index = Callable[[Sequence[Expression], int, float], Awaitable[list[Candidate]]]
"""Names up to so many nodes, within so many seconds, of which conditions may all be true: those worth asking first."""

assert QUESTION_WORDS_MAX + len(RUNTIMES) <= ATTRIBUTE_WORDS_MAX, "what is asked for fits an answer"


def _ignore(*_arguments: object) -> None:
    """Nobody listens."""


async def _no_index(_expressions: Sequence[Expression], _want: int, _time_s: float) -> list[Candidate]:
    """Nobody is named: all who are known are asked."""
    return []


@lru_cache(maxsize=256)
def _compiled(text: str) -> Expression:
    return compile_expression(text)


@dataclass(slots=True)
class _Tally:
    """What has come of a question so far."""

    found: list[Found]
    answered: int = 0
    unknown: int = 0
    silent: int = 0
    too_old: int = 0
    asked: int = 0
    heard: int = 0
    """Of those asked, how many answered anything at all."""
    mute: list[Candidate] = field(default_factory=list)
    """Those that did not."""


class Resources:
    """The part of a node that answers and asks questions about attributes."""

    def __init__(
        self,
        host: Host,
        channels: Channels,
        scope: TaskScope,
        *,
        own_key: bytes,
        facts: Callable[[], Attributes],
        peers: Peers,
    ) -> None:
        """Args:
        facts: what the node knows of itself without measuring: id, name, slots, labels.
        peers: who can be asked, and where; see `candidates`.
        """
        self._host = host
        self._channels = channels
        self._scope = scope
        self._own_key = own_key
        self._facts = facts
        self._peers = peers
        self._rng = host.rng.stream("resources")
        self.index: Index = _no_index
        self.silent: Callable[[], Collection[bytes]] = frozenset
        """Members that were not heard lately, peers or not: what they said holds for none of them without asking."""
        self.on_news: Callable[[], None] = _ignore
        """Called when another node says that an application has come or gone there."""
        self.on_own_change: Callable[[], None] = _ignore
        """Called when one has come or gone here, of those that somebody asked for lately."""
        self.known = KnownNodes()
        self._told = Told()
        self._changes = TokenBuckets(rate_per_s=1 / CHANGE_LOOK_S, burst=CHANGES_BURST, sources_max=RATE_SOURCES_MAX)
        self._is_looking = False
        self.counters = ResourceCounters()
        self._waiting: dict[bytes, int] = {}
        """Queries of each peer that wait here."""
        self._describing: dict[bytes, tuple[frozenset[str], asyncio.Task[Knowledge | P2pcError]]] = {}
        channels.on_request(Message.DESCRIBE, self._on_describe)
        channels.on_request(Message.QUERY, self._on_query)
        channels.on_message(Message.CHANGED, self._on_changed)

    # --- this node --------------------------------------------------------------------------------

    async def own(self, words: Sequence[str] = (), names: Collection[str] | None = None) -> dict[str, Attribute]:
        """Return what is known of this node now.

        Args:
            words: applications that matter; when they are too many or one is unanswerable, `has` is left out.
            names: attributes that matter; None: all.
        """
        found = {**await self._host.probe.attributes(names), **self._facts()}
        if len(words) > QUESTION_WORDS_MAX or (names is not None and HAS not in names):
            return found
        has = await self._host.probe.has(list(dict.fromkeys([*RUNTIMES, *words] if names is None else words)))
        if all(word in has for word in words):
            there = tuple(sorted(word for word, is_there in has.items() if is_there))
            found[HAS] = Attribute(there, self._host.clock.wall(), HAS_LIFETIME_S)
        return found

    async def _evaluate(self, query: Query) -> tuple[Verdict, Attributes]:
        attributes = await self.own(query.words, query.names)
        view = values(attributes, self._host.clock.wall())
        return Verdict.of(query.expression.evaluate(view)), attributes

    async def _on_describe(self, channel: Channel, body: Any) -> Any:
        words = parse_describe(body)
        attributes = await self.own(words)
        self.counters.described += 1
        self._note_told(channel.peer.key, words, attributes)
        return [encode_attributes(attributes, self._host.clock.wall())]

    async def _on_query(self, channel: Channel, body: Any) -> Any:
        text, rank, wait_s = parse_query(body)
        try:
            query = Query(expression=_compiled(text), rank=_compiled(rank) if rank else None)
        except UsageError:
            self.counters.refused += 1
            raise
        verdict, attributes = await self._evaluate(query)
        if wait_s and verdict is not Verdict.TRUE:
            with self._place(channel):
                verdict, attributes = await self._wait_until_true(query, wait_s, channel)
        self.counters.queried += 1
        if verdict is not Verdict.TRUE:
            return [int(verdict), b""]
        self._note_told(channel.peer.key, query.words, attributes)
        return [int(verdict), encode_attributes(attributes, self._host.clock.wall())]

    async def _wait_until_true(
        self, query: Query, wait_s: float, channel: Channel | None
    ) -> tuple[Verdict, Attributes]:
        """Evaluate now and then until it is true, time is up, or the asker has gone."""
        clock = self._host.clock
        until = clock.now() + wait_s
        while True:
            verdict, attributes = await self._evaluate(query)
            left_s = until - clock.now()
            if verdict is Verdict.TRUE or left_s <= 0 or not (channel is None or channel.is_open):
                return verdict, attributes
            await clock.sleep(min(WATCH_S, left_s))

    # --- telling what has changed -----------------------------------------------------------------

    def _note_told(self, key: bytes, words: Sequence[str], attributes: Attributes) -> None:
        """A node is told what is here: it hears of changes, as long as it believes that and is connected."""
        has = attributes.get(HAS)
        if has is None or not isinstance(has.value, tuple):
            return
        self._told.note(key, words, has.value, self._host.clock.now() + HAS_LIFETIME_S)
        if not self._is_looking:
            self._is_looking = True
            self._scope.spawn(self._look_for_changes(), "told")

    async def _look_for_changes(self) -> None:
        """Look now and then whether what others were told is still so, and tell them what is."""
        try:
            while True:
                await self._host.clock.sleep(CHANGE_LOOK_S)
                self._told.keep(self._host.clock.now(), lambda key: self._channels.get(key) is not None)
                if not len(self._told):
                    return
                outdated = self._told.outdated(await self._host.probe.has(self._told.words))
                if outdated:
                    self.on_own_change()
                for key, words in outdated:
                    await self._tell_change(key, words)
        finally:
            self._is_looking = False

    async def _tell_change(self, key: bytes, words: Sequence[str]) -> None:
        attributes = await self.own(words)
        channel = self._channels.get(key)
        if channel is None or HAS not in attributes:
            return
        self._note_told(key, words, attributes)
        self.counters.changed += 1
        channel.send(Message.CHANGED, [list(words), encode_attributes(attributes, self._host.clock.wall())])

    def _on_changed(self, channel: Channel, body: Any) -> None:
        words, data = parse_changed(body)
        if self.known.get(channel.peer.key) is None:
            return  # it is not asked for anything
        if not self._changes.take(channel.peer.installation.hex(), self._host.clock.now()):
            self.counters.flooded += 1
            return
        self._learn(channel.peer.key, data, words)
        self.on_news()

    # --- waiting ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self, channel: Channel) -> Iterator[None]:
        """Hold one of the places of queries that wait.

        Raises:
            P2pcError: there is none left (code "busy").
        """
        key = channel.peer.installation
        count = self._waiting.get(key, 0)
        if count >= QUESTIONS_WAITING_PER_PEER_MAX or sum(self._waiting.values()) >= QUESTIONS_WAITING_MAX:
            self.counters.busy += 1
            raise P2pcError("too many questions wait here", "", "ask again later", code="busy")
        self._waiting[key] = count + 1
        try:
            yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    # --- others -----------------------------------------------------------------------------------

    async def named(self, query: Query) -> list[Candidate]:
        """Return the nodes that an index of the group names for a question, if there is one: hints, not answers."""
        want = INDEX_WANT_MAX if query.rank is not None else _NAMED_PER_ANSWER * query.answers_max
        return await self.index([query.expression], want, query.time_s * _INDEX_TIME_SHARE)

    def candidates(self, query: Query, named: Sequence[Candidate] = ()) -> list[Candidate]:
        """Return who may be asked, in the order in which it is done: those of the index first, then open channels, then
        others at random.

        The one place that decides who is worth a question.
        """
        near = [channel.peer.key for channel in self._channels.all()]
        others = sorted(self._peers)
        self._rng.shuffle(others)
        there = dict(named)
        near = [key for key in near if key in self._peers or self.known.get(key) is not None]
        keys = dict.fromkeys([*there, *near, *others])
        keys.pop(self._own_key, None)
        return [(key, tuple(dict.fromkeys([*self._peers.get(key, ()), *there.get(key, ())]))) for key in keys]

    def forget(self, key: bytes) -> None:
        """Forget what a node said."""
        self.known.forget(key)

    async def describe(
        self, key: bytes, words: Sequence[str] = (), *, age_s: float = 0.0, timeout_s: float = DESCRIBE_S
    ) -> Knowledge:
        """Return what a node says of itself; requests to one node at the same time share one message.

        Args:
            words: applications to ask for.
            age_s: what it said less long ago will do, when that was about these words too.

        Raises:
            P2pcError: it cannot be reached or does not answer; or its build is too old (code "unknown").
        """
        knowledge, now = self.known.get(key), self._host.clock.now()
        words = words[:QUESTION_WORDS_MAX]
        if knowledge is not None and now - knowledge.heard_s < age_s and knowledge.words.issuperset(words):
            return knowledge
        if knowledge is not None:  # what was asked before stays known
            words = list(dict.fromkeys([*words, *sorted(knowledge.words)]))[:QUESTION_WORDS_MAX]
        wanted = frozenset(words)
        under_way = self._describing.get(key)
        if under_way is None or not wanted <= under_way[0]:
            task = self._scope.spawn(self._describe(key, words, timeout_s), "describe")
            under_way = self._describing[key] = wanted, task
            task.add_done_callback(lambda done: self._described(key, done))
        result = await asyncio.shield(under_way[1])
        if isinstance(result, P2pcError):
            raise result
        return result

    def _described(self, key: bytes, done: asyncio.Task[Any]) -> None:
        if key in self._describing and self._describing[key][1] is done:
            del self._describing[key]

    async def _describe(self, key: bytes, words: Sequence[str], timeout_s: float) -> Knowledge | P2pcError:
        """Ask for everybody who waits; an error is a result, because it may be that nobody does any more."""
        try:
            candidate = key, self._peers.get(key, ())
            answer = await self._ask(candidate, Message.DESCRIBE, describe_body(words), timeout_s)
            return self._learn(key, parse_description(answer), words)
        except RemoteProtocolError as error:
            self.counters.malformed += 1
            return error
        except P2pcError as error:
            return error

    async def _ask(self, candidate: Candidate, message: Message, body: Any, timeout_s: float) -> Any:
        """Send a request, over a new channel where there is none.

        Raises:
            P2pcError: no channel, no answer, or an error as answer.
        """
        self.counters.asked += 1
        try:
            async with self._host.clock.timeout(timeout_s):
                channel = await self._channels.connect(*candidate)
                return await channel.request(message, body, timeout_s=timeout_s)
        except TimeoutError as error:
            self.counters.silent += 1
            raise P2pcError("the node does not answer", f"waited {timeout_s:g} s", None, code="no-answer") from error
        except RemoteError:
            raise
        except P2pcError:
            self.counters.silent += 1
            raise

    def _learn(self, key: bytes, data: bytes, words: Sequence[str]) -> Knowledge:
        attributes = decode_attributes(data, received_s=self._host.clock.wall())
        # What its key proves it may not say otherwise.
        attributes["id"] = Attribute(format_device_id(key), self._host.clock.wall())
        asked = frozenset(words) if HAS in attributes else frozenset[str]()
        knowledge = Knowledge(attributes, self._host.clock.now(), asked, len(data))
        self.counters.forgotten += self.known.put(key, knowledge)
        return knowledge

    # --- questions to many ------------------------------------------------------------------------

    async def find(self, query: Query) -> Findings:
        """Return nodes of which an expression is true, this one among them.

        With a rank everybody is asked while there is time, and the best are returned; else the first answers are.
        """
        began = self._host.clock.now()
        tally = _Tally([])
        silent = self.silent()
        lost: list[Candidate] = [(key, ()) for key in sorted(silent) if key not in self._peers]
        candidates = [*self.candidates(query), *lost]
        rest = self._from_known(query, candidates, tally, silent)
        knows_others = tally.answered > 0  # from those that were heard lately
        if query.asked_max and not self._is_enough(query, tally):
            judged = dict(candidates).keys() - dict(rest).keys()
            named = self.candidates(query, await self.named(query))
            candidates = list({**dict(lost), **dict(named)}.items())
            candidates.sort(key=lambda candidate: candidate[0] in silent)
            rest = [candidate for candidate in candidates if candidate[0] not in judged]
        waiting = deque(rest[: min(query.asked_max, QUESTION_ASKED_MAX)] if query.time_s > 0 else ())
        lane_count = min(QUESTION_LANES, len(waiting))
        scope = TaskScope("find")
        try:
            own = scope.spawn(self._ask_self(query, tally), "own")
            lanes = [scope.spawn(self._lane(query, waiting, tally), "lane") for _ in range(lane_count)]
            with contextlib.suppress(TimeoutError):
                async with self._host.clock.timeout(began + query.time_s - self._host.clock.now()):
                    for lane in lanes:
                        await lane
            with contextlib.suppress(TimeoutError):
                async with self._host.clock.timeout(max(OWN_S_MIN, began + query.time_s - self._host.clock.now())):
                    await own
        finally:
            await scope.close()
        is_cut_off = tally.asked > 0 and not tally.heard and not knows_others
        if is_cut_off:
            self._add_old(query, candidates, tally)
        elif not self._is_enough(query, tally):
            self._add_old(query, [one for one in tally.mute if one[0] in silent], tally, query.age_s)
        found = tally.found
        if query.rank is not None:
            found = sorted(found, key=lambda item: (item.is_silent, item.rank is None, -(item.rank or 0.0)))
        return Findings(
            found=found[: query.answers_max],
            candidates=1 + len(candidates),
            answered=tally.answered,
            unknown=tally.unknown,
            silent=tally.silent,
            too_old=tally.too_old,
            not_asked=1 + len(candidates) - tally.answered - tally.unknown - tally.silent - tally.too_old,
            asked=tally.asked,
            took_s=self._host.clock.now() - began,
            is_cut_off=is_cut_off,
        )

    def _is_enough(self, query: Query, tally: _Tally) -> bool:
        return query.rank is None and len(tally.found) >= query.answers_max

    async def _ask_self(self, query: Query, tally: _Tally) -> None:
        verdict, attributes = await self._evaluate(query)
        if not self._is_enough(query, tally):
            self._count(query, tally, self._own_key, verdict, attributes, 0.0)

    def _from_known(
        self, query: Query, candidates: Sequence[Candidate], tally: _Tally, silent: Collection[bytes]
    ) -> list[Candidate]:
        """Answer for those of whom enough is known and that were heard lately; return the others."""
        now, wall = self._host.clock.now(), self._host.clock.wall()
        rest = []
        for candidate in candidates:
            key = candidate[0]
            knowledge = self.known.get(key)
            verdict = Verdict.UNKNOWN
            if knowledge is not None and now - knowledge.heard_s < query.age_s:
                view = knowledge.view(wall, query.words, query.age_s)
                verdict = Verdict.of(query.expression.evaluate(view))
                if verdict is Verdict.TRUE and query.rank is not None and query.rank.rank(view) is None:
                    verdict = Verdict.UNKNOWN
            if knowledge is None or verdict is Verdict.UNKNOWN or key in silent:
                rest.append(candidate)
            elif not self._is_enough(query, tally):
                self._count(query, tally, key, verdict, knowledge.attributes, now - knowledge.heard_s)
        return rest

    async def _lane(self, query: Query, waiting: deque[Candidate], tally: _Tally) -> None:
        """Ask one after the other until there are enough answers."""
        while waiting and not self._is_enough(query, tally):
            await self._ask_one(query, waiting.popleft(), tally)

    async def _ask_one(self, query: Query, candidate: Candidate, tally: _Tally) -> None:
        """Ask one node.  Cancelled because time is up: it counts as silent."""
        tally.asked += 1
        is_over = False
        try:
            verdict, knowledge = await self._query(candidate, query, 0.0)
            is_over = True
        except RemoteError as error:
            tally.heard += 1
            is_over = True
            if error.code == UNKNOWN_REQUEST:
                tally.too_old += 1
            else:
                tally.unknown += 1
            return
        except P2pcError:
            return
        finally:
            if not is_over:
                tally.silent += 1
                tally.mute.append(candidate)
        tally.heard += 1
        attributes = {} if knowledge is None else knowledge.attributes
        self._count(query, tally, candidate[0], verdict, attributes, 0.0)

    async def _query(self, candidate: Candidate, query: Query, wait_s: float) -> tuple[Verdict, Knowledge | None]:
        """Ask one node; what it says of itself is kept.

        Raises:
            P2pcError: as `_ask`, or malformed.
        """
        answer = await self._ask(candidate, Message.QUERY, query_body(query, wait_s), wait_s + QUERY_S)
        try:
            verdict, data = parse_verdict(answer)
            return verdict, self._learn(candidate[0], data, query.words) if data else None
        except RemoteProtocolError:
            self.counters.malformed += 1
            raise

    def _count(
        self, query: Query, tally: _Tally, key: bytes, verdict: Verdict, attributes: Attributes, age_s: float
    ) -> None:
        if verdict is Verdict.UNKNOWN:
            tally.unknown += 1
            return
        tally.answered += 1
        if verdict is Verdict.TRUE:
            tally.found.append(self._found(query, key, attributes, age_s))

    def _found(self, query: Query, key: bytes, attributes: Attributes, age_s: float) -> Found:
        rank = None
        if query.rank is not None:
            rank = query.rank.rank(values(attributes, self._host.clock.wall()))
        return Found(key=key, attributes=attributes, age_s=age_s, rank=rank)

    def _add_old(self, query: Query, candidates: Sequence[Candidate], tally: _Tally, age_s: float = math.inf) -> None:
        """Add those that do not answer and fit by what they said no longer ago than this."""
        now = self._host.clock.now()
        there = {item.key for item in tally.found}
        for key, _addresses in candidates:
            knowledge = self.known.get(key)
            if knowledge is None or key in there or now - knowledge.heard_s >= age_s:
                continue
            view = knowledge.view(self._host.clock.wall(), query.words)
            if query.expression.evaluate(view):
                found = self._found(query, key, knowledge.attributes, now - knowledge.heard_s)
                tally.found.append(replace(found, is_silent=True))

    async def when(self, expression: Expression) -> Found:
        """Return a node of which an expression is true, as soon as there is one.  Cancelled: nobody is asked further.

        Up to QUESTION_LANES nodes are watched at the same time: the question waits there.  When there are more, they
        are asked in turn.
        """
        scope = TaskScope("when")
        watch = _Watch(self, Query(expression=expression), scope)
        try:
            scope.spawn(watch.own(), "own")
            scope.spawn(watch.others(), "others")
            return await watch.found
        finally:
            await scope.close()


class _Watch:
    """One trigger: which node is asked next, and the first that fits."""

    def __init__(self, resources: Resources, query: Query, scope: TaskScope) -> None:
        self._resources = resources
        self._clock = resources._host.clock
        self._query = query
        self._scope = scope
        self._named: list[Candidate] = []
        self._next: deque[Candidate] = deque()
        self._busy: dict[bytes, None] = {}
        self._useless: dict[bytes, None] = {}
        """Nodes that do not know the question."""
        self._freed = asyncio.Event()
        self.found: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

    def _fire(self, key: bytes, attributes: Attributes) -> None:
        if not self.found.done():
            self.found.set_result(Found(key=key, attributes=attributes, age_s=0.0))

    async def own(self) -> None:
        while True:
            verdict, attributes = await self._resources._wait_until_true(self._query, QUESTION_WAIT_S_MAX, None)
            if verdict is Verdict.TRUE:
                self._fire(self._resources._own_key, attributes)
                return

    async def others(self) -> None:
        """Ask, one after the other, all that are known or come to be known, again and again."""
        self._named = await self._resources.named(self._query)
        while True:
            while len(self._busy) < QUESTION_LANES and (candidate := self._take()) is not None:
                self._busy[candidate[0]] = None
                self._scope.spawn(self._ask(candidate), "lane")
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(WATCH_AGAIN_S):
                    await self._freed.wait()

    def _take(self) -> Candidate | None:
        """Return a node that nobody asks now."""
        if not self._next:
            found = self._resources.candidates(self._query, self._named)
            self._next.extend(item for item in found if item[0] not in self._busy and item[0] not in self._useless)
        return self._next.popleft() if self._next else None

    async def _ask(self, candidate: Candidate) -> None:
        """Ask one node, and hold its place for a while after it has answered nothing."""
        key = candidate[0]
        is_crowded = len(self._resources._peers) > QUESTION_LANES
        wait_s = 0.0 if is_crowded else QUESTION_WAIT_S_MAX / 2
        began = self._clock.now()
        try:
            _verdict, knowledge = await self._resources._query(candidate, self._query, wait_s)
            if knowledge is not None:
                self._fire(key, knowledge.attributes)
            else:
                await self._clock.sleep(max(0.0, began + WATCH_AGAIN_S - self._clock.now()))
        except P2pcError as error:
            if isinstance(error, RemoteError) and error.code == UNKNOWN_REQUEST:
                self._useless[key] = None
            else:
                await self._clock.sleep(SILENT_AGAIN_S)
        finally:
            del self._busy[key]
            self._freed.set()
