"""Where the inputs of `run` come from: one `Row` for each task, read lazily.

The words of GNU parallel with their meaning: ``:::`` words, ``::::`` files, ``:::+`` and ``::::+`` linked to the source
before, ``-a`` files, standard input, ``--pipe``, ``-0``, ``--colsep``, ``--header``, ``-n``, ``--link``; and
``--range`` and ``--from-json``.  Several sources give their cross product, of which the first varies slowest and is
never held in memory; standard input is, when it is another than the first or is wrapped around by ``--link``.

Source: GNU parallel 20221122, man page, sections "Input sources" and "OPTIONS".
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import IO, Any, Final

from p2pcompute.errors import UsageError

SEPARATORS: Final = (":::", ":::+", "::::", "::::+")
LINE_BYTES_MAX: Final = 1024 * 1024
"""One input.  Longer ones are a mistake (a binary file, no newline) and cannot be a task anyway."""
BLOCK_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of --pipe: a block goes to the node in one line of text."""
_READ_BYTES: Final = 64 * 1024


class SourceKind(StrEnum):
    WORDS = "words"
    FILE = "file"
    RANGE = "range"
    BLOCKS = "blocks"
    """--pipe: the content itself, cut at line ends; the only source of its job."""
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Source:
    """One input source."""

    kind: SourceKind
    words: Sequence[str] = ()
    path: str = ""
    """FILE and JSON; "-" is standard input."""
    is_linked: bool = False
    """Goes in step with the source before it."""
    block_bytes: int = 0
    """Of BLOCKS: as many whole lines as fit into so many bytes, at least one."""

    @property
    def is_stdin(self) -> bool:
        return self.path == "-"


@dataclass(frozen=True, slots=True)
class Row:
    """The input of one task."""

    columns: tuple[str, ...]
    """{1}, {2} …"""
    items: tuple[Any, ...] = ()
    """The arguments of a function: the columns, or the items of --from-json as they are."""
    names: Mapping[str, str] = field(default_factory=dict)
    """{name} of --header and of JSON objects."""
    block: bytes | None = None
    """What the task reads on its standard input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How sources are read."""

    null: bool = False
    colsep: str | None = None
    header: str | None = None
    """":" = the whole first line, else a regular expression of which the match (or its first group) is the header."""
    max_args: int | None = None
    """-n: inputs for each task; 0 = inputs only count."""
    link: bool = False


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[Source]]:
    """Split the words after the flags into the command and the sources.

    Raises:
        UsageError: a linked source has none before it, or ``::::`` names no file.
    """
    command: list[str] = []
    sources: list[Source] = []
    separator, group = "", command
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word in SEPARATORS:
            separator, group = word, []
            groups.append((separator, group))
        else:
            group.append(word)
    for separator, group in groups:
        is_linked = separator.endswith("+")
        if is_linked and not sources:
            raise UsageError(f"{separator} has no source before it to go in step with", fix="begin with ::: or ::::")
        if separator.startswith("::::"):
            if not group:
                raise UsageError(f"{separator} names no file", fix=":::: FILE; standard input is -")
            sources += [Source(SourceKind.FILE, path=path, is_linked=is_linked) for path in group]
        else:
            sources.append(Source(SourceKind.WORDS, tuple(group), is_linked=is_linked))
    return command, sources


_RANGE: Final = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?::(-?\d{1,18}))?")


class _Numbers(Sequence[str]):
    """A range as words, made when they are asked for."""

    def __init__(self, numbers: range, width: int) -> None:
        self._numbers = numbers
        self._width = width

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Numbers(self._numbers[index], self._width)
        return f"{self._numbers[index]:0{self._width}d}"


def parse_range(text: str) -> Source:
    """Return the source of ``A..B[:STEP]``: A to B inclusive, down where A > B; a leading zero pads all numbers, as in
    a shell.

    Raises:
        UsageError: it is not a range, or STEP leads away from B.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        is_long = re.fullmatch(r"-?\d+\.\.-?\d+(:-?\d+)?", text) is not None
        why = "its numbers are too long" if is_long else "a range is A..B or A..B:STEP"
        raise UsageError(f"{text!r} is not a range", why, "--range 1..100")
    first, last = int(match[1]), int(match[2])
    step = int(match[3]) if match[3] else (1 if last >= first else -1)
    if step == 0 or (last - first) * step < 0:
        raise UsageError(f"the range {text!r} never arrives", f"its step is {step}", "--range 1..100:5")
    padded = [bound for bound in (match[1], match[2]) if re.match(r"-?0\d", bound)]
    width = max(len(bound) for bound in (match[1], match[2])) if padded else 0
    return Source(SourceKind.RANGE, _Numbers(range(first, last + (1 if step > 0 else -1), step), width))


# --- reading one source -------------------------------------------------------------------------------------------


def _records(stream: IO[bytes], separator: bytes, name: str) -> Iterator[str]:
    """Yield the records of a stream, each as soon as it is complete; the last one may lack its separator."""
    records = _lines(stream, name) if separator == b"\n" else _separated(stream, separator, name)
    for number, raw in enumerate(records, start=1):
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"input {number} of {name} is not UTF-8",
                f"byte {error.start + 1} of it",
                "convert it, for example with iconv",
                code="encoding",
            ) from error


def _blocks(stream: IO[bytes], size: int, separator: bytes, name: str, *, has_header: bool) -> Iterator[bytes]:
    """Cut a stream behind separators: as many records as fit into `size` bytes, or one that is longer.

    With a header each block begins with the first record.
    """
    kept = bytearray()
    head: bytes | None = None if has_header else b""
    scanned = 0
    is_over = False
    while not is_over:
        data = stream.read(max(_READ_BYTES, size - len(kept)))
        is_over = not data
        kept += data
        if head is None:
            end = kept.find(separator) + 1
            if end == 0 and not is_over:
                _check_block(len(kept), name)
                continue
            head = bytes(kept[: end or len(kept)])
            del kept[: len(head)]
        while kept and (is_over or len(kept) >= size):
            end = kept.rfind(separator, 0, size) + 1 or kept.find(separator, max(size, scanned)) + 1
            if end == 0:
                if not is_over:
                    scanned = len(kept)
                    _check_block(scanned, name)
                    break
                end = len(kept)
            yield head + bytes(kept[:end])
            del kept[:end]
            scanned = 0


def _check_block(size: int, name: str) -> None:
    if size > BLOCK_BYTES_MAX:
        raise UsageError(
            f"a line of {name} is longer than {BLOCK_BYTES_MAX >> 20} MiB",
            "--pipe cuts at line ends",
            "send it as a file: --send; NUL instead of line ends: -0",
            code="input-size",
        )


def _too_long(name: str) -> UsageError:
    return UsageError(
        f"an input of {name} is longer than {LINE_BYTES_MAX >> 20} MiB",
        "is it a binary file?",
        "send large content as a file: --send",
        code="input-size",
    )


def _lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    while line := stream.readline(LINE_BYTES_MAX + 2):
        if len(line) > LINE_BYTES_MAX + 1:
            raise _too_long(name)
        yield line.removesuffix(b"\n")


def _separated(stream: IO[bytes], separator: bytes, name: str) -> Iterator[bytes]:
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    held = b""
    while chunk := read(_READ_BYTES):
        *whole, held = (held + chunk).split(separator)
        yield from whole
        if len(held) > LINE_BYTES_MAX:
            raise _too_long(name)
    if held:
        yield held


def _json_text(item: Any) -> str:
    """Return a JSON item as a word: text as it is, null as nothing, anything else as compact JSON."""
    if isinstance(item, str):
        return item
    return "" if item is None else json.dumps(item, ensure_ascii=False, separators=(",", ":"))


def _json_items(stream: IO[bytes], name: str) -> Iterator[Any]:
    """Yield the items of a JSON array, or of JSON Lines, one after the other; each is bounded by LINE_BYTES_MAX.

    A file that starts with "[" is an array unless its name ends in .jsonl or .ndjson.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    decoder, held, position, is_end = json.JSONDecoder(), "", 0, False

    def more() -> None:
        nonlocal held, position, is_end
        chunk = text.read(_READ_BYTES)
        is_end = not chunk
        held, position = held[position:] + chunk, 0

    def skip(signs: str) -> str:
        nonlocal position
        while True:
            while position < len(held) and held[position] in signs:
                position += 1
            if position < len(held) or is_end:
                return held[position : position + 1]
            more()

    def item() -> Any:
        nonlocal position
        while True:
            try:
                value, end = decoder.raw_decode(held, position)
            except RecursionError as error:
                raise UsageError(f"item {number + 1} of {name} is nested too deeply", code="json") from error
            except json.JSONDecodeError as error:
                if not is_end and len(held) - position > LINE_BYTES_MAX:
                    raise _too_long(name) from error
                if is_end:
                    raise UsageError(
                        f"{name} is not JSON",
                        f"{error.msg}, in item {number + 1}",
                        "it is an array, or one item a line",
                        code="json",
                    ) from error
            except ValueError as error:  # a number of thousands of digits
                raise UsageError(f"item {number + 1} of {name} cannot be read", str(error), code="json") from error
            else:
                # A number may go on in the next chunk.
                if end < len(held) or is_end:
                    position = end
                    return value
            more()

    number, space = 0, " \t\r\n"
    try:
        is_array = skip(space) == "[" and not name.endswith((".jsonl", ".ndjson"))
        if is_array:
            position += 1
        while sign := skip(space):
            if is_array and sign == "]":
                position += 1
                if skip(space):
                    raise UsageError(
                        f"{name} goes on after its array", "is it one item a line?", "name it .jsonl", code="json"
                    )
                return
            yield item()
            number += 1
            after = skip(space)
            if is_array and after == ",":
                position += 1
            elif is_array and after != "]":
                raise UsageError(f"{name} is not JSON", f"a comma is missing after item {number}", code="json")
        if is_array:
            raise UsageError(f"{name} is not JSON", "the array is not closed", code="json")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8", code="encoding") from error
    finally:
        text.detach()


@dataclass(frozen=True, slots=True)
class _Record:
    """One input: its columns, and what a function gets of it."""

    columns: tuple[str, ...]
    items: tuple[Any, ...]
    names: Mapping[str, str]
    block: bytes | None = None


class Inputs:
    """The rows of a job.

    Args:
        sources: at least one.
        reading: how they are read.
        stdin: standard input, when a source is "-".

    Raises:
        UsageError: a regular expression or a combination of flags is wrong, or standard input is named twice.
    """

    def __init__(self, sources: Sequence[Source], reading: Reading, stdin: IO[bytes] | None = None) -> None:
        self._sources = list(sources)
        self._reading = reading
        self._stdin = stdin
        if sum(source.is_stdin for source in sources) > 1:
            raise UsageError("standard input is named twice", "it can be read once", "give a file for one of the two")
        if reading.max_args is not None and reading.max_args < 0:
            raise UsageError("-n cannot be negative")
        colsep = reading.colsep if reading.colsep is not None or reading.header is None else "\t"
        self._colsep = _compile("--colsep", colsep) if colsep else None
        self._header = _compile("--header", reading.header) if reading.header not in (None, ":") else None
        self._names: list[tuple[int, int, str]] = []
        """(source, column in it, name)."""

    @property
    def is_repeatable(self) -> bool:
        """True when the rows can be read more than once: not from standard input, nor from a pipe as of ``<(…)``."""
        return not any(source.is_stdin or (source.path and not os.path.isfile(source.path)) for source in self._sources)

    @property
    def count(self) -> int | None:
        """Number of rows when it is known without reading a file."""
        if self._reading.link or any(
            source.kind not in (SourceKind.WORDS, SourceKind.RANGE) for source in self._sources
        ):
            return None
        without = 1 if self._reading.header is not None else 0
        groups = [min(max(0, len(self._sources[index].words) - without) for index in group) for group in self._groups()]
        return math.ceil(math.prod(groups) / max(1, self._reading.max_args or 1))

    def _groups(self) -> list[list[int]]:
        """Indices of sources that go in step."""
        groups: list[list[int]] = []
        for index, source in enumerate(self._sources):
            if source.is_linked:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order.

        Raises:
            UsageError: a source cannot be read, or its content is wrong; the message names it.
        """
        combined = self._linked() if self._reading.link else self._crossed()
        per_task = self._reading.max_args
        if per_task == 0:
            for _ in combined:
                yield Row(())
        elif per_task in (None, 1):
            for records in combined:
                yield self._row(records)
        else:
            while some := list(itertools.islice(combined, per_task)):
                yield self._row([record for records in some for record in records], has_names=False)

    def _row(self, records: Sequence[_Record], *, has_names: bool = True) -> Row:
        columns = tuple(itertools.chain.from_iterable(record.columns for record in records))
        items = tuple(itertools.chain.from_iterable(record.items for record in records))
        names: dict[str, str] = {}
        if has_names:
            for record in records:
                names.update(record.names)
            for source, column, name in self._names:
                own = records[source].columns if source < len(records) else ()
                names[name] = own[column] if column < len(own) else ""
        return Row(columns, items, names, records[0].block)

    # --- combining --------------------------------------------------------------------------------

    def _crossed(self) -> Iterator[list[_Record]]:
        """The cross product of the groups; the last varies fastest."""
        groups = self._groups()
        readers: list[Callable[[], Iterable[tuple[_Record, ...]]]] = []
        for group in groups[1:]:
            if any(self._sources[index].is_stdin for index in group):
                kept = list(self._together(group))
                readers.append(partial(iter, kept))
            else:
                readers.append(partial(self._together, group))
        if self._reading.header is not None:
            # The header of each source must be known before the first row is made.
            for reader in readers:
                next(iter(reader()), None)

        def extend(chosen: list[_Record], rest: int) -> Iterator[list[_Record]]:
            if rest == len(readers):
                yield chosen
                return
            for records in readers[rest]():
                yield from extend([*chosen, *records], rest + 1)

        for records in self._together(groups[0]):
            yield from extend(list(records), 0)

    def _together(self, group: Sequence[int]) -> Iterator[tuple[_Record, ...]]:
        """Sources in step, as long as the shortest."""
        return zip(*(self._read(index) for index in group), strict=False)

    def _linked(self) -> Iterator[list[_Record]]:
        """All sources in step, as long as the longest; the others begin again, as GNU parallel does."""
        readers = [self._read(index) for index in range(len(self._sources))]
        kept: list[list[_Record]] = [[] for _ in readers]
        is_over = [False] * len(readers)
        for position in itertools.count():
            chosen: list[_Record] = []
            for index, reader in enumerate(readers):
                record = None if is_over[index] else next(reader, None)
                if record is None:
                    is_over[index] = True
                    if not kept[index]:
                        return
                    record = kept[index][position % len(kept[index])]
                elif len(readers) > 1:
                    kept[index].append(record)
                chosen.append(record)
            if all(is_over):
                return
            yield chosen

    # --- one source -------------------------------------------------------------------------------

    def _read(self, index: int) -> Iterator[_Record]:
        source = self._sources[index]
        if source.kind is SourceKind.JSON:
            for item in self._open(source, lambda stream: _json_items(stream, source.path)):
                if isinstance(item, dict):
                    names = {name: _json_text(value) for name, value in item.items()}
                    yield _Record((_json_text(item),), (item,), names)
                elif isinstance(item, list):
                    yield _Record(tuple(_json_text(value) for value in item), (item,), {})
                else:
                    yield _Record((_json_text(item),), (item,), {})
            return
        words: Iterable[str] = source.words
        separator = b"\0" if self._reading.null else b"\n"
        if source.kind is SourceKind.BLOCKS:
            has_header = self._reading.header is not None
            for block in self._open(
                source,
                lambda stream: _blocks(stream, source.block_bytes, separator, source.path, has_header=has_header),
            ):
                yield _Record((), (), {}, block)
            return
        if source.kind is SourceKind.FILE:
            words = self._open(source, lambda stream: _records(stream, separator, source.path))
        is_first = self._reading.header is not None
        for word in words:
            columns = self._split(word)
            if is_first:
                is_first = False
                self._take_header(index, word, columns)
                continue
            yield _Record(columns, columns, {})

    def _open(self, source: Source, read: Callable[[IO[bytes]], Iterator[Any]]) -> Iterator[Any]:
        if source.is_stdin and self._stdin is None:
            raise UsageError("standard input is closed", "who called this closed it", code="input-file")
        try:
            if source.is_stdin:
                assert self._stdin is not None
                yield from read(self._stdin)
                return
            with open(source.path, "rb") as stream:
                yield from read(stream)
        except OSError as error:
            what = "standard input" if source.is_stdin else f"the input file {source.path!r}"
            raise UsageError(f"{what} cannot be read", error.strerror or str(error), code="input-file") from error

    def _split(self, word: str) -> tuple[str, ...]:
        """Columns of a line; blanks around them go, as with GNU parallel's --colsep."""
        if self._colsep is None:
            return (word,)
        columns, start = [], 0
        for match in self._colsep.finditer(word):
            if match.end() > match.start():
                columns.append(word[start : match.start()].strip())
                start = match.end()
        columns.append(word[start:].strip())
        return tuple(columns)

    def _take_header(self, index: int, line: str, columns: tuple[str, ...]) -> None:
        if self._header is not None:
            match = self._header.search(line)
            if match is None:
                raise UsageError(
                    f"--header {self._reading.header!r} does not match the first line", f"it is {line[:80]!r}"
                )
            columns = self._split(match[1] if self._header.groups else match[0])
        self._names = [known for known in self._names if known[0] != index]
        self._names += [(index, column, name) for column, name in enumerate(columns) if name]


def _compile(flag: str, pattern: str | None) -> re.Pattern[str]:
    try:
        return re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"{flag} {pattern!r} is not a regular expression", str(error)) from error
