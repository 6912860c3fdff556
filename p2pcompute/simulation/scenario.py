"""Scenarios: TOML files that name a question, an experiment and its settings.

The keys of a file other than `question`, `experiment` and `[keys]` are the settings of the experiment, a msgspec
Struct, which says what is allowed.  `[keys]` gives long keys short names for ``--set`` and ``--sweep``.  Scenarios that
come along are in the wheel; any other one is named by its path, and files that it names are sought beside it.

Invariant: an unknown key or an impossible value is refused with its place and what is allowed, never ignored.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from p2pcompute.errors import UsageError
from p2pcompute.limits import MIB

FILE_BYTES_MAX: Final = MIB
DEPTH_MAX: Final = 32
"""Tables and lists of a scenario inside one another."""
SUFFIX: Final = ".toml"
_OWN_KEYS: Final = ("question", "experiment", "keys")
NEAR_MAX: Final = 3
"""Keys that are suggested in place of one that does not exist."""

_Path = tuple[str | int, ...]
_Locate = Callable[[_Path], str]


@dataclass(frozen=True, slots=True)
class Experiment:
    """What a scenario can be about.  Both are named as ``module:name`` and imported when they are needed."""

    settings: str
    """A msgspec Struct that forbids unknown fields and has a default for every field."""
    run: str
    """A function (scenario, seed, *, until_s, watch) → RunResult."""
    has_moments: bool = True
    """A run can be cut short at a moment of its time.  False: it runs to its end."""
    has_events: bool = True
    """A run tells what happens in it."""

    def settings_type(self) -> type[msgspec.Struct]:
        found = load_named(self.settings)
        assert isinstance(found, type) and issubclass(found, msgspec.Struct)
        return found


EXPERIMENTS: Final[dict[str, Experiment]] = {
    "mesh": Experiment("p2pcompute.simulation.mesh_settings:MeshSettings", "p2pcompute.simulation.mesh_run:run_mesh"),
    "custody": Experiment(
        "p2pcompute.simulation.custody_runs:CustodySettings",
        "p2pcompute.simulation.custody_runs:run_custody",
        has_moments=False,
    ),
    "dht": Experiment("p2pcompute.simulation.dht_runs:DhtSettings", "p2pcompute.simulation.dht_runs:run_dht"),
    "index": Experiment(
        "p2pcompute.simulation.index_runs:IndexSettings",
        "p2pcompute.simulation.index_runs:run_index",
        has_moments=False,
    ),
    "small": Experiment("p2pcompute.simulation.small_runs:SmallSettings", "p2pcompute.simulation.small_runs:run_small"),
    "pool": Experiment(
        "p2pcompute.simulation.pool_runs:PoolSettings",
        "p2pcompute.simulation.pool_runs:run_pool",
        has_moments=False,
        has_events=False,
    ),
    "trust": Experiment(
        "p2pcompute.simulation.trust_runs:TrustSettings",
        "p2pcompute.simulation.trust_runs:run_trust",
        has_moments=False,
        has_events=False,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario, as a value: it can be pickled and needs its file no more."""

    name: str
    question: str
    experiment: str
    settings: Any
    """The experiment's Struct."""
    keys: Mapping[str, str]
    """Short name → dotted key, for --set and --sweep."""
    source: str
    """What to type to load it again: its name, or the path of its file."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """File that it names → where it does so: "mine.toml, line 4: "."""

    def digest(self) -> str:
        """SHA-256 of experiment, settings and the files that they name, in hex: what a run depends on besides seed and
        code.

        Raises:
            UsageError: one of these files cannot be read.
        """
        content: list[Any] = [self.experiment, msgspec.to_builtins(self.settings)]
        for path in self.files():
            try:
                content.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
            except OSError as error:
                raise _wrong(f"{path} cannot be read", error.strerror or str(error), "") from error
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check_files(self) -> None:
        """Raises UsageError when a trace that the settings name cannot be read; its line is named."""
        for place, value in _files(msgspec.to_builtins(self.settings)):
            if reader := _FILE_KEYS.get(str(place[-1])):
                try:
                    load_named(reader)(value)
                except UsageError as error:
                    origin = self.origins.get(value, "")
                    raise UsageError(f"{origin}{error.what}", error.why, error.fix, code=error.code) from error

    def files(self) -> list[str]:
        """Files beside the scenario that its settings name."""
        return [value for _, value in _files(msgspec.to_builtins(self.settings))]


_FILE_KEYS: Final = {"trace": "p2pcompute.simulation.avt:read_avt", "file": "p2pcompute.simulation.swf:read_swf"}
_FILE_SUFFIX: Final = ".syscoord"
"""A text under one of these keys, or with this ending, is the path of a file.  What reads it says what is wrong."""


def _files(data: Any, place: _Path = ()) -> Iterator[tuple[_Path, str]]:
    items: Any = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list | tuple) else ()
    for key, value in items:
        if isinstance(value, str) and value and (key in _FILE_KEYS or value.endswith(_FILE_SUFFIX)):
            yield (*place, key), value
        else:
            yield from _files(value, (*place, key))


def load_named(name: str) -> Any:
    """Import what ``module:name`` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


# --- finding and reading --------------------------------------------------------------------------


def scenario_files() -> dict[str, Path]:
    """Return the files of the scenarios that come along, by name, in the order of their names."""
    folder = Path(str(resources.files("p2pcompute.simulation"))) / "scenarios"
    if not folder.is_dir():  # a source tree
        folder = Path(str(resources.files("p2pcompute"))).parent / "simulations" / "scenarios"
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def list_scenarios() -> dict[str, str]:
    """Return name → question of the scenarios that come along."""
    return {name: str(_read(path)[0].get("question", "")) for name, path in scenario_files().items()}


def _is_path(name_or_path: str) -> bool:
    return "/" in name_or_path or name_or_path.endswith(SUFFIX)


def scenario_path(name_or_path: str) -> Path:
    """Return the file of a scenario by its name, or by the path of its file, which need not exist.

    Raises:
        UsageError: none has this name.
    """
    if _is_path(name_or_path):
        return Path(name_or_path)
    files = scenario_files()
    if name_or_path not in files:
        near = difflib.get_close_matches(name_or_path, files, n=1)
        raise UsageError(
            f'there is no scenario "{name_or_path}"',
            f'did you mean "{near[0]}"?' if near else "",
            "see: p2pc sim list, or name a file: ./mine.toml",
            code="scenario",
        )
    return files[name_or_path]


def load_scenario(name_or_path: str) -> Scenario:
    """Return a scenario by its name, or by the path of its file.

    Raises:
        UsageError: there is none, or it is wrong; file, line and what is allowed are named.
    """
    path = scenario_path(name_or_path)
    data, text = _read(path)
    lines = _lines_of(text)

    def locate(place: _Path) -> str:
        known = next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), None)
        return f"{path}, line {known}: " if known else f"{path}: "

    own = {key: data.pop(key) for key in _OWN_KEYS if key in data}
    question, experiment, keys = own.get("question", ""), own.get("experiment", ""), own.get("keys", {})
    if not isinstance(question, str) or not question.strip():
        raise _wrong(
            f"{locate(('question',))}there is no question",
            "a scenario says which one it answers",
            'add one: question = "…?"',
        )
    if not isinstance(experiment, str) or experiment not in EXPERIMENTS:
        what = f"experiment cannot be {experiment!r}" if "experiment" in own else "there is no experiment"
        why = f"it is {_one_of(EXPERIMENTS)}"
        raise _wrong(f"{locate(('experiment',))}{what}", why, 'name one: experiment = "mesh" is of whole nodes')
    kind = EXPERIMENTS[experiment].settings_type()
    origins: dict[str, str] = {}
    for key, file in list(_files(data)):
        _put(data, key, str(path.parent / file), "")
        origins[str(path.parent / file)] = locate(key)
    settings = _convert(data, kind, locate)
    _check_effect(settings, _leaves(data), locate)
    if not isinstance(keys, dict):
        raise _wrong(f"{locate(('keys',))}keys is not a table", "it gives keys short names: short = 'long.key'", "")
    for short, long in keys.items():
        place = locate(("keys", short))
        if not isinstance(long, str):
            raise _wrong(f"{place}keys.{short} cannot be {long!r}", "it is the name of a key", "")
        _type_at(inspect.type_info(kind), _split(long), place, {})
        is_key = short in kind.__struct_fields__ and not isinstance(getattr(settings, short), msgspec.Struct)
        if is_key and short != long:  # a table, which is no key, may lend its name
            what = f"{place}keys.{short} cannot stand for {long!r}"
            raise _wrong(what, f"{short} is a key of its own", "call it something else")
    return Scenario(
        name=path.stem if _is_path(name_or_path) else name_or_path,
        question=question.strip(),
        experiment=experiment,
        settings=settings,
        keys=keys,
        source=name_or_path,
        origins=origins,
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Return (data, text) of a TOML file."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device may never end
            raise _wrong(f"{path} is no scenario", "it is not a regular file", "name a TOML file")
        if path.stat().st_size > FILE_BYTES_MAX:
            raise _wrong(f"{path} is no scenario", f"it has more than {FILE_BYTES_MAX} bytes", "name a TOML file")
        text = path.read_text(encoding="utf-8-sig")  # editors of some systems put a mark of UTF-8 at the beginning
        data = tomllib.loads(text)
        if _depth(data) > DEPTH_MAX:
            raise RecursionError
        return data, text
    except OSError as error:
        raise _wrong(f"{path} cannot be read", error.strerror or str(error), "see: p2pc sim list") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _wrong(f"{path}, line {line}: not TOML", "it is not UTF-8 text", "correct the file") from error
    except RecursionError as error:
        raise _wrong(f"{path} is not TOML", "tables or brackets are nested too deeply", "correct the file") from error
    except ValueError as error:  # no TOML, or a number of thousands of digits
        raise _wrong(f"{path} is not TOML", _why_no_toml(str(error), text), "correct the file") from error


_LINE_IN: Final = re.compile(r"Cannot overwrite a value \(at (?:line (\d+), |end of document)")


def _why_no_toml(why: str, text: str) -> str:
    """What the parser says, and of a key that is there twice which one that is."""
    if found := _LINE_IN.match(why):
        lines = text.splitlines()
        for line in reversed(lines[: int(found[1] or len(lines))]):  # a value may have several lines
            key, equals, _ = line.partition("=")
            if equals and (name := key.strip()) and not name.startswith(("#", "[", "{")):
                return f"the key {name} is given twice: {why}"
    return why


def _depth(data: Any) -> int:
    """Return how deep tables and lists are inside one another."""
    depth, level = 0, [data]
    while level:
        depth += 1
        level = [one for item in level for one in (item.values() if isinstance(item, dict) else item)]
        level = [one for one in level if isinstance(one, dict | list)]
    return depth


def _lines_of(text: str) -> dict[_Path, int]:
    """Return the line on which each key and table of valid TOML begins."""
    lines: dict[_Path, int] = {}
    sizes: dict[_Path, int] = {}
    table: _Path = ()
    statement, begin = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        begin = begin if statement else number
        statement += line + "\n"
        try:
            data = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # a value of several lines
        is_table, statement = statement.lstrip().startswith("["), ""
        if not is_table:
            lines |= dict.fromkeys((table + place for place in _places(data)), begin)
            continue
        table = ()
        while data:  # a header holds one name in the other
            name, data = next(iter(data.items()))
            table += (name,)
            if isinstance(data, list):
                sizes[table] = sizes.get(table, 0) + 1
                data = data[0]
            if table in sizes:
                table += (sizes[table] - 1,)
        lines.setdefault(table, begin)
    return lines


def _places(data: Mapping[str, Any]) -> Iterator[_Path]:
    for name, value in data.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *place) for place in _places(value))


# --- checking -------------------------------------------------------------------------------------


def _wrong(what: str, why: str, fix: str) -> UsageError:
    return UsageError(what, why, fix or None, code="scenario")


def _one_of(names: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> str:
    return "one of " + ", ".join(str(name) for name in names)


_STEP: Final = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")
_NAMED: Final = re.compile(r"`(\w+)`")
"""A key, in what a Struct says of itself."""


def _convert(data: Any, kind: type[msgspec.Struct], locate: _Locate) -> msgspec.Struct:
    """Return `data` as settings of this type.

    Raises:
        UsageError: it does not fit.
    """
    for place, value in _numbers(data):
        if not math.isfinite(value):
            found, _ = _type_at(inspect.type_info(kind), place, locate(place), {})
            allowed = allowed_text(found).replace("a number", "a finite number", 1)
            raise _wrong(f"{locate(place)}{dotted(place)} cannot be {value}", f"it is {allowed}", "")
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        raw = _STEP.findall(where)
        path: _Path = tuple(name or (int(index) if index.isdigit() else index) for name, index in raw)
        raise _explained(message, path, data, inspect.type_info(kind), locate) from error


def _leaves(data: Any, place: _Path = ()) -> Iterator[_Path]:
    """Yield the places of all values that are no tables and no lists of them."""
    items: Any = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        inner = list(_leaves(value, (*place, key)))
        yield from inner or [(*place, key)]


def _check_effect(settings: msgspec.Struct, places: Iterable[_Path], locate: _Locate) -> None:
    """Raises UsageError when something is said, if only its default, that means nothing beside the rest; a Struct that
    knows such fields has a method `without_effect`."""
    for place in places:
        owner: Any = settings
        for step in place[:-1]:
            owner = getattr(owner, str(step)) if isinstance(owner, msgspec.Struct) else owner[step]
        if (judge := getattr(owner, "without_effect", None)) and (why := judge(place[-1])):
            raise _wrong(f"{locate(place)}{dotted(place[:-1])} is impossible", why, "leave it out")


def _explained(message: str, path: _Path, data: Any, root: inspect.Type, locate: _Locate) -> UsageError:
    kind, help_text = _type_at(root, path, "", data)
    if unknown := _UNKNOWN.fullmatch(message):
        assert isinstance(kind, inspect.StructType)
        allowed = [field.name for field in kind.fields]
        table = f" in [{dotted(path)}]" if path else ""
        return _unknown_key(locate((*path, unknown[1])), unknown[1], table, allowed, root)
    value = data
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            value = None
            break
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):  # its __post_init__ says what
        named = next((name for name in _NAMED.findall(message) if name in value), None)
        place = locate(path if named is None else (*path, named))
        return _wrong(f"{place}{dotted(path) or 'this'} is impossible", message, "")
    meaning = f": {help_text}" if help_text else ""
    return _wrong(f"{locate(path)}{dotted(path)} cannot be {_shown(value)}", f"it is {allowed_text(kind)}{meaning}", "")


def _unknown_key(
    place: str, name: str, table: str, allowed: list[str], root: inspect.Type, path: _Path = ()
) -> UsageError:
    """Say that there is no such key, and which one could be meant.

    Args:
        path: the whole key, where it was typed as one: it may be wrong from its beginning on.
    """
    near = difflib.get_close_matches(name, allowed, n=1)
    if path:
        known, words = list(_keys_of(root)), [step for step in path if isinstance(step, str)]
        same = [key for key in known if key.rpartition(".")[2] == words[-1]] if len(words) == 1 else []
        whole = difflib.get_close_matches(".".join(words), known, n=1, cutoff=0.8) if len(words) > 1 else []
        near = same or whole or near
    why = f"did you mean {' or '.join(json.dumps(key) for key in near[:NEAR_MAX])}?" if near else ""
    of = next((f" --experiment {one}" for one, about in EXPERIMENTS.items() if _is_of(about, root)), "")
    of = "" if of == " --experiment mesh" else of
    fix = f"allowed: {', '.join(dict.fromkeys(allowed))}; see: p2pc sim keys{of}"
    return _wrong(f'{place}there is no key "{name}"{table}', why, fix)


def _is_of(experiment: Experiment, root: inspect.Type) -> bool:
    """Whether these are its settings; imports nothing."""
    return isinstance(root, inspect.StructType) and experiment.settings == f"{root.cls.__module__}:{root.cls.__name__}"


def _keys_of(kind: inspect.Type, before: str = "") -> Iterator[str]:
    """Yield the keys of settings, dotted; those of a list of tables without a number."""
    kind, _ = bare_type(kind)
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for one in kinds:
        bare, _ = bare_type(one)
        if isinstance(bare, inspect.VarTupleType | inspect.ListType):
            bare, _ = bare_type(bare.item_type)
        if isinstance(bare, inspect.StructType):
            for field in bare.fields:
                name = f"{before}{field.name}"
                inner = list(_keys_of(field.type, f"{name}."))
                yield from inner or [name]


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)[:80]


def _numbers(data: Any, place: _Path = ()) -> Iterator[tuple[_Path, float]]:
    items: Any = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _numbers(value, (*place, key))
    if isinstance(data, float):
        yield place, data


def dotted(path: _Path) -> str:
    return ".".join(str(step) for step in path)


def _split(key: str) -> _Path:
    return tuple(int(step) if step.isdecimal() else step for step in key.split("."))


def bare_type(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """Return a type without its description, and that."""
    text = ""
    while isinstance(kind, inspect.Metadata):
        text = str((kind.extra_json_schema or {}).get("description", text))
        kind = kind.type
    return kind, text


def _type_at(root: inspect.Type, path: _Path, place: str, short: Mapping[str, Any]) -> tuple[inspect.Type, str]:
    """Return the type at a place in settings and what it means.

    Args:
        short: further keys that may be named at the top.

    Raises:
        UsageError: there is no such key.
    """
    kind, text = bare_type(root)
    for depth, step in enumerate(path):
        if isinstance(kind, inspect.UnionType):
            kind, text = bare_type(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
        if isinstance(kind, inspect.VarTupleType | inspect.ListType) or (
            isinstance(kind, inspect.TupleType) and not isinstance(step, str)
        ):
            kind, text = bare_type(_item_type(kind))
            if not isinstance(step, str):
                continue
        if isinstance(kind, inspect.DictType):
            kind, text = bare_type(kind.value_type)
            continue
        fields = {field.name: field for field in kind.fields} if isinstance(kind, inspect.StructType) else {}
        if step not in fields:
            if not isinstance(kind, inspect.StructType):
                name = dotted(path[:depth])
                raise _wrong(
                    f'{place}there is no key "{dotted(path)}"', f"{name} is {allowed_text(kind)}", f"set {name}"
                )
            table = f" in [{dotted(path[:depth])}]" if depth else ""
            allowed = [*fields, *(() if depth else short)]
            raise _unknown_key(place, dotted(path[depth:]), table, allowed, root, path)
        kind, text = bare_type(fields[str(step)].type)
    return kind, text


def allowed_text(kind: inspect.Type) -> str:
    """Return what a type allows, in words: "a number from 0 to 1"."""
    kind, _ = bare_type(kind)
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            name = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            low = (
                f"from {kind.ge:.15g}"
                if kind.ge is not None
                else f"above {kind.gt:.15g}"
                if kind.gt is not None
                else ""
            )
            high = (
                f"to {kind.le:.15g}" if kind.le is not None else f"below {kind.lt:.15g}" if kind.lt is not None else ""
            )
            return " ".join(word for word in (name, low, high) if word)
        case inspect.StrType():
            return "text"
        case inspect.LiteralType(values):
            return _one_of(values)
        case inspect.VarTupleType(item_type) | inspect.ListType(item_type):
            return f"a list, each of it {allowed_text(item_type)}"
        case inspect.TupleType(item_types):
            return _tuple_text(item_types)
        case inspect.StructType() | inspect.DictType():
            return "a table"
        case inspect.UnionType(types):
            return " or ".join(allowed_text(one) for one in types)
        case inspect.NoneType():
            return "none"
        case _:
            return type(kind).__name__.removesuffix("Type").lower()


_EXAMPLES: Final = ("0.5", "0.01", "0.2", "2")
_COUNTS: Final = {1: "one", 2: "two", 3: "three", 4: "four"}
assert len(_EXAMPLES) == len(_COUNTS)


def _tuple_text(item_types: tuple[inspect.Type, ...]) -> str:
    """What a list of a certain length allows: so many numbers; no settings have another one."""
    count, example = len(item_types), _EXAMPLES[: len(item_types)]
    assert all(isinstance(bare_type(one)[0], inspect.FloatType) for one in item_types)
    # A file and a sweep, whose values have commas between them, take no other form than that of TOML.
    return f"{_COUNTS[count]} numbers, as {','.join(example)} (in a file and in --sweep [{', '.join(example)}])"


# --- changing -------------------------------------------------------------------------------------


def with_values(
    scenario: Scenario, values: Mapping[str, str], *, flag: str = "--set", words: Mapping[str, str] | None = None
) -> Scenario:
    """Return the scenario with settings changed.

    Args:
        values: short or dotted key → value as typed: TOML, or text.  In a list of tables a number names one of them
            ("workload.0.tasks"); without it all are meant ("workload.tasks").
        flag: with which they were typed, for errors.
        words: key → how it was typed, where that was in another way.

    Raises:
        UsageError: no such key, or a value that cannot be; what is allowed is named.
    """
    if not values:
        return scenario
    kind = type(scenario.settings)
    root = inspect.type_info(kind)
    data = msgspec.to_builtins(scenario.settings)
    typed: dict[_Path, str] = {}
    for key, text in values.items():
        path = _split(scenario.keys.get(key, key))
        place = f"{(words or {}).get(key) or f'{flag} {key}={text}'}: "
        found, _ = _type_at(root, path, place, scenario.keys)
        if isinstance(found, inspect.StructType):
            names = ", ".join(f"{key}.{field.name}" for field in found.fields)
            raise _wrong(f"{place}{key} is a table", "", f"set one of {names}")
        for target in _targets(data, path):
            _put(data, target, _parsed(text, found), place)
            typed[target] = place
        if path not in typed and not any(True for _ in _targets(data, path)):
            raise _nothing_there(place, path, data)

    def locate(place: _Path) -> str:
        return next(
            (text for path, text in typed.items() if path[: len(place)] == place or place[: len(path)] == path), ""
        )

    settings = _convert(data, kind, locate)
    _check_effect(settings, typed, locate)
    return replace(scenario, settings=settings)


def _nothing_there(place: str, path: _Path, data: Any) -> UsageError:
    """Say what a key lacks that names no table of a list."""
    name, why = path[0], "there is nothing to change"
    if not (tables := data[name]) or isinstance(tables, dict):
        return _wrong(f"{place}the scenario has no [[{name}]]", why, "")
    count = len(tables)
    which = f"{name}.0" if count == 1 else f"{name}.0 to {name}.{count - 1}"
    return _wrong(f"{place}there is no {dotted(path[:2])}", f"the scenario has {count} [[{name}]]: {which}", "")


def value_at(scenario: Scenario, key: str) -> Any:
    """Return the value of a short or dotted key; of the first table where it means several."""
    data = msgspec.to_builtins(scenario.settings)
    for target in itertools.islice(_targets(data, _split(scenario.keys.get(key, key))), 1):
        for step in target:
            data = data[step]
    return data


def value_text(value: Any) -> str:
    """Return the value of a setting as ``--set`` takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(value_text, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)


def _targets(data: Any, path: _Path) -> Iterator[_Path]:
    """Yield the places that a key means."""
    if not path:
        yield ()
        return
    if isinstance(data, list | tuple) and isinstance(path[0], str):
        for index, item in enumerate(data):
            yield from ((index, *rest) for rest in _targets(item, path))
        return
    try:
        inner = data[path[0]]
    except (KeyError, TypeError):
        inner = {}
    except IndexError:
        return
    yield from ((path[0], *rest) for rest in _targets(inner, path[1:]))


def _put(data: Any, path: _Path, value: Any, place: str) -> None:
    for step in path[:-1]:
        if isinstance(data, dict) and data.get(str(step)) is None and isinstance(step, str):
            data[step] = {}
        data = data[step]
    if isinstance(data, tuple):
        raise _wrong(f"{place}one item of a list cannot be set", "", "give the whole list")
    data[path[-1]] = value


def _parsed(text: str, kind: inspect.Type) -> Any:
    """Return a value as typed: TOML where it is some, text where that is wanted or all that it can be."""
    kinds = [bare_type(one)[0] for one in kind.types] if isinstance(kind, inspect.UnionType) else [kind]
    if text == "none" and any(isinstance(one, inspect.NoneType) for one in kinds):
        return None
    lists = [one for one in kinds if isinstance(one, _LISTS)]
    if lists and not text.startswith("["):
        return [_parsed(part, _item_type(lists[0])) for part in split_values(text)]
    is_text = any(isinstance(one, inspect.StrType | inspect.LiteralType) for one in kinds)
    if is_text and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, thousands of digits, or of brackets
        return text


_List = inspect.VarTupleType | inspect.ListType | inspect.TupleType
_LISTS: Final = (inspect.VarTupleType, inspect.ListType, inspect.TupleType)


def _item_type(kind: _List) -> inspect.Type:
    """The type of what is in a list; the items of one of a certain length are all of one type."""
    return kind.item_types[0] if isinstance(kind, inspect.TupleType) else kind.item_type


def split_values(text: str) -> list[str]:
    """Return the parts of "A,B,C"; commas within brackets or quotes do not count.  Empty text has no parts."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts] if text.strip() else []
