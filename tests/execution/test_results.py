"""Bytes of a worker process: whatever they are, the node reads a result or says RemoteProtocolError."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import messages
from p2pcompute.execution.messages import Result
from p2pcompute.execution.results import parse_result, parse_started
from p2pcompute.limits import ERROR_TEXT_BYTES_MAX

inline = st.binary(max_size=200)


@st.composite
def results(draw: st.DrawFn) -> Result:
    run_id, status = draw(st.integers(0, 2**64 - 1)), draw(st.sampled_from(messages.STATUSES))
    result = Result(run_id, status, draw(st.text(max_size=200)))
    result.cause = draw(st.sampled_from(messages.CAUSES))
    result.exit_code = draw(st.none() | st.integers(0, 255))
    result.signal = draw(st.integers(0, 64))
    result.value, result.stdout, result.stderr = draw(inline), draw(inline), draw(inline)
    result.runtime_s = draw(st.floats(0, 1e6))
    result.files = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 0o777), st.just(b"a/b")), max_size=3))
    return result


@given(results())
def test_round_trip(result: Result) -> None:
    raw = parse_result(messages.pack_result(result, ERROR_TEXT_BYTES_MAX)[4:])
    assert (raw.run_id, raw.status, raw.cause, raw.exit_code) == (
        result.run_id,
        result.status,
        result.cause,
        result.exit_code,
    )
    assert (raw.value, raw.stdout, raw.stderr) == (result.value, result.stdout, result.stderr)
    assert raw.error == result.error.encode("utf-8", "backslashreplace").decode()
    assert [(n, m, name.encode()) for n, m, name in raw.files] == list(result.files)


@given(results(), st.data())
def test_mutated_and_cut_results_raise_only_the_protocol_error(result: Result, data: st.DataObject) -> None:
    body = bytearray(messages.pack_result(result, ERROR_TEXT_BYTES_MAX)[4:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    with contextlib.suppress(RemoteProtocolError):
        parse_result(bytes(body))


@given(st.binary(max_size=300))
def test_junk_raises_only_the_protocol_error(body: bytes) -> None:
    for parse in (parse_result, parse_started):
        with contextlib.suppress(RemoteProtocolError):
            parse(body)


def test_long_errors_lose_their_middle() -> None:
    text = messages.clip_text("start" + "x" * 100_000 + "end", ERROR_TEXT_BYTES_MAX)
    assert len(text) <= ERROR_TEXT_BYTES_MAX and text.startswith(b"start") and text.endswith(b"end")
