"""Parsers of what peers and local programs send: right values come back, wrong ones raise the documented error only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.daemon.calls import CALLS
from p2pcompute.daemon.uploads import JobBody, TaskLine, build_task, decode_body
from p2pcompute.errors import LocalProtocolError, P2pcError, RemoteProtocolError, UsageError
from p2pcompute.execution.spec import (
    InputFile,
    JobSpec,
    TaskKind,
    TaskPayload,
    decode_payload,
    decode_spec,
    encode_payload,
    encode_spec,
    is_safe_name,
)
from p2pcompute.host.interfaces import Address, BlobRef
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    CORES_MAX,
    INLINE_BYTES_MAX,
    MOMENT_S_MAX,
    MOMENT_S_MIN,
    NODES_CHOSEN_MAX,
    REQUIREMENT_CHARS_MAX,
    REQUIREMENTS_MAX,
    RUNTIME_S_MAX,
)
from p2pcompute.resources import questions
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.terms import JobTerms, open_job, parse_halt, seal_job
from p2pcompute.wire import cbor
from tests.fuzz.mutation import EDGES, Mutator

KEY = bytes(range(32))
SEEDS = st.integers(0, 2**32)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
NAMES = WORDS.filter(is_safe_name)
BLOBS = st.builds(BlobRef, st.binary(min_size=32, max_size=32), st.integers(0, 2**62))
FILES = st.lists(st.builds(InputFile, NAMES, BLOBS, st.integers(0, 0o777)), max_size=3).map(tuple)
LIMITS = st.floats(0, 1e14, allow_nan=False)
COUNTS = st.integers(0, 2**62 - 1)
ENVIRONMENTS = st.dictionaries(st.from_regex(r"[A-Za-z_]\w{0,9}", fullmatch=True), WORDS, max_size=3)
ADDRESSES = st.builds(
    Address, st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)), st.integers(1, 65535)
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=40), st.text(max_size=20),
        st.sampled_from([edge for edge in EDGES if not isinstance(edge, float)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=9),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(0, 9)), inner, max_size=5),
    ),
    max_leaves=20,
)  # fmt: skip
"""What may come out of `cbor.decode`."""

THIEF = Thief(KEY, KEY, b"boot", (3, 11), slots=2, want=3, request_id=1)
BODIES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "steal": (lambda body: messages.parse_steal(body, KEY, KEY), messages.steal_body(THIEF)),
    "grant": (
        lambda body: messages.parse_grant(body, KEY),
        [
            1,
            2,
            KEY,
            b"raw",
            KEY,
            [["127.0.0.1", 1], ["::1", 65535]],
            30_000,
            [[0, 0, 1, b"payload"], [1, 0, 1, b""]],
            4,
            True,
            5_000,
        ],
    ),
    "addresses": (messages.parse_addresses, [["127.0.0.1", 1], ["::1", 2]]),
    "ack": (messages.parse_ack, [1, True]),
    "unfit ack": (messages.parse_ack, [1, False, True]),
    "heartbeat": (messages.parse_heartbeat, [b"boot", KEY, [[KEY, [[0, 0, 1], [1, 0, 2]]]]]),
    "job indices": (messages.parse_job_indices, [[KEY, [1, 2, 3]], [KEY, []]]),
    "stop": (messages.parse_stop, [KEY, [1, 2], False]),
    "checkpoint": (messages.parse_checkpoint, [[KEY, 3, 0, 2, b"cookie"], [KEY, 4, 0, 1, [KEY, 1 << 20]]]),
    "tail asked": (messages.parse_tail_asked, [KEY, 3, 1, 0, 99]),
    "tail": (messages.parse_tail, [0, b"out", 5, b"err"]),
    "tail with progress": (messages.parse_tail, [0, b"out", 5, b"err", b"far", 9]),
    "printed": (messages.parse_printed, [[KEY, 3, 1, 0, b"out", 5, b"err"], [KEY, 4, 2, 0, b"", 0, b"err"]]),
    "coordinator": (messages.parse_coordinator, [KEY, 7]),
    "custody": (messages.parse_job_id, [KEY]),
    "sync": (messages.parse_sync, [KEY, b"ticket", 3, 0, 4, 1, 7, True, 5, 12, 10_000]),
    "synced": (
        messages.parse_synced,
        [
            7,
            False,
            [b"fact"],
            [[0, 0, 3, KEY, "ada", 1, b"o", b"p"]],
            0,
            [b"claims"],
            [[1, 0, 4, b"", "", 1, b"", b""]],
            1,
            [[0, [0, 2, [KEY], b"cookie"]], [1, [0, 1, [], [KEY, 1 << 20]]], [2, []]],
            12,
            True,
        ],
    ),
    "changed": (questions.parse_changed, [["ffmpeg"], b"\x82\x00\xa0"]),
    "describe": (questions.parse_describe, [["ffmpeg", "gcc"]]),
    "description": (questions.parse_description, [b"attributes"]),
    "query": (questions.parse_query, ["cpus>=8", "-load", 1500]),
    "verdict": (questions.parse_verdict, [1, b"attributes"]),
    "claims": (messages.parse_claims, {"job": KEY, "claims": [[0, 0, 1, "ok", KEY], [1, 0, 1, "failed", KEY]]}),
}


@pytest.mark.parametrize("name", BODIES)
def test_right_messages_are_read(name: str) -> None:
    parse, body = BODIES[name]
    assert parse(cbor.decode(cbor.encode(body))) is not None


@pytest.mark.parametrize("name", BODIES)
@given(value=VALUES)
def test_made_up_messages_raise_the_peers_error(name: str, value: Any) -> None:
    """Breaks when a parser trusts a type or a length: the exception would count as a bug of ours."""
    parse, _body = BODIES[name]
    try:
        parse(value)
    except RemoteProtocolError:
        return


@pytest.mark.parametrize("name", BODIES)
@given(seed=SEEDS)
def test_nearly_right_messages_raise_the_peers_error(name: str, seed: int) -> None:
    parse, body = BODIES[name]
    mutator = Mutator(seed)
    for _ in range(5):
        try:
            parse(mutator.value(body))
        except RemoteProtocolError:
            continue


TASKS = st.builds(GrantedTask, COUNTS, st.integers(0, 255), st.integers(0, 99), st.binary())


@given(
    grant_id=COUNTS, tasks=st.lists(TASKS, min_size=1, max_size=5),
    addresses=st.lists(ADDRESSES, max_size=8), lease_s=st.integers(0, 10**6),
)  # fmt: skip
def test_a_grant_arrives_as_it_was_sent(
    grant_id: int, tasks: list[GrantedTask], addresses: list[Address], lease_s: int
) -> None:
    grant = Grant(grant_id, 7, b"", KEY, KEY, float(lease_s), tuple(tasks))
    body = cbor.decode(cbor.encode(messages.grant_body(grant, b"raw", KEY, addresses)))
    assert messages.parse_grant(body, b"sender") == (grant, b"raw", addresses)


@given(slots=st.integers(1, 2**16), want=st.integers(1, 2**20), boot=st.binary(max_size=16))
def test_a_steal_arrives_as_it_was_sent(slots: int, want: int, boot: bytes) -> None:
    thief = msgspec.structs.replace(THIEF, boot=boot, slots=slots, want=want)
    assert messages.parse_steal(cbor.decode(cbor.encode(messages.steal_body(thief))), KEY, KEY) == thief


OPTIONAL_BLOBS = st.one_of(st.none(), st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 2**62)))
OUTCOMES = st.builds(
    Outcome, st.sampled_from(OutcomeStatus), value=st.binary(max_size=99), value_blob=OPTIONAL_BLOBS,
    stdout=st.binary(max_size=99), stdout_blob=OPTIONAL_BLOBS, stderr=st.binary(max_size=99),
    stderr_blob=OPTIONAL_BLOBS, exit_code=st.one_of(st.none(), st.integers(-255, 255)),
    signal=st.one_of(st.none(), st.integers(0, 64)),
    files=st.lists(
        st.builds(OutputFile, NAMES, st.binary(min_size=32, max_size=32), COUNTS, st.integers(0, 0o777)), max_size=3
    ).map(tuple),
    error=st.text(max_size=50), cause=st.sampled_from(["", "oom", "signal"]),
    started_wall=st.one_of(st.just(0.0), st.floats(MOMENT_S_MIN, MOMENT_S_MAX)),
    runtime_s=st.floats(1.0, RUNTIME_S_MAX), cpu_s=st.floats(0, CORES_MAX), peak_rss_bytes=COUNTS,
)  # fmt: skip


@given(outcome=OUTCOMES)
def test_an_outcome_arrives_as_it_was_sent(outcome: Outcome) -> None:
    again = messages.decode_outcome(messages.encode_outcome(outcome))
    assert again == outcome
    assert messages.output_digest(again) == messages.output_digest(outcome)
    assert all(ref.size >= 0 for ref in messages.outcome_blobs(again))


@given(outcome=OUTCOMES, seed=SEEDS)
def test_damaged_outcomes_raise_the_peers_error(outcome: Outcome, seed: int) -> None:
    raw, mutator = messages.encode_outcome(outcome), Mutator(seed)
    for _ in range(5):
        try:
            messages.decode_outcome(mutator.bytes(raw))
        except RemoteProtocolError:
            continue
    fields = cbor.decode(raw, allow_float=True)
    for _ in range(5):
        try:
            messages.decode_outcome(cbor.encode(mutator.value(fields)))
        except (RemoteProtocolError, LocalProtocolError):  # the second: a value that CBOR of ours does not hold
            continue


@given(outcome=OUTCOMES, started=LIMITS, runtime_s=LIMITS, cpu_s=LIMITS)
def test_times_that_cannot_be_are_cut(outcome: Outcome, started: float, runtime_s: float, cpu_s: float) -> None:
    """No digest covers them: a liar's would end the views of the job."""
    told = replace(outcome, started_wall=started, runtime_s=runtime_s, cpu_s=cpu_s)
    again = messages.decode_outcome(messages.encode_outcome(told))
    assert again.started_wall in (0.0, started)
    datetime.fromtimestamp(again.started_wall + again.runtime_s, UTC)
    assert again.cpu_s <= again.runtime_s * CORES_MAX


def test_an_outcome_over_a_limit_is_refused() -> None:
    too_long = messages.encode_outcome(Outcome(OutcomeStatus.OK, stdout=bytes(INLINE_BYTES_MAX + 1)))
    with pytest.raises(RemoteProtocolError):
        messages.decode_outcome(too_long)
    for name in ("../x", "/etc/x", "a//b", "", "a\0b", "a/."):
        bad = messages.encode_outcome(Outcome(OutcomeStatus.OK, files=(OutputFile(name, KEY, 1, 0o644),)))
        with pytest.raises(RemoteProtocolError):
            messages.decode_outcome(bad)


# --- jobs and tasks -------------------------------------------------------------------------------

ANY_SPECS = st.builds(
    JobSpec, kind=st.sampled_from(TaskKind), code=st.one_of(st.none(), BLOBS), modules=st.one_of(st.none(), BLOBS),
    share=FILES, env=ENVIRONMENTS, cpus=LIMITS, mem_bytes=st.one_of(st.none(), COUNTS),
    cpu_s=st.one_of(st.none(), LIMITS), timeout_s=st.one_of(st.none(), LIMITS),
    output_bytes_max=st.one_of(st.none(), COUNTS),
)  # fmt: skip
SPECS = ANY_SPECS.map(
    lambda spec: replace(spec, image="debian:12") if spec.kind is TaskKind.CONTAINER and spec.code is None else spec
)
PAYLOADS = st.builds(
    TaskPayload, args=st.binary(max_size=50), args_blob=st.one_of(st.none(), BLOBS), chunk=st.integers(0, 2**20),
    argv=st.lists(WORDS, max_size=4).map(tuple), stdin=st.binary(max_size=50), stdin_blob=st.one_of(st.none(), BLOBS),
    send=FILES, fetch=st.lists(NAMES, max_size=3).map(tuple), env=ENVIRONMENTS,
    inputs=st.lists(WORDS, max_size=3).map(tuple), key=st.binary(max_size=32), work_s=LIMITS,
)  # fmt: skip


@given(spec=SPECS, payload=PAYLOADS)
def test_a_task_arrives_as_it_was_sent(spec: JobSpec, payload: TaskPayload) -> None:
    assert decode_spec(encode_spec(spec)) == spec
    assert decode_payload(encode_payload(payload)) == payload


@given(spec=SPECS, payload=PAYLOADS, seed=SEEDS)
def test_damaged_tasks_raise_the_peers_error(spec: JobSpec, payload: TaskPayload, seed: int) -> None:
    """Breaks when a description could make a node crash, or name a file outside a task's directory."""
    mutator = Mutator(seed)
    for raw, decode in ((encode_spec(spec), decode_spec), (encode_payload(payload), decode_payload)):
        fields = cbor.decode(raw, allow_float=True)
        for number in range(6):
            try:
                data = mutator.bytes(raw) if number % 2 else cbor.encode(mutator.value(fields))
                found: Any = decode(data)
            except (RemoteProtocolError, LocalProtocolError):
                continue
            for file in (*getattr(found, "share", ()), *getattr(found, "send", ())):
                assert is_safe_name(file.name) and 0 <= file.mode <= 0o777 and len(file.blob.digest) == 32


@given(value=VALUES)
def test_made_up_tasks_raise_the_peers_error(value: Any) -> None:
    data = cbor.encode(value) if _is_encodable(value) else b""
    for decode in (decode_spec, decode_payload, messages.decode_outcome):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


def _is_encodable(value: Any) -> bool:
    try:
        cbor.encode(value)
    except LocalProtocolError:
        return False
    return True


CRYPTO = RealCrypto()
IDENTITY = Identity(CRYPTO, bytes(32))


@given(seed=SEEDS)
def test_signed_nonsense_is_no_job(seed: int) -> None:
    """A signature says who wrote it, not that it makes sense."""
    mutator = Mutator(seed)
    body = {
        "terms": {
            "name": "n", "retries": 1, "python": [3, 11], "halt": "soon,fail=1", "created_ms": 1, "slots_max": 2,
            "require": ["os=linux"], "prefer": ["-load"], "on": [bytes(32)], "not_on": [bytes(32)],
        },
        "spec": b"spec", "nonce": b"nonce", "delegation": None,
    }  # fmt: skip
    for _ in range(5):
        try:
            raw = IDENTITY.sign_envelope("p2pc/job", mutator.value(body))
        except LocalProtocolError:
            continue
        for data in (raw, mutator.bytes(raw)):
            try:
                open_job(CRYPTO, data, wall=1.0)
            except RemoteProtocolError:
                continue


def test_a_job_arrives_as_it_was_signed() -> None:
    terms = JobTerms(
        name="n", retries=0, python=(3, 11), local_only=True, slots_max=3, halt="now,done=5%", created_ms=5,
        require=("os=linux", "cpus>1"), prefer=("-load",), on=(b"k" * 32,), not_on=(b"l" * 32, b"m" * 32),
    )  # fmt: skip
    job = open_job(CRYPTO, seal_job(IDENTITY, terms, b"spec", b"nonce"), wall=1.0)
    assert (job.terms, job.spec, job.submitter) == (terms, b"spec", IDENTITY.public_key)


@pytest.mark.parametrize(
    "terms",
    [
        {"require": ["x" * (REQUIREMENT_CHARS_MAX + 1)]},
        {"require": ["true"] * (REQUIREMENTS_MAX + 1)},
        {"require": "true"},
        {"prefer": [b"cpus"]},
        {"on": [b"short"]},
        {"not_on": [bytes(32)] * (NODES_CHOSEN_MAX + 1)},
        {"on": []},
        {"deadline_ms": 2**52},
    ],
)
def test_a_job_asks_within_limits(terms: dict[str, Any]) -> None:
    """A peer's job costs without bound to match."""
    body = {"terms": {"created_ms": 1, **terms}, "spec": b"", "nonce": b"", "delegation": None}
    with pytest.raises(RemoteProtocolError):
        open_job(CRYPTO, IDENTITY.sign_envelope("p2pc/job", body), wall=1.0)


@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"(now|soon),(fail|success|done)=\d{1,4}%?", fullmatch=True)))
def test_halt_rules_are_read_or_refused(text: str) -> None:
    try:
        rule = parse_halt(text)
    except UsageError as error:
        assert error.fix
        return
    assert rule is None or parse_halt(str(rule)) == rule


# --- bodies of the control API --------------------------------------------------------------------

SHAPES: list[Any] = list(
    dict.fromkeys([*(call.body for call in CALLS if isinstance(call.body, type)), JobBody, TaskLine])
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=9), inner, max_size=5)),
    max_leaves=12,
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@given(data=st.one_of(st.binary(max_size=60), JSON_VALUES.map(lambda value: json.dumps(value).encode())))
def test_bodies_are_read_or_refused(shape: type[msgspec.Struct], data: bytes) -> None:
    """Breaks when a local program gets "a bug in p2pc" for its own mistake."""
    try:
        assert isinstance(decode_body(data, shape), shape)
    except UsageError as error:
        assert error.code == "bad-request" and error.fix


@given(seed=SEEDS, kind=st.sampled_from(["command", "shell", "function"]))
def test_lines_of_an_upload_become_tasks_or_are_refused(seed: int, kind: str) -> None:
    mutator = Mutator(seed)
    line = {
        "argv": ["echo a"], "inputs": ["a"], "stdin_b64": "YQ==", "fetch": ["out/*.txt"], "env": {"A": "b"},
        "key": "00ff", "args_b64": "gAQu", "chunk": 0,
    }  # fmt: skip
    blobs: Any = _NoBlobs()
    for _ in range(5):
        data = json.dumps(mutator.value(line), default=repr).encode()
        if mutator.rng.random() < 0.3:
            data = mutator.bytes(data)
        try:
            task = decode_body(data, TaskLine)
            if task.send or task.stdin_path:
                continue
            payload = _finish(build_task(task, kind, blobs, blobs))
        except P2pcError as error:
            assert isinstance(error, UsageError)
            continue
        assert decode_payload(payload).argv == tuple(task.argv), "what is taken here is understood there"


class _NoBlobs:
    """Stands for the blob store and the files of an upload; takes everything and keeps nothing."""

    async def put(self, data: bytes) -> BlobRef:
        return BlobRef(bytes(32), len(data))

    async def take_all(self, files: Any) -> tuple[InputFile, ...]:
        return ()


def _finish(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")
