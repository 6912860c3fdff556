"""Settings: which exist, and which value holds.  Where files are is in `places`.

Owns the list of settings.  A value comes from the highest of: flag, environment (``P2PC_NODE__SLOTS``), project file
(``p2pc.toml``, or ``[tool.p2pc]`` of ``pyproject.toml``, here or above; only a few keys of `run`), user file, system
file, default.  Resolved once, then frozen; each value remembers where it came from.

Invariants: an unknown or impossible setting is an error that names it, never ignored; a project file, which may come
with somebody else's repository, cannot touch trust, network or node.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import ConfigError, UsageError
from p2pcompute.limits import (
    CUSTODIANS,
    CUSTODIANS_MAX,
    DNS_SERVERS_MAX,
    GRACE_S_MAX,
    NODE_NAME_CHARS_MAX,
    SEEDS_MAX,
)
from p2pcompute.places import Paths

PROJECT_FILE: Final = "p2pc.toml"
PYPROJECT_FILE: Final = "pyproject.toml"
ENVIRONMENT_PREFIX: Final = "P2PC_"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    name: str = field(default="", metadata={"help": "Name shown to others; empty: the host name."})
    slots: str = field(default="100%", metadata={"help": "Tasks at once: a number, or a share of the cores like 50%."})
    port: int = field(default=0, metadata={"help": "UDP and TCP port; 0: chosen at the first start and kept."})
    peers: tuple[str, ...] = field(default=(), metadata={"help": "First contacts, HOST:PORT."})
    seeds: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Asked for first contacts when nobody answers: domains with DNS records, or HOST:PORT."},
    )
    dns: tuple[str, ...] = field(
        default=(), metadata={"help": "Name servers to ask about domains of node.seeds; empty: the system's."}
    )
    discover: bool = field(default=True, metadata={"help": "Look for nodes on the local network."})
    interfaces: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Only these network interfaces; empty: all but virtual ones. 'lo' keeps to this machine."},
    )
    accept: str = field(
        default="sandboxed",
        metadata={
            "help": "Work of others: none, only WASM modules (wasm), in a sandbox (sandboxed), or as this user (all).",
            "choices": ("none", "wasm", "sandboxed", "all"),
        },
    )
    network: str = field(
        default="none",
        metadata={
            "help": "What tasks of others reach that ask for a network: nothing, or public addresses only (full).",
            "choices": ("none", "full"),
        },
    )
    accept_if: str = field(
        default="",
        metadata={"help": "Condition on jobs of others, like job.cpus<=2 && job.mem<=4G; empty: none."},
    )
    weight: str = field(
        default="1",
        metadata={"help": "Share of the cores for others in this group, where this machine is in several: a number."},
    )
    labels: tuple[str, ...] = field(
        default=(), metadata={"help": "What this machine is found by: words, and KEY=VALUE, like lab,zone=b."}
    )
    profile: str = field(
        default="auto",
        metadata={
            "help": "When the work of others runs, as far as it is not said one by one.",
            "choices": ("auto", "laptop", "desktop", "server", "always"),
        },
    )
    battery: str = field(
        default="",
        metadata={"help": "Work of others on battery: on or off; empty: the profile's.", "choices": ("", "on", "off")},
    )
    hours: str = field(
        default="any", metadata={"help": "Hours for the work of others, like 18-8 or mon-fri 19:00-7, sat-sun."}
    )
    policy: str = field(
        default="round-robin",
        metadata={"help": "Pool policy: which of several waiting nodes is given tasks first, like least-used."},
    )
    grace: str = field(
        default="30s", metadata={"help": "How long running tasks may take to finish when this node stops."}
    )
    until: str = field(
        default="", metadata={"help": "When this node leaves by itself, like 2026-11-30T18:30; empty: it stays."}
    )
    custodians: int = field(
        default=CUSTODIANS,
        metadata={"help": "Nodes that keep a job of this one too, and go on with it while this one is away."},
    )

    @property
    def grace_s(self) -> float:
        return parse_duration(self.grace)

    @property
    def leaves_at(self) -> float | None:
        """Unix seconds; None: it stays."""
        return parse_moment(self.until) if self.until else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitSettings:
    psk: str = field(
        default="",
        metadata={"help": "File with a key: who has a copy of it may join (p2pc join --psk); empty: nobody."},
    )
    keys: str = field(
        default="",
        metadata={"help": "File like authorized_keys: who has one of these keys may join (p2pc join --ssh-key)."},
    )
    nearby: bool = field(
        default=False, metadata={"help": "Let everybody on the local network join (p2pc join --nearby)."}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSettings:
    in_use: str = field(
        default="", metadata={"help": "Share of the cores for others while you are there; empty: the profile's."}
    )
    idle: str = field(
        default="", metadata={"help": "Share of the cores for others while you are away; empty: the profile's."}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    mem: str = field(default="", metadata={"help": "Memory limit of a task, like 2G; empty: none."})
    retries: int = field(default=2, metadata={"help": "Extra attempts after a failure of the task itself."})
    timeout: str = field(default="", metadata={"help": "Time limit of one attempt, like 5m; empty: none."})
    batch: str = field(default="auto", metadata={"help": "Inputs for one unit of work: auto, or a number from 1."})

    @property
    def mem_bytes(self) -> int | None:
        return parse_size(self.mem) if self.mem else None

    @property
    def timeout_s(self) -> float | None:
        return parse_duration(self.timeout) if self.timeout else None

    @property
    def batch_count(self) -> int | None:
        """None: chosen from the measured task time."""
        return None if self.batch == "auto" else int(self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    cache: str = field(default="20G", metadata={"help": "Most that files of other jobs may take on disk."})
    environments: str = field(
        default="20G",
        metadata={"help": "Most that Python packages of jobs may take on disk, as installed and fetched."},
    )
    keep: str = field(default="30d", metadata={"help": "How long finished jobs are kept."})

    @property
    def cache_bytes(self) -> int:
        return parse_size(self.cache)

    @property
    def environments_bytes(self) -> int:
        return parse_size(self.environments)

    @property
    def keep_s(self) -> float:
        return parse_duration(self.keep)


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
    admit: AdmitSettings = field(default_factory=AdmitSettings)
    cpu: CpuSettings = field(default_factory=CpuSettings)
    run: RunSettings = field(default_factory=RunSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    log: LogSettings = field(default_factory=LogSettings)
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where a value comes from, for keys that were set: "flag", "$VARIABLE" or a file."""

    def get(self, key: str) -> Any:
        """The value of a key like ``node.slots``."""
        section, name = split_key(key)
        return getattr(getattr(self, section), name)

    def origin(self, key: str) -> str:
        """Where the value of a key comes from; "default" when nobody set it."""
        split_key(key)
        return self.origins.get(key, "default")


SECTIONS: Final[dict[str, type]] = {
    "node": NodeSettings,
    "admit": AdmitSettings,
    "cpu": CpuSettings,
    "run": RunSettings,
    "store": StoreSettings,
    "log": LogSettings,
}
PROJECT_KEYS: Final = ("run.mem", "run.retries", "run.timeout", "run.batch")
"""What a project file may set: a cloned repository must not touch trust, network or node."""
_ALIASES: Final = {"P2PC_LOG": "log.level", "P2PC_LOG_FORMAT": "log.format"}
_DURATIONS: Final = {"node": (), "admit": (), "cpu": (), "run": ("timeout",), "store": ("keep",), "log": ()}
_SIZES: Final = {"node": (), "admit": (), "cpu": (), "run": ("mem",), "store": ("cache", "environments"), "log": ()}


_COUNTS_MAX: Final = {"node.seeds": SEEDS_MAX, "node.dns": DNS_SERVERS_MAX}


def all_keys() -> list[str]:
    """Every key, by section in declared order."""
    return [f"{section}.{item.name}" for section, kind in SECTIONS.items() for item in fields(kind)]


def help_of(key: str) -> str:
    """One sentence about a key."""
    section, name = split_key(key)
    return str(next(item.metadata["help"] for item in fields(SECTIONS[section]) if item.name == name))


_JSON_TYPES: Final = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}
_PLAIN_TEXTS: Final = ("node.slots", "node.weight", "run.batch")
"""Texts that may also be written as a number."""


def schema_of_file() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a settings file, for editors.  `read_file` looks closer."""
    settings, sections = Settings(), dict[str, Any]()
    for section, kind in SECTIONS.items():
        properties: dict[str, Any] = {}
        for item in fields(kind):
            default = settings.get(f"{section}.{item.name}")
            about = properties[item.name] = {"description": item.metadata["help"]}
            if isinstance(default, tuple):
                about |= {"type": "array", "items": {"type": "string"}, "default": [*default]}
            elif f"{section}.{item.name}" in _PLAIN_TEXTS:
                about |= {"type": ["string", "number"], "default": default}
            else:
                about |= {"type": _JSON_TYPES[str(item.type)], "default": default}
            if "choices" in item.metadata:
                about["enum"] = list(item.metadata["choices"])
        sections[section] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "p2pcompute settings",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
    }


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


_NUMBER_CHARS_MAX: Final = 32
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)?")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGTP])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)


DURATION_S_MAX: Final = 86400.0 * 100_000
"""273 years: moments that far away can still be written."""


def parse_duration(text: str) -> float:
    """Return seconds of "30", "30s", "10m", "1h30m", "2d".

    Raises:
        UsageError: it is not a duration, or longer than DURATION_S_MAX.
    """
    compact = text.strip().lower()
    parts = _DURATION.findall(compact)
    is_mixed = len(parts) > 1 and any(not unit for _, unit in parts)
    is_whole = "".join(number + unit for number, unit in parts) == compact
    if not parts or not is_whole or is_mixed or len(compact) > _NUMBER_CHARS_MAX:
        raise UsageError(f'"{text}" is not a duration', "", "write it like 30s, 10m, 1h30m or 2d", code="duration")
    duration_s = sum(float(number) * _DURATION_UNITS[unit or "s"] for number, unit in parts)
    if duration_s > DURATION_S_MAX:
        longest = f"{DURATION_S_MAX / 86400:.0f}d"
        raise UsageError(
            f"{text} is too long", f"a duration is up to {longest}", "write a shorter one", code="too-long"
        )
    return duration_s


def parse_moment(text: str) -> float:
    """Return Unix seconds of a date with a time, like "2026-11-30T18:30"; its zone is the machine's unless it says so.

    Raises:
        UsageError: it is none.
    """
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f'"{text}" is no moment', "", "write it like 2026-11-30T18:30", code="moment") from None


SIZE_MAX: Final = 512 * 1024**5


def parse_size(text: str) -> int:
    """Return bytes of "1000", "64K", "2G", "1.5GiB"; units are powers of 1,024.

    Raises:
        UsageError: it is not a size, or larger than SIZE_MAX.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(text) > _NUMBER_CHARS_MAX:
        raise UsageError(f'"{text}" is not a size', "", "write it like 500M or 2G", code="size")
    power = " KMGTP".index((match[2] or " ").upper())
    size = int(float(match[1]) * 1024**power)
    if size > SIZE_MAX:
        raise UsageError(
            f"{text} is too large", "a size is up to 512P", "what nodes have: p2pc peers NODE", code="size"
        )
    return size


def parse_weight(text: str) -> float:
    """Return how much the work of others in a group counts on a machine that is in several.

    Raises:
        ConfigError: it is no number from 0 to 1000.
    """
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1000:
        raise ConfigError(f'"{text}" is not a weight', "", "write a number from 0 to 1000, like 1 or 2.5")
    return weight


def parse_slots(text: str, cpus: float) -> int:
    """Return the number of slots, at least 1, of "4" or "50%" on a machine with `cpus` cores.

    Raises:
        ConfigError: it is neither.
    """
    match = re.fullmatch(r"([0-9]{1,20})(%?)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f'"{text}" is not a number of slots', "", "write a number or a share, like 4 or 50%")
    if int(match[1]) > 99_999:
        raise ConfigError(f"{text} slots are too many", "there are 99999 at most", "write one like 4 or 50%")
    return max(1, int(cpus * int(match[1]) / 100)) if match[2] else int(match[1])


_LABELS_MAX: Final = 32
_LABEL_KEY_CHARS_MAX: Final = 32
_LABEL_CHARS_MAX: Final = 64
"""All labels, with whatever letters, have 11 KiB at most: see ATTRIBUTES_BYTES_MAX."""
_LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_]*")
_LABEL_WORD: Final = re.compile(r"[A-Za-z0-9_][\w.+:/@-]*", re.ASCII)
"""What needs no quotes in an expression."""


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return values by key of ("lab", "zone=b"); that of a word alone, a tag, is empty.

    Raises:
        UsageError: one is neither, or there are two of a name.
    """
    found: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        is_good = _LABEL_KEY.fullmatch(key) and value and value.isprintable() if equals else _LABEL_WORD.fullmatch(key)
        if not is_good or len(key) > _LABEL_KEY_CHARS_MAX or len(value) > _LABEL_CHARS_MAX:
            raise UsageError(
                f'"{label}" is not a label',
                f"a word or lower-case key of up to {_LABEL_KEY_CHARS_MAX} characters, a value of {_LABEL_CHARS_MAX}",
                "write them like lab,zone=b",
                code="label",
            )
        if key in found:
            raise UsageError(f'there are two labels "{key}"', "", "leave one out", code="label")
        found[key] = value
    if len(found) > _LABELS_MAX:
        raise UsageError(f"{len(found)} labels are too many", f"there may be {_LABELS_MAX}", code="label")
    return found


def parse_peer(text: str) -> tuple[str, int]:
    """Return (host, port) of "host:7878", "192.0.2.1:7878" or "[2001:db8::1]:7878".

    Raises:
        UsageError: it is not a host and a port.
    """
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    if not colon or not host or any(char.isspace() or char in "[]/" for char in host) or not is_port:
        raise UsageError(
            f'"{text}" is not an address of a node',
            "",
            "write HOST:PORT, like nova:7878 or [2001:db8::1]:7878",
            code="address",
        )
    return host, int(port)


_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+(?=[a-z])[a-z0-9-]{2,63}")
"""At least two labels, the last of which is no number: "nova" has lost its port, "192.0.2.1" too."""


def parse_seed(text: str) -> tuple[str, int | None]:
    """Return (domain, None) of "mesh.example.org", and (host, port) of what `parse_peer` understands.

    Raises:
        UsageError: it is neither.
    """
    domain = text.strip().removesuffix(".").lower()
    if _HOST_NAME.fullmatch(domain):
        return domain, None
    try:
        return parse_peer(text)
    except UsageError as error:
        raise UsageError(
            f'"{text}" is not a seed',
            "",
            "write a domain, like mesh.example.org (in ASCII, xn--… if need be), or HOST:PORT, like nova:7878",
            code="seed",
        ) from error


DNS_PORT: Final = 53


def parse_name_server(text: str) -> tuple[str, int]:
    """Return (address, port) of "192.0.2.53", "2001:db8::53", "192.0.2.53:5353" or "[2001:db8::53]:5353".

    Raises:
        UsageError: it is not an address; a name would have to be looked up first.
    """
    import ipaddress

    try:
        try:
            return str(ipaddress.ip_address(text.strip().removeprefix("[").removesuffix("]"))), DNS_PORT
        except ValueError:
            host, port = parse_peer(text)
            return str(ipaddress.ip_address(host)), port
    except (ValueError, UsageError) as error:
        raise UsageError(
            f'"{text}" is not the address of a name server',
            "",
            "write an address, with a port if it is not 53, like 192.0.2.53 or [2001:db8::53]:5353",
            code="address",
        ) from error


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
        if key == "node.weight":
            parse_weight(result)
        if key == "node.slots":
            parse_slots(result, 1)
        if key == "node.port" and not 0 <= result <= 65535:
            raise ConfigError("a port is a number from 0 to 65535")
        if isinstance(result, int | float) and not 0 <= result < 1e9:
            raise ConfigError("it may not be negative" if result < 0 else "it is too large")
        if key == "node.grace" and parse_duration(result or "") > GRACE_S_MAX:
            raise ConfigError(f"a node stops within {GRACE_S_MAX:g} s")
        if key == "node.until" and result:
            parse_moment(result)
        if key == "run.timeout" and result and parse_duration(result) == 0:
            raise ConfigError("no task ends in 0 seconds")
        if key == "run.batch" and result != "auto" and not (_is_count(result) and int(result) >= 1):
            raise ConfigError("it is auto or a number from 1")
        if key == "node.custodians" and result > CUSTODIANS_MAX:
            raise ConfigError(f"there may be {CUSTODIANS_MAX} of them")
        if key == "node.peers":
            for peer in result:
                parse_peer(peer)
        if key == "node.seeds":
            for seed in result:
                parse_seed(seed)
        if key == "node.dns":
            for name_server in result:
                parse_name_server(name_server)
        if key in _COUNTS_MAX and len(result) > _COUNTS_MAX[key]:
            raise ConfigError(f"there may be {_COUNTS_MAX[key]} of them")
        if key == "node.labels":
            parse_labels(result)
        if key == "node.name" and len(result) > NODE_NAME_CHARS_MAX:
            raise ConfigError(f"it may have {NODE_NAME_CHARS_MAX} characters", f"it has {len(result):,}")
        if "choices" in item.metadata and result not in item.metadata["choices"]:
            raise ConfigError(f"it is one of {', '.join(one or '(empty)' for one in item.metadata['choices'])}")
    except UsageError as error:
        raise ConfigError(
            f"{key} cannot be {value!r}",
            error.what if not error.why else f"{error.what}; {error.why}",
            error.fix or f"give it another value; what it says: {help_of(key)}",
        ) from error
    return result


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


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
                number = float(value)
                if math.isfinite(number) and (kind == "float" or number.is_integer()):
                    return number if kind == "float" else int(number)
            except (TypeError, ValueError, OverflowError):
                pass
            raise ConfigError("it is a whole number" if kind == "int" else "it is a number")
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


def _parse_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return (data, text) of a TOML file; nothing when there is no file."""
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except FileNotFoundError:
        return {}, ""
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", str(error), "correct the file, or move it away") from error


def _place(path: Path, text: str, key: str, table: str = "") -> str:
    """Return "file, line N" of a key like ``run.retries``; without the line when it cannot be told.

    Args:
        table: what stands before the section in this file, like "tool.p2pc".
    """
    wanted = [*filter(None, table.split(".")), *key.split(".")]
    section: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if bare.startswith("["):
            section = _dotted(bare.strip("[]").split("]")[0])
            if section == wanted:
                return f"{path}, line {number}"
        elif "=" in bare and section + _dotted(bare.split("=")[0]) == wanted:
            return f"{path}, line {number}"
    return str(path)


def _dotted(text: str) -> list[str]:
    return [part.strip().strip("\"'") for part in text.split(".")]


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``section.name`` → value; what is no table keeps its own name."""
    out: dict[str, Any] = {}
    for section, content in data.items():
        if isinstance(content, dict):
            out.update({f"{section}.{name}": value for name, value in content.items()})
        else:
            out[section] = content
    return out


def read_file(path: Path) -> dict[str, Any]:
    """Return the keys of a TOML file as ``section.name``; nothing when there is no file.

    Raises:
        ConfigError: unreadable, not TOML, or with an unknown setting; the message names the line.
    """
    data, text = _parse_toml(path)
    out = {}
    for key, value in _flat(data).items():
        try:
            out[key] = convert(key, value)
        except ConfigError as error:
            raise _located(error, _place(path, text, key)) from error
    return out


def _located(error: ConfigError, place: str) -> ConfigError:
    why = f"{error.why}; in {place}" if error.why else f"in {place}"
    return ConfigError(error.what, why, error.fix, code=error.code)


def find_project_file(start: Path) -> Path | None:
    """Return the project file of `start` or of the nearest folder above it.

    That is `p2pc.toml`, or a `pyproject.toml` with a table ``[tool.p2pc]``.
    """
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
        if (folder / PYPROJECT_FILE).is_file() and _tool_table(folder / PYPROJECT_FILE) is not None:
            return folder / PYPROJECT_FILE
    return None


def _tool_table(path: Path) -> tuple[dict[str, Any], str] | None:
    """Return (the table ``[tool.p2pc]``, the file's text); a broken file of other tools is not our matter."""
    try:
        data, text = _parse_toml(path)
    except ConfigError:
        return None
    tool = data.get("tool")
    table = tool.get("p2pc") if isinstance(tool, dict) else None
    return (table, text) if isinstance(table, dict) else None


def read_project_file(path: Path, warn: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Return what a project file sets, of the keys that it may set.

    Args:
        warn: told, in one sentence each, about keys that are ignored.  A key that this build does not know is
            among them: a repository may be meant for a later one.

    Raises:
        ConfigError: not TOML, or a value that does not fit.
    """
    table = ""
    if path.name == PYPROJECT_FILE:
        table = "tool.p2pc"
        data, text = _tool_table(path) or ({}, "")
    else:
        data, text = _parse_toml(path)
    out = {}
    for key, value in _flat(data).items():
        place = _place(path, text, key, table)
        if key not in PROJECT_KEYS:
            if warn is not None:
                warn(f"ignored {key} in {place}: {_why_ignored(key)}")
            continue
        try:
            out[key] = convert(key, value)
        except ConfigError as error:
            raise _located(error, place) from error
    return out


def _why_ignored(key: str) -> str:
    try:
        split_key(key)
    except ConfigError as error:
        return f"{error.what}{f' ({error.why})' if error.why else ''}"
    return f"a project file may set only {', '.join(PROJECT_KEYS)}"


def load_settings(
    paths: Paths,
    environ: Mapping[str, str],
    *,
    flags: Mapping[str, Any] | None = None,
    project: Path | None = None,
    warn: Callable[[str], object] | None = None,
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
        take(read_project_file(project, warn), str(project))
    for variable in sorted(environ):
        mapped = _ALIASES.get(variable)
        if mapped is None and variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
            mapped = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1)
        if mapped is not None and environ[variable] != "":
            try:
                take({mapped: convert(mapped, environ[variable])}, f"${variable}")
            except ConfigError as error:
                raise _located(error, f"the environment variable {variable}") from error
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
    path = path.resolve()  # a link, as dotfile collections make them, stays a link
    read_file(path)
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
        table: Any = document.get(section)
        if value is None:
            if table is not None:
                table.pop(name, None)
        else:
            if table is None:
                table = document[section] = tomlkit.table()
                table = document[section]
            table[name] = list(value) if isinstance(value, tuple) else value
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(tomlkit.dumps(document), encoding="utf-8")
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", str(error)) from error
