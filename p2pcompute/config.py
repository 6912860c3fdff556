"""Settings and places: where files are, which settings exist, and which value holds.

Owns the list of settings.  A value comes from the highest of: flag, environment (``P2PC_NODE__SLOTS``), project file
(``p2pc.toml`` here or above, only `run.*`), user file, system file, default.  Resolved once, then frozen.

Invariants: an unknown or impossible setting is an error that names it, never ignored; a project file, which may come
with somebody else's repository, cannot touch trust, network or node.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import ConfigError, UsageError

SOCKET_PATH_BYTES_MAX: Final = 103
"""Of `sockaddr_un.sun_path` on macOS; Linux takes 107."""

PROJECT_FILE: Final = "p2pc.toml"
ENVIRONMENT_PREFIX: Final = "P2PC_"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    name: str = field(default="", metadata={"help": "Name shown to others; empty: the host name."})
    slots: str = field(default="100%", metadata={"help": "Tasks at once: a number, or a share of the cores like 50%."})
    port: int = field(default=0, metadata={"help": "UDP and TCP port; 0: chosen at the first start and kept."})
    peers: tuple[str, ...] = field(default=(), metadata={"help": "First contacts, HOST:PORT."})
    discover: bool = field(default=True, metadata={"help": "Look for nodes on the local network."})
    interfaces: tuple[str, ...] = field(
        default=(), metadata={"help": "Only these network interfaces; empty: all. 'lo' keeps the node on this machine."}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    cpus: float = field(default=1.0, metadata={"help": "Cores for a task."})
    mem: str = field(default="", metadata={"help": "Memory limit of a task, like 2G; empty: none."})
    retries: int = field(default=2, metadata={"help": "Extra attempts after a failure of the task itself."})
    timeout: str = field(default="", metadata={"help": "Time limit of one attempt, like 5m; empty: none."})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    cache: str = field(default="20G", metadata={"help": "Most that files of other jobs may take on disk."})
    keep: str = field(default="30d", metadata={"help": "How long finished jobs are kept."})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    level: str = field(
        default="info",
        metadata={"help": "debug, info, warning or error.", "choices": ("debug", "info", "warning", "error")},
    )
    format: str = field(default="text", metadata={"help": "text or json.", "choices": ("text", "json")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, resolved."""

    node: NodeSettings = field(default_factory=NodeSettings)
    run: RunSettings = field(default_factory=RunSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    log: LogSettings = field(default_factory=LogSettings)
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where a value comes from, for keys that are not at their default."""

    def get(self, key: str) -> Any:
        """The value of a key like ``node.slots``."""
        section, name = split_key(key)
        return getattr(getattr(self, section), name)


SECTIONS: Final[dict[str, type]] = {
    "node": NodeSettings, "run": RunSettings, "store": StoreSettings, "log": LogSettings,
}
PROJECT_SECTIONS: Final = ("run",)
_ALIASES: Final = {"P2PC_LOG": "log.level", "P2PC_LOG_FORMAT": "log.format"}
_DURATIONS: Final = {"node": (), "run": ("timeout",), "store": ("keep",), "log": ()}
_SIZES: Final = {"node": (), "run": ("mem",), "store": ("cache",), "log": ()}


def all_keys() -> list[str]:
    """Every key, by section in declared order."""
    return [f"{section}.{item.name}" for section, kind in SECTIONS.items() for item in fields(kind)]


def help_of(key: str) -> str:
    """One sentence about a key."""
    section, name = split_key(key)
    return str(next(item.metadata["help"] for item in fields(SECTIONS[section]) if item.name == name))


def split_key(key: str) -> tuple[str, str]:
    """Return (section, name).

    Raises:
        ConfigError: no such setting; the nearest one is suggested.
    """
    section, _, name = key.partition(".")
    if section in SECTIONS and any(item.name == name for item in fields(SECTIONS[section])):
        return section, name
    import difflib

    near = difflib.get_close_matches(key, all_keys(), n=1, cutoff=0.5)
    raise ConfigError(
        f'there is no setting "{key}"',
        f'did you mean "{near[0]}"?' if near else "",
        "see all: p2pc config show",
        code="unknown-setting",
    )


# --- words for quantities -------------------------------------------------------------------------


_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)?")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?B)?", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Return seconds of "30", "30s", "10m", "1h30m", "2d".

    Raises:
        UsageError: it is not a duration.
    """
    compact = text.strip().lower()
    parts = _DURATION.findall(compact)
    is_mixed = len(parts) > 1 and any(not unit for _, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != compact or is_mixed:
        raise UsageError(f'"{text}" is not a duration', "", "write it like 30s, 10m, 1h30m or 2d", code="duration")
    return sum(float(number) * _DURATION_UNITS[unit or "s"] for number, unit in parts)


def parse_size(text: str) -> int:
    """Return bytes of "1000", "64K", "2G", "1.5GiB"; units are powers of 1,024.

    Raises:
        UsageError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f'"{text}" is not a size', "", "write it like 500M or 2G", code="size")
    power = " KMGTP".index(match[2].upper() or " ")
    return int(float(match[1]) * 1024**power)


def parse_slots(text: str, cpus: float) -> int:
    """Return the number of slots, at least 1, of "4" or "50%" on a machine with `cpus` cores.

    Raises:
        ConfigError: it is neither.
    """
    match = re.fullmatch(r"(\d{1,5})(%?)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f'"{text}" is not a number of slots', "", "write a number or a share, like 4 or 50%")
    return max(1, int(cpus * int(match[1]) / 100)) if match[2] else int(match[1])


# --- resolving ------------------------------------------------------------------------------------


def convert(key: str, value: Any) -> Any:
    """Return a value in the type of its setting; text from flags and the environment is understood too.

    Raises:
        ConfigError: it does not fit.
    """
    section, name = split_key(key)
    item = next(item for item in fields(SECTIONS[section]) if item.name == name)
    try:
        result = _typed(item.type, value)
        if name in _DURATIONS[section] and result:
            parse_duration(result)
        if name in _SIZES[section] and result:
            parse_size(result)
        if key == "node.slots":
            parse_slots(result, 1)
        if key == "node.port" and not 0 <= result <= 65535:
            raise ConfigError("a port is a number from 0 to 65535")
        if isinstance(result, int | float) and result < 0:
            raise ConfigError("it may not be negative")
        if "choices" in item.metadata and result not in item.metadata["choices"]:
            raise ConfigError(f"it is one of {', '.join(item.metadata['choices'])}")
    except UsageError as error:
        raise ConfigError(
            f"{key} cannot be {value!r}", error.what if not error.why else f"{error.what}; {error.why}",
            error.fix or help_of(key),
        ) from error
    return result


_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("0", "false", "no", "off")


def _typed(kind: Any, value: Any) -> Any:
    """`kind` is the annotation as text."""
    match kind:
        case "bool":
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
                return value.lower() in _TRUE
            raise ConfigError("it is true or false")
        case "int" | "float":
            if isinstance(value, bool):
                raise ConfigError("it is a number")
            try:
                return int(value) if kind == "int" else float(value)
            except (TypeError, ValueError):
                raise ConfigError("it is a number") from None
        case "str":
            if isinstance(value, str):
                return value
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)
            raise ConfigError("it is text")
        case _:
            if isinstance(value, str):
                return tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
                return tuple(value)
            raise ConfigError("it is a list of words")


def read_file(path: Path) -> dict[str, Any]:
    """Return the keys of a TOML file as ``section.name``; nothing when there is no file.

    Raises:
        ConfigError: unreadable, not TOML, or with an unknown setting.
    """
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", str(error), "correct the file, or move it away") from error
    out = {}
    for section, content in data.items():
        if not isinstance(content, dict):
            split_key(section)
        for name, value in content.items():
            key = f"{section}.{name}"
            try:
                out[key] = convert(key, value)
            except ConfigError as error:
                error.why = f"{error.why} in {path}".strip()
                raise
    return out


def find_project_file(start: Path) -> Path | None:
    """Return the `p2pc.toml` of `start` or of the nearest folder above it."""
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
    return None


def load_settings(
    paths: Paths,
    environ: Mapping[str, str],
    *,
    flags: Mapping[str, Any] | None = None,
    project: Path | None = None,
    warn: Any = None,
) -> Settings:
    """Return the settings that hold.

    Args:
        flags: values by key that were given on the command line; None means not given.
        project: a project file; keys that it may not set are left out and reported to `warn(text)`.

    Raises:
        ConfigError: a file or variable is wrong.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(found: Mapping[str, Any], origin: str) -> None:
        for key, value in found.items():
            values[key] = value
            origins[key] = origin

    for path in (*paths.system_configs, paths.config_file):
        take(read_file(path), str(path))
    if project is not None:
        found = read_file(project)
        refused = [key for key in found if key.split(".")[0] not in PROJECT_SECTIONS]
        if refused and warn is not None:
            warn(f"{project}: ignored {', '.join(refused)}; a project file may set only run.*")
        take({key: value for key, value in found.items() if key not in refused}, str(project))
    for variable in sorted(environ):
        mapped = _ALIASES.get(variable)
        if mapped is None and variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
            mapped = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1)
        if mapped is not None and environ[variable] != "":
            take({mapped: convert(mapped, environ[variable])}, f"${variable}")
    take({key: convert(key, value) for key, value in (flags or {}).items() if value is not None}, "flag")
    sections = {
        section: kind(**{key.split(".")[1]: value for key, value in values.items() if key.split(".")[0] == section})
        for section, kind in SECTIONS.items()
    }
    return Settings(**sections, origins=origins)


def write_setting(path: Path, key: str, value: Any) -> None:
    """Set (or, with None, remove) one key in a file; comments and order of the rest stay.

    Raises:
        ConfigError: no such setting, a value that does not fit, or a file that cannot be written.
    """
    import tomlkit

    section, name = split_key(key)
    if value is not None:
        value = convert(key, value)
    read_file(path)
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
        table: Any = document.get(section)
        if value is None:
            if table is not None:
                table.pop(name, None)
                if not table:
                    document.pop(section)
        else:
            if table is None:
                table = document[section] = tomlkit.table()
                table = document[section]
            table[name] = list(value) if isinstance(value, tuple) else value
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(tomlkit.dumps(document), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", str(error)) from error


# --- places ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where one installation keeps its things."""

    config_file: Path
    system_configs: tuple[Path, ...]
    data: Path
    """Identity and group, mode 0700."""
    store: Path
    """Journal and blobs."""
    state: Path
    """Log, lock, process file."""
    socket: Path

    @property
    def log(self) -> Path:
        return self.state / "node.log"

    @property
    def lock(self) -> Path:
        return self.state / "node.lock"

    @property
    def run_file(self) -> Path:
        """JSON {pid, version, socket} of the running node."""
        return self.state / "node.json"


def find_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """Return the places of this user's installation on this machine.

    With P2PC_HOME everything is in that one folder.  Otherwise data and state are kept per host name, so that home
    directories shared by several machines give each its own identity.

    Raises:
        ConfigError: P2PC_HOME is relative.
    """
    environ = os.environ if environ is None else environ
    home = environ.get("P2PC_HOME")
    system: tuple[Path, ...]
    if home:
        root = Path(home).expanduser()
        if not root.is_absolute():
            raise ConfigError(f'P2PC_HOME is "{home}"', "it must be a whole path", "for example: P2PC_HOME=$PWD/home")
        config, data, state, system = root / "config.toml", root, root, ()
        runtime = None
    else:
        config_dir, data_dir, state_dir = _user_directories(environ)
        machine = re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename) or "machine"
        config = config_dir / "config.toml"
        data, state = data_dir / "machines" / machine, state_dir / "machines" / machine
        system = (Path("/etc/p2pc/config.toml"),)
        runtime = environ.get("XDG_RUNTIME_DIR")
    if environ.get("P2PC_CONFIG"):
        config, system = Path(environ["P2PC_CONFIG"]).expanduser().absolute(), ()
    socket = environ.get("P2PC_SOCKET")
    return Paths(
        config_file=config,
        system_configs=system,
        data=data,
        store=data / "store",
        state=state,
        socket=Path(socket).absolute() if socket else _socket_path(state, runtime),
    )


def _user_directories(environ: Mapping[str, str]) -> tuple[Path, Path, Path]:
    """(config, data, state) by the XDG base directory specification, and Apple's places on macOS."""
    user = Path(environ.get("HOME") or Path.home())
    if sys.platform == "darwin":
        support = user / "Library" / "Application Support" / "p2pc"
        return support, support, support
    places = []
    for variable, fallback in (
        ("XDG_CONFIG_HOME", ".config"), ("XDG_DATA_HOME", ".local/share"), ("XDG_STATE_HOME", ".local/state"),
    ):
        given = environ.get(variable, "")
        places.append((Path(given) if given.startswith("/") else user / fallback) / "p2pc")
    return places[0], places[1], places[2]


def _socket_path(state: Path, runtime: str | None) -> Path:
    """The socket's place; a path too long for a socket address moves to /tmp, under a name of its own."""
    if runtime and runtime.startswith("/") and Path(runtime).is_dir():
        path = Path(runtime) / "p2pc" / "node.sock"
    else:
        path = state / "run" / "node.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        tag = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
        path = Path(f"/tmp/p2pc-{os.getuid()}-{tag}") / "node.sock"
    return path
