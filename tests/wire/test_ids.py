"""Device ids as people type them, job aliases, derived ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.ids import (
    ALIAS_FIRST,
    ALIAS_REST,
    dht_id,
    format_device_id,
    job_alias,
    parse_device_id,
    short_device_id,
    task_id,
)

KEYS = st.binary(min_size=32, max_size=32)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@given(KEYS)
def test_round_trip(key: bytes) -> None:
    """An id copied from one screen names another node."""
    text = format_device_id(key)
    assert len(text) == 69 and all(len(group) == 4 for group in text.split("-"))
    assert parse_device_id(text) == key
    assert parse_device_id(text.lower().replace("-", " ")) == key
    assert text.startswith(short_device_id(key))


@settings(max_examples=20)
@given(KEYS)
def test_every_single_wrong_character_is_detected(key: bytes) -> None:
    """One mistyped character passes unseen."""
    text = format_device_id(key).replace("-", "")
    for place, right in enumerate(text):
        for wrong in ALPHABET:
            if wrong != right:
                with pytest.raises(UsageError):
                    parse_device_id(text[:place] + wrong + text[place + 1 :])


@given(KEYS, st.integers(0, 55))
def test_missing_and_doubled_characters_are_detected(key: bytes, place: int) -> None:
    """A dropped or doubled character passes unseen."""
    text = format_device_id(key).replace("-", "")
    for wrong in (text[:place] + text[place + 1 :], text[:place] + text[place] + text[place:]):
        with pytest.raises(UsageError):
            parse_device_id(wrong)


@given(st.text(max_size=80))
def test_junk_is_a_usage_error(text: str) -> None:
    """A wrong id crashes the command."""
    try:
        assert len(parse_device_id(text)) == 32
    except UsageError as error:
        assert error.what and error.why and error.fix


@given(st.text(ALPHABET, min_size=56, max_size=56))
def test_what_is_accepted_is_the_one_text_of_its_key(text: str) -> None:
    """Two different texts name one node, so people cannot compare them by eye."""
    try:
        key = parse_device_id(text)
    except UsageError:
        return
    assert format_device_id(key).replace("-", "") == text


def test_spare_bits_of_the_last_character_are_refused() -> None:
    """Sixteen texts with right check characters name one key."""
    from p2pcompute.ids import _check_char

    text = format_device_id(bytes(32)).replace("-", "")
    last = text[42:55]
    other = last[:-1] + "B"
    with pytest.raises(UsageError):
        parse_device_id(text[:42] + other + _check_char(other))


def test_look_alikes_are_read_as_meant() -> None:
    """0, 1 and 8, which no id has, are refused although it is clear what was meant."""
    key = bytes.fromhex("00" * 31 + "0e")
    text = format_device_id(key)
    assert parse_device_id(text.replace("O", "0").replace("I", "1").replace("B", "8")) == key


def test_wrong_key_size_is_our_bug() -> None:
    """A truncated key gets an id."""
    with pytest.raises(ValueError, match="32"):
        format_device_id(b"x")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 5))
def test_aliases_are_readable_and_free(job: bytes, collisions: int) -> None:
    """An alias names two jobs, or has characters that are read wrongly."""
    taken: dict[str, bytes] = {}
    for _ in range(collisions + 1):
        alias = job_alias(job, taken)
        assert alias not in taken and len(alias) == 4
        assert alias[0] in ALIAS_FIRST and all(char in ALIAS_REST for char in alias[1:])
        taken[alias] = job


def test_derived_ids_differ_and_have_their_sizes() -> None:
    """Two tasks of a job share an id."""
    ids = {task_id(b"job", index) for index in range(1000)}
    assert len(ids) == 1000 and {len(item) for item in ids} == {16}
    assert len(dht_id(bytes(32))) == 20
