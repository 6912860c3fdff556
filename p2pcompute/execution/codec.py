"""Values of functions as they travel between installations that do not trust each other: a closed form of CBOR.

It can hold what is data and nothing else: numbers, text, bytes, containers, moments, numpy arrays and scalars, pandas
frames and series of numbers and text.  To read it builds just that, whoever wrote it: no name in it is looked up,
nothing is imported because of it but numpy and pandas, and there is no reference from one part to another and nothing
packed, so that a value is as large as what came.  A value has one form: dicts keep their order, sets are sorted.

A value begins with HEAD, as no pickle does.

Imported by worker processes: only the standard library, which is why there is an encoder of our own.

Source: RFC 8949.  Tags 2 and 3 are its big numbers; the others are ours, from its range for anybody.
Deviations: map keys keep the order of the dict; frames are columns of ours instead of Arrow's bytes, whose buffers may
be packed and then have any size.
"""

from __future__ import annotations

import struct
import sys
from array import array
from datetime import date, datetime, time, timedelta, timezone
from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

HEAD = b"\xd9\xd9\xf7"
"""The tag of RFC 8949, section 3.4.6, that says that this is CBOR."""
_TUPLE, _SET, _FROZENSET, _COMPLEX, _BYTEARRAY, _ARRAY, _SCALAR = range(28722, 28729)
_DATETIME, _DATE, _TIME, _TIMEDELTA, _FRAME, _SERIES, _FLOATS, _INTEGERS = range(28729, 28737)
_POSITIVE, _NEGATIVE = 2, 3
_DEPTH_MAX = 100
_ITEMS_MAX = 20_000_000
"""Parts of one value: a list of so many small numbers takes 160 MB."""
_BYTES_MAX = 1 << 30
"""Of a value: what holds one part many times is written as often."""
_PACKED_MIN = 16
"""Lists of so many numbers of one kind are written in one piece."""
_BIG_BYTES_MAX = 1 << 16
"""Of one number."""
_TWINS_MAX = 64
"""Keys of one dict or members of one set with the same hash: finding one of them takes as many steps."""
_WATCHED = 1000
"""Containers smaller than this are built without a look at hashes."""
_DTYPE_KINDS = "biufcSUmM"
_DTYPE_BYTES_MAX = 1 << 20
_DIMENSIONS_MAX = 32


class CannotEncode(Exception):
    """A value is not data; the text names the part and says what to return instead."""


class CannotDecode(ValueError):
    """These bytes are not a value of this form."""


# --- encoding -----------------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Return the bytes of a value.

    Raises:
        CannotEncode: it holds something that is not data, or is nested too deeply.
    """
    out = bytearray(HEAD)
    try:
        _put(out, value, 0)
    except RecursionError as error:
        raise CannotEncode(_DEEP) from error
    return bytes(out)


_DEEP = f"it is nested more than {_DEPTH_MAX} deep, or holds itself; return it flat"


def _head(out: bytearray, major: int, size: int) -> None:
    if size < 24:
        out.append(major << 5 | size)
    elif size < 1 << 8:
        out += struct.pack(">BB", major << 5 | 24, size)
    elif size < 1 << 16:
        out += struct.pack(">BH", major << 5 | 25, size)
    elif size < 1 << 32:
        out += struct.pack(">BI", major << 5 | 26, size)
    else:
        out += struct.pack(">BQ", major << 5 | 27, size)


def _put(out: bytearray, value: Any, depth: int) -> None:
    put = _PUTS.get(type(value))
    if put is not None:
        put(out, value, depth)
    else:
        _put_other(out, value, depth)


def _put_none(out: bytearray, _value: None, _depth: int) -> None:
    out.append(0xF6)


def _put_bool(out: bytearray, value: bool, _depth: int) -> None:
    out.append(0xF5 if value else 0xF4)


def _put_int(out: bytearray, value: int, _depth: int) -> None:
    if -(1 << 64) <= value < 1 << 64:
        _head(out, 0, value) if value >= 0 else _head(out, 1, -1 - value)
        return
    size = value if value >= 0 else -1 - value
    data = size.to_bytes((size.bit_length() + 7) // 8, "big")
    if len(data) > _BIG_BYTES_MAX:
        raise CannotEncode(f"a number of {len(data)} bytes is too large; return it as text or bytes")
    _head(out, 6, _POSITIVE if value >= 0 else _NEGATIVE)
    _put_bytes(out, data, 0)


def _put_float(out: bytearray, value: float, _depth: int) -> None:
    out += struct.pack(">Bd", 0xFB, value)


def _put_str(out: bytearray, value: str, _depth: int) -> None:
    data = value.encode("utf-8", "surrogatepass")
    _head(out, 3, len(data))
    out += data


def _put_bytes(out: bytearray, value: bytes | bytearray | memoryview, _depth: int) -> None:
    _head(out, 2, len(value))
    out += value


def _put_list(out: bytearray, value: list[Any] | tuple[Any, ...], depth: int) -> None:
    if depth >= _DEPTH_MAX:
        raise CannotEncode(_DEEP)
    if len(value) >= _PACKED_MIN and _put_packed(out, value):
        return
    if len(out) > _BYTES_MAX:
        raise CannotEncode(f"it takes more than {_BYTES_MAX >> 20} MiB as data; write it to a file")
    _head(out, 4, len(value))
    for item in value:
        put = _PUTS.get(type(item))
        if put is not None:
            put(out, item, depth + 1)
        else:
            _put_other(out, item, depth + 1)


def _put_packed(out: bytearray, value: list[Any] | tuple[Any, ...]) -> bool:
    """Write numbers that are all floats, or all integers of 64 bits, in one piece; False: they are not."""
    kinds = set(map(type, value))
    if kinds not in ({float}, {int}):
        return False
    try:
        packed = array("d" if kinds == {float} else "q", value)
    except OverflowError:
        return False
    if sys.byteorder == "little":
        packed.byteswap()
    _head(out, 6, _FLOATS if kinds == {float} else _INTEGERS)
    _put_bytes(out, packed.tobytes(), 0)
    return True


def _put_tuple(out: bytearray, value: tuple[Any, ...], depth: int) -> None:
    _head(out, 6, _TUPLE)
    _put_list(out, value, depth)


def _put_dict(out: bytearray, value: dict[Any, Any], depth: int) -> None:
    if depth >= _DEPTH_MAX:
        raise CannotEncode(_DEEP)
    _head(out, 5, len(value))
    for key, item in value.items():
        _put(out, key, depth + 1)
        _put(out, item, depth + 1)


def _put_set(out: bytearray, value: set[Any] | frozenset[Any], depth: int) -> None:
    parts = []
    for item in value:
        part = bytearray()
        _put(part, item, depth + 1)
        parts.append(bytes(part))
    _head(out, 6, _SET if type(value) is set else _FROZENSET)
    _head(out, 4, len(parts))
    for encoded in sorted(parts):
        out += encoded


def _tagged(tag: int, parts: Callable[[Any], Any]) -> Callable[[bytearray, Any, int], None]:
    def put(out: bytearray, value: Any, depth: int) -> None:
        _head(out, 6, tag)
        _put(out, parts(value), depth + 1)

    return put


def _moment(value: datetime | time) -> list[Any]:
    if value.tzinfo is None:
        return [value.isoformat(), value.fold]
    offset = value.utcoffset()
    if type(value.tzinfo) is not timezone or offset is None:
        raise CannotEncode("a moment in a named time zone cannot travel; return it in UTC")
    return [value.isoformat(), value.fold]


def _put_other(out: bytearray, value: Any, depth: int) -> None:
    """Numpy and pandas, which whoever has such a value has imported; everything else is refused."""
    kind = type(value)
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and kind is numpy.ndarray:
        _check_dtype(value.dtype)
        _head(out, 6, _ARRAY)
        _head(out, 4, 3)
        _put_str(out, value.dtype.str, 0)
        _put_list(out, value.shape, depth + 1)
        data = numpy.ascontiguousarray(value)
        _put_bytes(out, data.reshape(-1).view(numpy.uint8).data if data.size else b"", 0)
    elif numpy is not None and isinstance(value, numpy.generic):
        _check_dtype(value.dtype)
        _head(out, 6, _SCALAR)
        _put_list(out, [value.dtype.str, value.tobytes()], depth)
    elif pandas is not None and kind is pandas.DataFrame:
        _head(out, 6, _FRAME)
        columns = [_column(value.iloc[:, number]) for number in range(value.shape[1])]
        _put_list(out, [[*map(_label, value.columns)], columns, _index(value.index)], depth)
    elif pandas is not None and kind is pandas.Series:
        _head(out, 6, _SERIES)
        _put_list(out, [_label(value.name), _column(value), _index(value.index)], depth)
    else:
        raise CannotEncode(_refusal(value))


def _column(column: Any) -> Any:
    """Return the values of a series or index as an array, or a list of texts."""
    if getattr(column.dtype, "kind", "") in "biufcmM" and type(column.dtype).__module__.startswith("numpy"):
        return column.to_numpy()
    import pandas

    values = [None if item is None or (type(item) is not str and pandas.isna(item)) else item for item in column]
    if not all(item is None or type(item) is str for item in values):
        raise CannotEncode(f"a column of {column.dtype} is neither numbers nor text; return simpler columns, or lists")
    return values


def _label(name: Any) -> Any:
    if name is not None and type(name) not in (str, int):
        raise CannotEncode(f"a column called {name!r} cannot travel; give columns names that are text")
    return name


def _index(index: Any) -> Any:
    """Return None for 0, 1, 2 …, else [name, values]."""
    import pandas

    if type(index) is pandas.RangeIndex and (index.start, index.step, index.name) == (0, 1, None):
        return None
    if isinstance(index, pandas.MultiIndex):
        raise CannotEncode("an index of several levels cannot travel; return frame.reset_index()")
    return [_label(index.name), _column(index)]


def _check_dtype(dtype: Any) -> None:
    if dtype.kind not in _DTYPE_KINDS or dtype.names is not None or not 0 < dtype.itemsize <= _DTYPE_BYTES_MAX:
        raise CannotEncode(f"an array of {dtype} is not plain numbers or text; return arrays of numbers, or a list")


def _refusal(value: Any) -> str:
    """Say what a value is that cannot travel, and what to return instead."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__qualname__
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        fix = "return tuple(value), or value._asdict()"
    elif hasattr(kind, "__dataclass_fields__"):
        fix = "return dataclasses.asdict(value)"
    elif hasattr(value, "tolist"):
        fix = "return value.tolist()"
    elif hasattr(kind, "__members__"):
        fix = "return value.value"
    elif hasattr(value, "__iter__"):
        fix = "return list(value)"
    else:
        fix = "return numbers, text, bytes, lists, dicts or arrays"
    return f"a {name} is no plain data; {fix}"


_PUTS: dict[type, Callable[[bytearray, Any, int], None]] = {
    type(None): _put_none,
    bool: _put_bool,
    int: _put_int,
    float: _put_float,
    str: _put_str,
    bytes: _put_bytes,
    list: _put_list,
    tuple: _put_tuple,
    dict: _put_dict,
    set: _put_set,
    frozenset: _put_set,
    complex: _tagged(_COMPLEX, lambda value: [value.real, value.imag]),
    bytearray: _tagged(_BYTEARRAY, bytes),
    datetime: _tagged(_DATETIME, _moment),
    time: _tagged(_TIME, _moment),
    date: _tagged(_DATE, lambda value: value.isoformat()),
    timedelta: _tagged(_TIMEDELTA, lambda value: [value.days, value.seconds, value.microseconds]),
}


# --- decoding -----------------------------------------------------------------------------------------


def is_encoded(data: bytes) -> bool:
    """Whether bytes are of this form, rather than a pickle."""
    return data[: len(HEAD)] == HEAD


def decode(data: bytes) -> Any:
    """Return the value of bytes that anybody may have written.

    Raises:
        CannotDecode: they are not a value of this form.
    """
    if not is_encoded(data):
        raise CannotDecode("not of this form")
    reader = _Reader(data)
    try:
        value = reader.item(0)
    except CannotDecode:
        raise
    except (ValueError, IndexError, TypeError, OverflowError, struct.error, MemoryError, RecursionError) as error:
        raise CannotDecode(f"not a value: {error}") from error
    if reader.position != len(data):
        raise CannotDecode("something follows the value")
    return value


_SIZES = {24: struct.Struct(">B"), 25: struct.Struct(">H"), 26: struct.Struct(">I"), 27: struct.Struct(">Q")}
_DOUBLE = struct.Struct(">d")


class _Reader:
    """Reads one value; counts its parts."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = len(HEAD)
        self._left = _ITEMS_MAX

    def item(self, depth: int) -> Any:
        self._left -= 1
        if depth > _DEPTH_MAX or self._left < 0:
            raise CannotDecode("too deep, or too many parts")
        first = self._data[self.position]
        self.position += 1
        major, small = first >> 5, first & 31
        if major == 7:
            return self._simple(first)
        size = small if small < 24 else self._size(small)
        match major:
            case 0:
                return size
            case 1:
                return -1 - size
            case 2:
                return self._bytes(size)
            case 3:
                return self._bytes(size).decode("utf-8", "surrogatepass")
            case 4:
                self._check_count(size)
                return [self.item(depth + 1) for _ in range(size)]
            case 5:
                self._check_count(2 * size)
                return self._dict(size, depth)
        return self._tag(size, depth)

    def _size(self, small: int) -> int:
        known = _SIZES.get(small)
        if known is None:
            raise CannotDecode("a size that is none")
        size: int = known.unpack_from(self._data, self.position)[0]
        self.position += known.size
        return size

    def _check_count(self, count: int) -> None:
        if count > len(self._data) - self.position:
            raise CannotDecode("cut short")

    def _bytes(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise CannotDecode("cut short")
        found = self._data[self.position : end]
        self.position = end
        return found

    def _simple(self, first: int) -> Any:
        match first:
            case 0xF4:
                return False
            case 0xF5:
                return True
            case 0xF6:
                return None
            case 0xFB:
                value: float = _DOUBLE.unpack_from(self._data, self.position)[0]
                self.position += 8
                return value
        raise CannotDecode("an unknown simple value")

    def _dict(self, size: int, depth: int) -> dict[Any, Any]:
        pairs = [(self.item(depth + 1), self.item(depth + 1)) for _ in range(size)]
        _check_hashes([key for key, _value in pairs])
        found = dict(pairs)
        if len(found) != size:
            raise CannotDecode("a key twice")
        return found

    def _tag(self, tag: int, depth: int) -> Any:
        content = self.item(depth + 1)
        match tag:
            case _ if tag in (_POSITIVE, _NEGATIVE):
                if type(content) is not bytes or len(content) > _BIG_BYTES_MAX:
                    raise CannotDecode("a number that is none")
                number = int.from_bytes(content, "big")
                return number if tag == _POSITIVE else -1 - number
            case _ if tag == _BYTEARRAY and type(content) is bytes:
                return bytearray(content)
            case _ if tag in (_FLOATS, _INTEGERS) and type(content) is bytes:
                packed = array("d" if tag == _FLOATS else "q")
                packed.frombytes(content)
                if sys.byteorder == "little":
                    packed.byteswap()
                return packed.tolist()
            case _ if tag == _DATE and type(content) is str:
                return date.fromisoformat(content)
        if type(content) is not list:
            raise CannotDecode("an unknown kind of value")
        match tag:
            case _ if tag == _TUPLE:
                return tuple(content)
            case _ if tag in (_SET, _FROZENSET):
                _check_hashes(content)
                found = set(content)
                if len(found) != len(content):
                    raise CannotDecode("a member twice")
                return found if tag == _SET else frozenset(found)
            case _ if tag == _ARRAY:
                return _array(*content)
            case _ if tag == _SCALAR:
                dtype, data = content
                return _array(dtype, [], data)[()]
            case _ if tag in (_FRAME, _SERIES):
                return _frame(*content) if tag == _FRAME else _series(*content)
        return _plain(tag, content)


def _plain(tag: int, content: list[Any]) -> Any:
    """Return a number or moment of several parts."""
    if tag == _COMPLEX and [type(part) for part in content] == [float, float]:
        return complex(*content)
    if tag == _TIMEDELTA and [type(part) for part in content] == [int, int, int]:
        days, seconds, microseconds = content
        return timedelta(days=days, seconds=seconds, microseconds=microseconds)
    if tag in (_DATETIME, _TIME) and [type(part) for part in content] == [str, int]:
        text, fold = content
        return (datetime if tag == _DATETIME else time).fromisoformat(text).replace(fold=fold)
    raise CannotDecode("an unknown kind of value")


def _check_hashes(keys: Iterable[Any]) -> None:
    """Refuse keys that were chosen so that a table of them is slow."""
    hashes = sorted(hash(key) for key in keys if type(key) is not str)
    if len(hashes) < _WATCHED:
        return
    same = 1
    for one, other in pairwise(hashes):
        same = same + 1 if one == other else 1
        if same > _TWINS_MAX:
            raise CannotDecode("keys that have the same hash")


def _array(text: Any, shape: Any, data: Any) -> Any:
    """Return an array of these bytes, writable.

    Raises:
        CannotDecode, ValueError, TypeError: they are not its bytes.
    """
    if type(text) is not str or type(data) is not bytes or len(text) > 64 or "O" in text or "V" in text:
        raise CannotDecode("an array that is none")
    if type(shape) is not list or len(shape) > _DIMENSIONS_MAX or any(type(n) is not int or n < 0 for n in shape):
        raise CannotDecode("an array of no shape")
    import numpy

    dtype = numpy.dtype(text)
    if dtype.kind not in _DTYPE_KINDS or dtype.names is not None or dtype.subdtype is not None:
        raise CannotDecode("an array of no plain values")
    count = 1
    for size in shape:
        count *= size
    if not 0 < dtype.itemsize <= _DTYPE_BYTES_MAX or count * dtype.itemsize != len(data):
        raise CannotDecode("an array with too many or too few bytes")
    return numpy.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _frame(names: Any, columns: Any, index: Any) -> Any:
    """Return a frame of these columns.

    Raises:
        CannotDecode, ValueError, TypeError: they are none.
    """
    pandas = _pandas()
    if type(names) is not list or type(columns) is not list or len(names) != len(columns):
        raise CannotDecode("a frame with other names than columns")
    rows = _index_of(index, len(columns[0]) if columns else 0)
    series = [_values(column, len(rows)) for column in columns]
    frame = pandas.DataFrame(dict(enumerate(series)), index=rows)
    frame.columns = [_name(name) for name in names]
    return frame


def _series(name: Any, column: Any, index: Any) -> Any:
    pandas = _pandas()
    rows = _index_of(index, len(column))
    return pandas.Series(_values(column, len(rows)), index=rows, name=_name(name))


def _values(column: Any, count: int) -> Any:
    """Return a column that is one: an array of one dimension, or texts."""
    is_text = type(column) is list and all(item is None or type(item) is str for item in column)
    if len(column) != count or not (is_text or (type(column).__name__ == "ndarray" and column.ndim == 1)):
        raise CannotDecode("a column that is none")
    return column


def _index_of(index: Any, count: int) -> Any:
    pandas = _pandas()
    if index is None:
        return pandas.RangeIndex(count)
    name, values = index
    return pandas.Index(_values(values, len(values)), name=_name(name))


def _name(name: Any) -> Any:
    if name is not None and type(name) not in (str, int):
        raise CannotDecode("a name that is none")
    return name


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise CannotDecode("it is a table, and pandas is not installed here: pip install pandas") from error
    return pandas
