"""Inputs: the rows of GNU parallel, its own forms and what is ours.

`parallel_cases.json` holds what GNU parallel 20221122 itself printed; it was made once, by running it.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.cli.inputs import Inputs, Reading, Row, Source, SourceKind, parse_range, split_arguments
from p2pcompute.cli.replacement import Form, Template
from p2pcompute.errors import UsageError

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("parallel_cases.json").read_text())["cases"]


def read_case(args: list[str]) -> tuple[Reading, list[Source], list[str]]:
    """Flags first, as `run` reads them."""
    flags: dict[str, Any] = {}
    files: list[Source] = []
    words = list(args)
    while words and words[0].startswith("-"):
        flag = words.pop(0)
        match flag:
            case "--link":
                flags["link"] = True
            case "-0":
                flags["null"] = True
            case "-C" | "--colsep":
                flags["colsep"] = words.pop(0)
            case "--header":
                flags["header"] = words.pop(0)
            case "-a":
                files.append(Source(SourceKind.FILE, path=words.pop(0)))
            case _:
                assert flag.startswith("-n")
                flags["max_args"] = int(flag[2:])
    command, sources = split_arguments(words)
    return Reading(**flags), files + sources or [Source(SourceKind.FILE, path="-")], command


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case["args"]))
def test_rows_and_commands_are_those_of_gnu_parallel(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in case["files"].items():
        Path(name).write_text(content)
    reading, sources, command = read_case(case["args"])
    inputs = Inputs(sources, reading, io.BytesIO(case["stdin"].encode()))
    template = Template(command, Form.ARGV)
    lines = [" ".join(template.argv(row, seq)[1:]) for seq, row in enumerate(inputs.rows(), start=1)]
    if case["args"][:2] == ["echo", "[{}]"]:
        # Its shell echo joins words and drops blanks at the ends; ours gets the word whole.
        lines = [" ".join(line.split()) for line in lines]
        case["lines"] = [" ".join(line.split()) for line in case["lines"]]
    assert lines == case["lines"]


def rows_of(*words: str, stdin: bytes = b"", **reading: Any) -> list[Row]:
    _, sources = split_arguments(words)
    return list(Inputs(sources or [Source(SourceKind.FILE, path="-")], Reading(**reading), io.BytesIO(stdin)).rows())


def test_first_task_of_an_endless_source_starts_at_once() -> None:
    """A pipe that never ends must give its rows while it is still open."""
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\n")
    with os.fdopen(reader, "rb") as stream:
        rows = Inputs([Source(SourceKind.FILE, path="-")], Reading(), stream).rows()
        assert next(rows).columns == ("one",)
        assert next(rows).columns == ("two",)

        def finish() -> None:
            os.write(writer, b"three\n")
            os.close(writer)

        threading.Timer(0.05, finish).start()
        assert [row.columns for row in rows] == [("three",)]


def test_the_first_source_of_a_product_is_never_read_ahead() -> None:
    def endless() -> Iterator[bytes]:
        for number in itertools.count():
            yield b"%d\n" % number

    class Endless(io.RawIOBase):
        lines = endless()

        def readline(self, _size: int | None = -1) -> bytes:
            return next(self.lines)

    _, sources = split_arguments(["::::", "-", ":::", "a", "b"])
    rows = Inputs(sources, Reading(), Endless()).rows()  # type: ignore[arg-type]
    assert [next(rows).columns for _ in range(3)] == [("0", "a"), ("0", "b"), ("1", "a")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1..3", ["1", "2", "3"]),
        ("3..1", ["3", "2", "1"]),
        ("0..10:5", ["0", "5", "10"]),
        ("-1..1", ["-1", "0", "1"]),
        ("08..11", ["08", "09", "10", "11"]),
        ("5..5", ["5"]),
        ("1..10:4", ["1", "5", "9"]),
    ],
)
def test_ranges_include_both_ends(text: str, words: list[str]) -> None:
    assert list(parse_range(text).words) == words


@pytest.mark.parametrize("text", ["", "1", "1..", "a..b", "1..5:0", "1..5:-1", "1...5", "1..5:x", "1.5..2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_range(text)


def test_a_huge_range_takes_no_memory() -> None:
    source = parse_range("1..1000000000000")
    assert len(source.words) == 10**12
    inputs = Inputs([source], Reading())
    assert inputs.count == 10**12
    assert next(inputs.rows()).columns == ("1",)


def json_rows(text: str, tmp_path: Path, name: str = "items.json") -> list[Row]:
    path = tmp_path / name
    path.write_text(text)
    return list(Inputs([Source(SourceKind.JSON, path=str(path))], Reading()).rows())


def test_json_items_become_columns_names_and_arguments(tmp_path: Path) -> None:
    rows = json_rows('["a b", 7, true, null, {"x": 1, "y": [2]}, ["p", 3]]', tmp_path)
    assert [row.columns for row in rows] == [("a b",), ("7",), ("true",), ("",), ('{"x":1,"y":[2]}',), ("p", "3")]
    assert [row.items for row in rows] == [("a b",), (7,), (True,), (None,), ({"x": 1, "y": [2]},), (["p", 3],)]
    assert rows[4].names == {"x": "1", "y": "[2]"}


def test_json_lines_and_arrays_that_look_like_them(tmp_path: Path) -> None:
    assert [row.items for row in json_rows('{"a":1}\n{"a":2}\n', tmp_path)] == [({"a": 1},), ({"a": 2},)]
    assert [row.items for row in json_rows("[1]\n[2]\n", tmp_path, "x.jsonl")] == [([1],), ([2],)]
    with pytest.raises(UsageError, match="goes on after its array"):
        json_rows("[1]\n[2]\n", tmp_path)


PLAIN = st.none() | st.booleans() | st.integers() | st.text()


@given(st.lists(st.recursive(PLAIN, st.lists, max_leaves=5), max_size=20))
def test_any_json_array_is_read_back(items: list[Any]) -> None:
    """Items that straddle the reader's blocks must come out whole."""
    from p2pcompute.cli import inputs as module

    text = json.dumps(items).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_READ_BYTES", 3)
        assert list(module._json_items(io.BytesIO(text), "x.json")) == items
        lines = b"\n".join(json.dumps(item).encode() for item in items)
        assert list(module._json_items(io.BytesIO(lines), "x.jsonl")) == items


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", "{", "[1,, 2]", "nope"])
def test_broken_json_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        json_rows(text, tmp_path)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"))))
def test_any_lines_come_out_as_they_are(lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    assert [row.columns[0] for row in rows_of(stdin=data)] == lines


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_nul_separated_inputs_may_hold_newlines(words: list[str]) -> None:
    data = "".join(f"{word}\0" for word in words).encode()
    assert [row.columns[0] for row in rows_of(stdin=data, null=True)] == words


def test_what_is_not_utf8_is_named_with_its_place() -> None:
    with pytest.raises(UsageError, match="input 2 of - is not UTF-8"):
        rows_of(stdin=b"good\nb\xffd\n")


def test_an_input_without_end_is_refused_before_memory_is_full() -> None:
    class Zeros(io.RawIOBase):
        def readline(self, size: int | None = -1) -> bytes:
            return b"\0" * (size or 1)

    with pytest.raises(UsageError, match="longer than 1 MiB"):
        list(Inputs([Source(SourceKind.FILE, path="-")], Reading(), Zeros()).rows())  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [[":::+", "a"], ["::::"], ["cmd", "::::+", "f"]])
def test_sources_that_mean_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        split_arguments(words)


def test_standard_input_can_be_named_once() -> None:
    _, sources = split_arguments(["::::", "-", "-"])
    with pytest.raises(UsageError, match="named twice"):
        Inputs(sources, Reading())


def test_a_header_pattern_may_pick_part_of_the_line() -> None:
    rows = rows_of(stdin=b"# x,y\n1,2\n", header="# (.*)", colsep=",")
    assert [row.names for row in rows] == [{"x": "1", "y": "2"}]
    with pytest.raises(UsageError, match="does not match"):
        rows_of(stdin=b"x,y\n1,2\n", header="# (.*)", colsep=",")


def test_counts_are_known_only_without_reading() -> None:
    def count(*words: str, **reading: Any) -> int | None:
        _, sources = split_arguments(words)
        return Inputs(sources, Reading(**reading)).count

    assert count(":::", "a", "b", ":::", "1", "2", "3") == 6
    assert count(":::", "a", "b", ":::+", "1") == 1
    assert count(":::", "a", "b", "c", max_args=2) == 2
    assert count(":::", "x", "a", "b", header=":") == 2
    assert count("::::", "file") is None


def test_a_pipe_is_read_once() -> None:
    """`:::: <(…)` looks like a file; read once to check the files to send, it would have no rows left for the job."""
    reader, writer = os.pipe()
    os.write(writer, b"a\nb\n")
    os.close(writer)
    inputs = Inputs([Source(SourceKind.FILE, path=f"/dev/fd/{reader}")], Reading())
    assert not inputs.is_repeatable
    assert [row.columns for row in inputs.rows()] == [("a",), ("b",)]
    os.close(reader)
    assert Inputs([Source(SourceKind.FILE, path=__file__)], Reading()).is_repeatable


# --- blocks of --pipe -----------------------------------------------------------------------------


def blocks_of(data: bytes, size: int, **reading: Any) -> list[bytes]:
    sources = [Source(SourceKind.BLOCKS, path="-", block_bytes=size)]
    rows = list(Inputs(sources, Reading(**reading), io.BytesIO(data)).rows())
    assert all(row.columns == () and row.block is not None for row in rows)
    return [row.block for row in rows if row.block is not None]


@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b" ")), max_size=40), st.integers(1, 40))
def test_blocks_are_whole_lines_and_together_the_stream(lines: list[bytes], size: int) -> None:
    for data in (b"".join(line + b"\n" for line in lines), b"\n".join(lines)):
        blocks = blocks_of(data, size)
        assert b"".join(blocks) == data
        assert all(block.endswith(b"\n") for block in blocks[:-1])
        for block, following in itertools.pairwise([*blocks, b""]):
            assert len(block) <= size or block.count(b"\n", 0, -1) == 0, "a line too long for a block is one"
            first = following[: following.find(b"\n") + 1]
            assert not first or len(block) + len(first) > size, "no block has room for the next line"


def test_blocks_of_other_records_and_with_a_header() -> None:
    assert blocks_of(b"a\0b\n\0c", 3, null=True) == [b"a\0", b"b\n\0", b"c"]
    assert blocks_of(b"n\n1\n2\n3\n", 4, header=":") == [b"n\n1\n2\n", b"n\n3\n"]
    assert blocks_of(b"n", 4, header=":") == [] and blocks_of(b"", 4) == []


def test_a_block_as_large_as_its_stream_is_read_in_linear_time() -> None:
    """A line of megabytes is searched once, not again with each read."""
    line = b"x" * (8 << 20)
    assert blocks_of(line + b"\n" + line, 1 << 10) == [line + b"\n", line]
    with pytest.raises(UsageError, match="longer than 32 MiB"):
        blocks_of(b"x" * (40 << 20), 1 << 10)
