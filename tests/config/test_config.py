"""Settings: which value holds, what is refused, and that a file keeps its comments."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.config import (
    PROJECT_KEYS,
    Settings,
    all_keys,
    convert,
    find_project_file,
    help_of,
    load_settings,
    parse_duration,
    parse_labels,
    parse_name_server,
    parse_peer,
    parse_seed,
    parse_size,
    parse_slots,
    write_setting,
)
from p2pcompute.errors import ConfigError, UsageError
from p2pcompute.places import Paths, find_paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(
        config_file=tmp_path / "user.toml",
        system_configs=(tmp_path / "system.toml",),
        base=tmp_path,
        data=tmp_path,
        store=tmp_path / "store",
        state=tmp_path,
        socket=tmp_path / "s",
    )


def load(paths: Paths, environ: dict[str, str] | None = None, **more: Any) -> Settings:
    return load_settings(paths, environ or {}, **more)


def test_defaults(paths: Paths) -> None:
    """A fresh machine needs a file before anything runs."""
    settings = load(paths)
    assert (settings.run.retries, settings.node.accept, settings.node.port) == (2, "sandboxed", 0)
    assert settings.node.discover and settings.node.peers == () and settings.node.interfaces == ()
    assert (settings.run.timeout_s, settings.run.mem_bytes, settings.run.batch_count) == (None, None, None)
    assert settings.store.cache_bytes == 20 * 1024**3 and settings.store.keep_s == 30 * 86400
    assert {settings.origin(key) for key in all_keys()} == {"default"}
    assert all(help_of(key).endswith(".") for key in all_keys())


def test_precedence_and_origins(paths: Paths, tmp_path: Path) -> None:
    """A setting of a lower place wins, or nobody can say where a value came from."""
    project = tmp_path / "p2pc.toml"
    places: list[tuple[Any, str]] = [
        (lambda: paths.system_configs[0].write_text("[run]\nretries = 10\n"), str(paths.system_configs[0])),
        (lambda: paths.config_file.write_text("[run]\nretries = 11\n"), str(paths.config_file)),
        (lambda: project.write_text("[run]\nretries = 12\n"), str(project)),
    ]
    environ: dict[str, str] = {}
    for number, (place, origin) in enumerate(places):
        place()
        settings = load(paths, environ, project=project)
        assert (settings.run.retries, settings.origin("run.retries")) == (10 + number, origin)
    environ["P2PC_RUN__RETRIES"] = "13"
    settings = load(paths, environ, project=project)
    assert (settings.run.retries, settings.origin("run.retries")) == (13, "$P2PC_RUN__RETRIES")
    settings = load(paths, environ, project=project, flags={"run.retries": 14, "run.mem": None})
    assert (settings.run.retries, settings.origin("run.retries")) == (14, "flag")
    assert settings.origin("run.mem") == "default"


def test_environment(paths: Paths) -> None:
    """A variable is not understood, or an unrelated one is taken for a setting."""
    environ = {
        "P2PC_NODE__INTERFACES": "lo, eth0",
        "P2PC_NODE__DISCOVER": "no",
        "P2PC_NODE__PEERS": "a:1,[::1]:2",
        "P2PC_RUN__TIMEOUT": "1h30m",
        "P2PC_RUN__MEM": "1.5GiB",
        "P2PC_RUN__BATCH": "7",
        "P2PC_HOME": "/x",
        "P2PC_NO_AUTOSTART": "1",
        "OTHER__THING": "1",
        "P2PC_NODE__NAME": "",
    }
    settings = load(paths, environ)
    assert settings.node.interfaces == ("lo", "eth0") and settings.node.peers == ("a:1", "[::1]:2")
    assert not settings.node.discover and settings.node.name == ""
    assert settings.run.timeout_s == 5400 and settings.run.mem_bytes == 3 * 2**29 and settings.run.batch_count == 7


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("[run]\n# note\nretrys = 5\n", 3, "run.retrys", "run.retries"),
        ("[nodes]\nname = 'x'\n", 2, "nodes.name", "node.name"),
        ("run.retrys = 5\n", 1, "run.retrys", "run.retries"),
        ("[store]\ncache = '1G'\n\n[log]\nlevl = 'info'\n", 5, "log.levl", "log.level"),
        ("retries = 5\n", 1, "retries", "run.retries"),
    ],
)
def test_unknown_keys_are_errors_with_the_line(paths: Paths, text: str, line: int, what: str, hint: str) -> None:
    """A typing error in a file is ignored, and the setting seems not to work."""
    paths.config_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(paths)
    assert what in caught.value.what and hint in caught.value.why
    assert f"{paths.config_file}, line {line}" in caught.value.why and caught.value.fix


def test_unknown_variables_and_flags_are_errors(paths: Paths) -> None:
    """A typing error in a variable is ignored."""
    with pytest.raises(ConfigError) as caught:
        load(paths, {"P2PC_RUN__RETRYS": "5"})
    assert "P2PC_RUN__RETRYS" in caught.value.why and "run.retries" in caught.value.why
    with pytest.raises(ConfigError):
        load(paths, flags={"run.retrys": 5})


BAD = [
    ("run.retries", -1),
    ("run.retries", 2.5),
    ("run.retries", "x"),
    ("run.retries", True),
    ("run.retries", [1]),
    ("run.retries", "nan"),
    ("run.retries", "1e999"),
    ("run.retries", 10**400),
    ("run.retries", "inf"),
    ("run.timeout", "5 minutes"),
    ("run.timeout", "0"),
    ("run.timeout", "-5"),
    ("run.mem", "1Q"),
    ("run.mem", "G"),
    ("run.batch", "0"),
    ("run.batch", "many"),
    ("run.batch", "-1"),
    ("run.batch", 1.5),
    ("node.port", 70000),
    ("node.port", -1),
    ("node.discover", "maybe"),
    ("node.discover", 1),
    ("node.accept", "some"),
    ("node.labels", "two words"),
    ("node.labels", "zone="),
    ("node.labels", "Zone=b"),
    ("node.labels", "=b"),
    ("node.labels", "zone=b,zone=c"),
    ("node.labels", "zone=\x1b[31m"),
    ("node.labels", "x" * 33),
    ("node.labels", "zone=" + "x" * 65),
    ("node.labels", ["a,b"]),
    ("node.labels", [f"w{number}" for number in range(33)]),
    ("node.peers", "nova"),
    ("node.peers", ["nova:0"]),
    ("node.peers", [1]),
    ("node.slots", "0"),
    ("node.slots", "x"),
    ("log.level", "loud"),
    ("store.cache", "much"),
    ("node.name", ["x"]),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_impossible_values(key: str, value: Any) -> None:
    """A value that means nothing is taken, and fails much later or never."""
    with pytest.raises(ConfigError) as caught:
        convert(key, value)
    assert key in caught.value.what and (caught.value.why or caught.value.fix)


def test_impossible_value_in_a_file_names_the_line(paths: Paths) -> None:
    """The user has to guess which of his files is wrong."""
    paths.config_file.write_text('[run]\nretries = 1\ntimeout = "soon"\n')
    with pytest.raises(ConfigError) as caught:
        load(paths)
    assert f"{paths.config_file}, line 3" in caught.value.why
    for content in (b"[run\n", b"\xff", b"[run]\na = 1\na = 2\n"):
        paths.config_file.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            load(paths)


@given(
    st.sampled_from(all_keys()),
    st.one_of(
        st.text(max_size=20),
        st.integers(),
        st.floats(),
        st.none(),
        st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3),
        st.booleans(),
        st.dictionaries(st.text(), st.none()),
    ),
)
def test_any_value_fits_or_is_a_config_error(key: str, value: Any) -> None:
    """A strange value in a file ends in a traceback, or what was accepted cannot be read again."""
    try:
        result = convert(key, value)
    except ConfigError:
        return
    assert convert(key, result) == result
    section, name = key.split(".")
    defaults = Settings()
    assert type(result) is type(getattr(getattr(defaults, section), name))


# --- project files --------------------------------------------------------------------------------


def test_a_project_file_sets_only_harmless_keys(paths: Paths, tmp_path: Path) -> None:
    """A cloned repository opens this machine to others."""
    project = tmp_path / "p2pc.toml"
    project.write_text(
        'surprise = 1\n[run]\nretries = 7\nmem = "1G"\nshell = "x"\n'
        '[node]\naccept = "all"\npeers = ["evil:1"]\n[trust]\nlevel = 9\n'
    )
    said: list[str] = []
    settings = load(paths, project=project, warn=said.append)
    assert settings.run.retries == 7 and settings.run.mem_bytes == 2**30
    assert settings.node.peers == () and settings.origin("node.accept") == "default"
    for word in ("surprise", "run.shell", "node.accept", "node.peers", "trust.level"):
        assert sum(f"ignored {word} in {project}, line " in text for text in said) == 1
    assert len(said) == 5
    assert load(paths, project=project).run.retries == 7, "warnings are optional"
    assert {key.split(".")[0] for key in PROJECT_KEYS} == {"run"} and set(PROJECT_KEYS) <= set(all_keys())


def test_pyproject(paths: Paths, tmp_path: Path) -> None:
    """Settings in pyproject.toml are not found, or another tool's file breaks every command."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    outer = tmp_path / "pyproject.toml"
    outer.write_text("[project]\nname = 'x'\n")
    assert find_project_file(inner) is None
    outer.write_text("[project]\nname = 'x'\n[tool.p2pc.run]\nretries = 4\n[tool.p2pc]\nodd = 1\n")
    assert find_project_file(inner) == outer
    said: list[str] = []
    assert load(paths, project=outer, warn=said.append).run.retries == 4
    assert len(said) == 1 and f"{outer}, line 6" in said[0]
    (inner.parent / "pyproject.toml").write_text("[broken")
    assert find_project_file(inner) == outer
    (tmp_path / "p2pc.toml").write_text("")
    assert find_project_file(inner) == tmp_path / "p2pc.toml", "our own file comes first in one folder"
    outer.write_text("[tool.p2pc]\nrun.retries = 'many'\n")
    with pytest.raises(ConfigError) as caught:
        load(paths, project=outer)
    assert f"{outer}, line 2" in caught.value.why


# --- writing --------------------------------------------------------------------------------------


def test_set_and_unset_keep_everything_else(paths: Paths) -> None:
    """`config set` throws comments away."""
    path = paths.config_file
    path.write_text("# mine\n[run]\nretries = 1 # few\n\n[node] # this one\nname = 'nova'\n")
    write_setting(path, "run.retries", "5")
    write_setting(path, "node.peers", "a:1,b:2")
    write_setting(path, "log.level", "debug")
    text = path.read_text()
    for piece in ("# mine", "retries = 5 # few", "[node] # this one", "name = 'nova'"):
        assert piece in text
    settings = load(paths)
    assert settings.run.retries == 5 and settings.node.peers == ("a:1", "b:2") and settings.log.level == "debug"
    write_setting(path, "run.retries", None)
    write_setting(path, "run.mem", None)
    assert load(paths).origin("run.retries") == "default" and "# mine" in path.read_text()
    assert sorted(os.listdir(path.parent)) == [path.name], "no temporary file stays"


def test_set_makes_the_file_and_refuses_nonsense(paths: Paths, tmp_path: Path) -> None:
    """`config set` fails on a fresh machine, or writes what the next start refuses."""
    path = tmp_path / "new" / "config.toml"
    write_setting(path, "run.timeout", "5m")
    before = path.read_text()
    for key, value in (("run.timeout", "soon"), ("run.timeot", "5m")):
        with pytest.raises(ConfigError):
            write_setting(path, key, value)
    assert path.read_text() == before
    path.write_text("[broken")
    with pytest.raises(ConfigError):
        write_setting(path, "run.timeout", "6m")
    assert path.read_text() == "[broken"


def test_set_follows_links_and_keeps_the_mode(tmp_path: Path) -> None:
    """A file in a dotfile collection is replaced by a copy, or becomes readable by all."""
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text("")
    real.chmod(0o600)
    link.symlink_to(real)
    write_setting(link, "run.retries", 3)
    assert link.is_symlink() and "retries = 3" in real.read_text() and real.stat().st_mode & 0o777 == 0o600


@given(st.sampled_from(all_keys()), st.text(max_size=12))
def test_what_was_set_is_what_holds(key: str, text: str) -> None:
    """A value changes on its way through the file."""
    import tempfile

    try:
        value = convert(key, text)
    except ConfigError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.toml"
        write_setting(path, key, text)
        everything = Paths(
            config_file=path, system_configs=(), base=path, data=path, store=path, state=path, socket=path
        )
        assert load(everything).get(key) == value


# --- quantities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("1w", 604800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A time limit is read in another unit."""
    assert math.isclose(parse_duration(text), seconds)
    assert math.isclose(parse_duration(f" {text.upper()} "), seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("500", 500),
        ("7B", 7),
        ("1k", 1024),
        ("500M", 500 * 2**20),
        ("1GiB", 2**30),
        ("1.5G", 3 * 2**29),
        ("2 TB", 2**41),
    ],
)
def test_sizes(text: str, count: int) -> None:
    """A memory limit is read in another unit."""
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "s", "5x", "1h 30", "1h30", "-5s", "5 m s", "1e3", "٣s", "9" * 40, "nan", "inf"])
def test_not_a_duration(text: str) -> None:
    """A slip of the finger becomes some duration."""
    with pytest.raises(UsageError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "M", "-1M", "1iB", "5%", "1 G x", "٣M", "1\u212a", "9" * 40, "nan", "1e9"])
def test_not_a_size(text: str) -> None:
    """A slip of the finger becomes some size."""
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


def test_what_is_too_large_is_not_called_malformed() -> None:
    """People look for the mistake in their spelling, not in the number."""
    for parse, text, words in (
        (parse_duration, "99999999999h", "is too long"),
        (parse_size, "9999999T", "is too large"),
        (lambda word: parse_slots(word, 4), "99999999", "too many"),
    ):
        with pytest.raises(UsageError, match=words):
            parse(text)


@given(st.text(max_size=40))
def test_quantities_of_junk(text: str) -> None:
    """A strange flag ends in a traceback."""
    for parse in (parse_duration, parse_size, parse_peer, lambda word: parse_slots(word, 4)):
        try:
            parse(text)
        except UsageError as error:
            assert error.what and error.fix


def test_labels(paths: Paths) -> None:
    """A machine is not found by what its owner said of it."""
    settings = load_settings(paths, {"P2PC_NODE__LABELS": "lab, zone=b, owner=Ada Lovelace, a100"})
    assert parse_labels(settings.node.labels) == {"lab": "", "zone": "b", "owner": "Ada Lovelace", "a100": ""}


def test_peers() -> None:
    """An IPv6 address without brackets loses its last part."""
    assert parse_peer("nova:7878") == ("nova", 7878)
    assert parse_peer("[2001:db8::1]:7878") == ("2001:db8::1", 7878)
    for wrong in (
        "nova",
        "nova:",
        ":7878",
        "2001:db8::1:7878",
        "nova:65536",
        "nova:x",
        "a b:1",
        "http://nova:1",
        "[]:1",
    ):
        with pytest.raises(UsageError):
            parse_peer(wrong)


def test_seeds_are_domains_or_addresses() -> None:
    """If it broke: a peer whose port was forgotten is looked up as a domain, and nobody says so."""
    assert parse_seed("Mesh.Example.org.") == ("mesh.example.org", None)
    assert parse_seed("xn--bcher-kva.example") == ("xn--bcher-kva.example", None)
    assert parse_seed("nova:7878") == ("nova", 7878) and parse_seed("[2001:db8::1]:1") == ("2001:db8::1", 1)
    for wrong in (
        "nova",
        "192.0.2.1",
        "2001:db8::1",
        "bücher.example",
        "a..b",
        "-a.org",
        "a b.org",
        "http://a.org",
        "",
    ):
        with pytest.raises(UsageError, match="not a seed"):
            parse_seed(wrong)
    with pytest.raises(ConfigError, match="seeds") as raised:
        convert("node.seeds", [f"s{number}.example.org" for number in range(9)])
    assert "8" in raised.value.why


def test_name_servers_are_addresses() -> None:
    assert parse_name_server("192.0.2.53") == ("192.0.2.53", 53) == parse_name_server("192.0.2.53:53")
    assert parse_name_server("2001:db8::53") == ("2001:db8::53", 53) == parse_name_server("[2001:db8::53]")
    assert parse_name_server("[2001:db8::53]:5353") == ("2001:db8::53", 5353)
    for wrong in ("dns.example.org", "localhost:53", "192.0.2.53:x", "192.0.2.53:0", ""):
        with pytest.raises(UsageError, match="name server"):
            parse_name_server(wrong)


# --- places ---------------------------------------------------------------------------------------


def test_home_holds_everything(tmp_path: Path) -> None:
    """Two nodes on one machine share a file although each has its own P2PC_HOME."""
    paths = find_paths({"P2PC_HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/nowhere", "HOME": "/nowhere"})
    for place in (paths.config_file, paths.data, paths.store, paths.state, paths.log, paths.lock, paths.run_file):
        assert place.is_relative_to(tmp_path)
    assert paths.system_configs == ()
    with pytest.raises(ConfigError):
        find_paths({"P2PC_HOME": "here"})


def test_xdg(tmp_path: Path) -> None:
    """The base directories of the user are ignored."""
    home = {"HOME": "/home/u"}
    paths = find_paths(home)
    assert paths.config_file == Path("/home/u/.config/p2pc/config.toml")
    assert str(paths.data).startswith("/home/u/.local/share/p2pc/machines/")
    assert str(paths.state).startswith("/home/u/.local/state/p2pc/machines/")
    given_ = find_paths(home | {"XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d", "XDG_STATE_HOME": "relative"})
    assert given_.config_file == Path("/c/p2pc/config.toml") and str(given_.data).startswith("/d/p2pc/machines/")
    assert str(given_.state).startswith("/home/u/"), "the specification says to ignore relative ones"
    only = find_paths(home | {"P2PC_CONFIG": str(tmp_path / "x.toml")})
    assert only.config_file == tmp_path / "x.toml" and only.system_configs == ()
