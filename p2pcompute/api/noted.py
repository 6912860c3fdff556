"""Calls of which more is sent or kept than function and arguments: files, what they are known by, where results go.

Other calls, which are most, never come here.
"""

from __future__ import annotations

import os
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.api.files import SentFile, filled, renamed, sent_files, text_of
from p2pcompute.api.functions import Shipment, name_of, requirements_of
from p2pcompute.api.options import TaskOptions
from p2pcompute.api.pickling import dump_call
from p2pcompute.api.result_folder import Note, call_key
from p2pcompute.api.result_keys import content_key
from p2pcompute.execution.code_key import key_of, value_key
from p2pcompute.execution.locking import NONE

if TYPE_CHECKING:
    from p2pcompute.api.futures import MeshFuture

CODE_KEYS_MAX: Final = 256
"""Functions whose keys are remembered."""
ARGUMENT_CHARS_MAX: Final = 200
"""Of one argument as people read it."""

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = ARGUMENT_CHARS_MAX


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready to be handed in."""

    data: bytes
    """Its pickled arguments."""
    parts: Sequence[Any]
    """What these refer to; see `execution.calls`."""
    files: Sequence[SentFile]
    fetch: tuple[str, ...]
    note: Note


@dataclass(slots=True, eq=False)
class Noting:
    """Prepares the calls of one executor; by any thread."""

    has_keys: bool
    digest_of: Callable[[SentFile], bytes]
    """Hash of a file's content."""
    _codes: dict[bytes, bytes] = field(default_factory=dict)
    """Key of a function's code, by that of its shipment."""
    _surroundings: dict[str, bytes] = field(default_factory=dict)
    """Of calls with options that are not the usual ones, by their identity."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(
        self,
        shipment: Shipment,
        beside: bytes,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: TaskOptions,
    ) -> Prepared:
        """Return a call with its files found and its key made.

        Args:
            beside: pickle of the function, when that travels with the arguments.

        Raises:
            UsageError: a file or an argument cannot be sent.
        """
        value = text_of(args[0]) if args else None
        files = sent_files(filled(options.send, value))
        names = {file.path: file.name for file in files if file.path != file.name}
        fetch = filled(options.fetch, value if value is None else names.get(value, value))
        inside = args if not names else tuple(renamed(arg, names) for arg in args)
        data, parts = dump_call((beside, *inside) if beside else inside, kwargs, shipment.zipped_names)
        inputs = (*map(_text, args), *(f"{name}={_text(arg)}" for name, arg in kwargs.items()))
        key = b""
        if self.has_keys:
            code = self._code_key(shipment, beside, function, options) + self._surroundings_key(options)
            key = self._key(code, inside, kwargs, data, parts, files, fetch)
        note = Note(name=name_of(function), inputs=inputs, key=key, to=Path.cwd())
        return Prepared(data, parts, files, fetch, note)

    def _code_key(self, shipment: Shipment, beside: bytes, function: Callable[..., Any], options: TaskOptions) -> bytes:
        if options.key is not None:
            return b"named " + content_key(name_of(function), options.key)
        with self._lock:
            known = None if beside else self._codes.get(shipment.key)
            if known is None:
                known = key_of(function)
                if not beside:
                    if len(self._codes) >= CODE_KEYS_MAX:
                        del self._codes[next(iter(self._codes))]
                    self._codes[shipment.key] = known
            return known

    def _surroundings_key(self, options: TaskOptions) -> bytes:
        """Return what else makes the call another one: variables, packages, digits; b"" for the usual ones.

        Raises:
            UsageError: the list of packages cannot be read.
        """
        if not options.env and not options.digits and options.deps == NONE:
            return b""
        identity = options.identity()
        with self._lock:
            known = self._surroundings.get(identity)
            if known is None:
                requirements = requirements_of(options)
                packages = b"" if requirements is None else requirements.key
                variables = sorted(f"{name}={value}" for name, value in options.env.items())
                is_usual = not (packages or variables or options.digits)
                known = b"" if is_usual else content_key("in", variables, packages, str(options.digits))
                if len(self._surroundings) >= CODE_KEYS_MAX:
                    del self._surroundings[next(iter(self._surroundings))]
                self._surroundings[identity] = known
            return known

    def _key(
        self,
        code: bytes,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        data: bytes,
        parts: Sequence[Any],
        files: Sequence[SentFile],
        fetch: tuple[str, ...],
    ) -> bytes:
        """Return the key of a call; b"" when it waits for one that has none."""
        sent = [part for file in files for part in (file.name, self.digest_of(file).hex())]
        if not parts:
            return call_key(code, value_key((args, kwargs)), *sent, *fetch)
        keys = [_part_key(part) for part in parts]
        return call_key(code, data, *keys, *sent, *fetch) if all(keys) else b""


def _part_key(part: Any) -> bytes:
    """Return what a future or a shared object is known by in another run."""
    ref = getattr(part, "ref", None)
    if ref is not None:
        digest: bytes = ref.digest
        return digest
    future: MeshFuture[Any] | None = part if hasattr(part, "_note") else None
    return b"" if future is None or future._note is None else future._note.key


def _text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)[:ARGUMENT_CHARS_MAX]
    return _shown.repr(value)[:ARGUMENT_CHARS_MAX]
