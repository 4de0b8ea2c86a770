"""The settings of a node: TOML text -> frozen, validated tables; unknown keys are refused.

Pure: this module parses text and values and touches no file. `metastore.cli.main` reads the file and hands over the
environment. In the tables a duration is a float in seconds, a size an int in bytes, an address a "host:port" string
(IPv6 in brackets), whatever way it was written.

Sources, the later ones winning: built-in defaults, the TOML text, `METASTORE_<TABLE>__<KEY>` variables, overrides
`table.key=value`. Every refusal is a `ConfigError` that names the source (file and line where known), the key and
the reason.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

from metastore.addresses import split_address
from metastore.errors import ConfigError
from metastore.settings import (
    MAX_BATCH,
    NESTED,
    PEER_FRAME,
    TABLES,
    AdvertiseTable,
    ClusterTable,
    CodecsTable,
    Given,
    LimitsTable,
    ListenTable,
    LogTable,
    MaintenanceTable,
    MetricsTable,
    NodeTable,
    Options,
    PerformanceTable,
    RaftTable,
    StorageTable,
    WalTable,
    WatchTable,
    did_you_mean,
    is_plugin_table,
    wrong_type,
)

ENV_PREFIX = "METASTORE_"


_Layer = dict[tuple[str, str], Given]


def fields(table: str) -> dict[str, dataclasses.Field[Any]]:
    items = dataclasses.fields(NESTED.get(table) or TABLES[table])
    return {item.name: item for item in items if f"{table}.{item.name}" not in NESTED}


def _all_keys() -> list[str]:
    return [f"{table}.{key}" for table in (*TABLES, *NESTED) for key in fields(table)]


def _refuse_unknown_table(where: str, table: str, what: str) -> None:
    """Raise ConfigError unless `table` exists; `what` it was meant to be: "table" or "key"."""
    if not isinstance(table, str):
        raise ConfigError(f"{where}: {table!r}: the name of a table must be text, not {type(table).__name__}")
    if table not in TABLES and table not in NESTED:
        homes = [name for name in _all_keys() if name.endswith(f".{table}")]
        hint = f"; did you mean {homes[0]!r}?" if homes else did_you_mean(table, TABLES)
        raise ConfigError(f"{where}: {table}: unknown {what}{hint}")


def _refuse_unknown(where: str, table: str, key: str) -> None:
    """Raise ConfigError unless `table` and `key` in it exist."""
    _refuse_unknown_table(where, table, "table")
    if not isinstance(key, str):
        raise ConfigError(f"{where}: {table}.{key!r}: a key must be text, not {type(key).__name__}")
    if key not in fields(table):
        homes = [name for name in _all_keys() if name.endswith(f".{key}")]
        inside = [name.rpartition(".")[2] for name in NESTED if name.startswith(f"{table}.")]
        hint = f"; did you mean {homes[0]!r}?" if homes else did_you_mean(key, [*fields(table), *inside])
        raise ConfigError(f"{where}: {table}.{key}: unknown key{hint}")


def _collect(tables: Mapping[str, Any], where: Callable[[str, str | None], str], program: bool = False) -> _Layer:
    """Flatten {table: {key: value}} after checking the names. `program`: see `Given`."""
    layer: _Layer = {}
    for table, content in tables.items():
        _refuse_unknown_table(where(table, None), table, "table" if isinstance(content, Mapping) else "key")
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where(table, None)}: {table}: {wrong_type('a table', content)}")
        for key, value in content.items():
            if f"{table}.{key}" in NESTED:
                layer.update(_collect({f"{table}.{key}": value}, where, program))
                continue
            if isinstance(key, str) and is_plugin_table(table, key) and isinstance(value, Mapping):
                place = f"{table}.{key}"
                for name, option in value.items():
                    if not isinstance(name, str):
                        raise ConfigError(f"{where(place, None)}: {place}.{name!r}: a key must be text")
                    layer[place, name] = Given(_own(option), where(place, name), program)
                continue
            _refuse_unknown(where(table, key), table, key)
            layer[table, key] = Given(_own(value), where(table, key), program)
    return layer


def _own(value: object) -> object:
    """A value that the giver does not change later, and that can be pickled."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, list) else value


def _line_of(text: str, table: str, key: str | None) -> int | None:
    """The line of a key in plain TOML text; None when it cannot be told for sure."""
    found, current = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]\s*(?:#.*)?$", line)
        if header:
            current = header[1]
        wanted = header and current == table if key is None else current == table and not header
        if wanted and (key is None or re.match(rf"\s*{re.escape(key)}\s*[.=]", line)):
            found.append(number)
    return found[0] if len(found) == 1 else None


def _toml_layer(text: str, name: str) -> _Layer:
    import tomli

    try:
        tables = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        line = getattr(error, "lineno", None)
        reason = getattr(error, "msg", str(error))
        raise ConfigError(f"{name}{f':{line}' if line else ''}: not valid TOML: {reason}") from None

    def where(table: str, key: str | None) -> str:
        line = _line_of(text, table, key)
        return name if line is None else f"{name}:{line}"

    return _collect(tables, where)


def _written(where: str, path: list[str], text: str) -> tuple[tuple[str, str], Given]:
    """One value from a variable or a flag: TOML syntax, plain words allowed for strings."""
    import tomli

    plugin = len(path) > 2 and is_plugin_table(path[0], path[1])
    if ".".join(path[:2]) in NESTED or plugin:
        path = [".".join(path[:2]), *path[2:]]
    if len(path) < 2 or path == ["codecs", path[-1]]:
        raise ConfigError(f"{where}: {'.'.join(path)}: names no key: write table.key=value")
    table, key, *rest = path
    if not plugin:
        _refuse_unknown(where, table, key)
    try:
        value = tomli.loads(f"v = {text}")["v"] if "\n" not in text else text
    except tomli.TOMLDecodeError:
        value = text
    words = bool(rest) if plugin else fields(table)[key].metadata["words"] or bool(rest)
    if words and not isinstance(value, str | list):
        value = text
    for name in reversed(rest):
        value = {name: value}
    return (table, key), Given(value, where, text=text)


def _env_layer(env: Mapping[str, str]) -> _Layer:
    """Variables METASTORE_<TABLE>__<KEY>.

    Names without the double underscore are left alone: METASTORE_DEBUG and its like are switches of the build and of
    the tests, and an orchestrator adds METASTORE_PORT and METASTORE_SERVICE_HOST where a service has our name.
    """
    layer: _Layer = {}
    for variable in sorted(env):
        if variable.startswith(ENV_PREFIX) and "__" in variable:
            path = variable[len(ENV_PREFIX) :].lower().split("__")
            _merge(layer, dict([_written(f"environment variable {variable}", path, env[variable])]))
    return layer


def misspelt_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that lack the double underscore and are a key's name else: given name -> the one that was meant.

    They are not taken, for an orchestrator makes up names of its own; but whoever set one by hand wants to be told.
    """
    meant = {}
    for table in (*TABLES, *NESTED):
        for key in fields(table):
            name = ENV_PREFIX + f"{table}.{key}".upper().replace(".", "__")
            meant[name.replace("__", "_")] = name
    return {given: meant[given] for given in sorted(env) if given in meant}


def _override_layer(overrides: Iterable[str]) -> _Layer:
    layer: _Layer = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write table.key=value")
        _merge(layer, dict([_written(f"--set {text}", name.strip().split("."), value.strip())]))
    return layer


def _merge(base: _Layer, layer: _Layer) -> None:
    """Put `layer` over `base`; single members given by path join the table that is there."""
    for key, new in layer.items():
        old = base.get(key)
        if old is not None and isinstance(old.value, Mapping) and isinstance(new.value, Mapping):
            new = Given({**old.value, **new.value}, new.where)
        base[key] = new


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return dict(value) if isinstance(value, Mapping) else value


def _parsed(layer: _Layer, table: str) -> dict[str, Any]:
    """The checked values of one table. Raises ConfigError."""
    values = {}
    for key, item in fields(table).items():
        given = layer.get((table, key))
        if given is not None:
            try:
                if item.metadata["unit"] and not given.program and not isinstance(given.value, str):
                    raise wrong_type('a duration such as "100ms" or "2s"', given.value)
                values[key] = item.metadata["parse"](given.value)
            except ValueError as error:
                raise ConfigError(f"{given.where}: {table}.{key}: {error}") from None
    return values


def _check_together(config: Config, layer: _Layer, name: str) -> None:
    """Raise ConfigError for settings that are right each and impossible together."""
    limits, raft, upkeep = config.limits, config.raft, config.maintenance
    clash = [item for item in config.listen.client if item == config.listen.peer and split_address(item)[1]]
    largest = config.largest_operation
    ours = config.cluster.initial.get(config.node.name)
    rules = [
        ("raft.election_ticks", raft.election_ticks <= raft.heartbeat_ticks, "must be more than raft.heartbeat_ticks"),
        (
            "raft.read_only",
            raft.read_only == "lease" and raft.election_ticks < raft.heartbeat_ticks + 4,
            '"lease" needs raft.election_ticks to be at least 4 more than raft.heartbeat_ticks',
        ),
        (
            "raft.batch_max_bytes",
            raft.batch_max_bytes < largest,
            f"must be at least {largest}, for one request of limits.max_request_bytes must fit in a batch",
        ),
        (
            "raft.batch_max_bytes",
            raft.batch_max_bytes > MAX_BATCH,
            f"must be at most {MAX_BATCH}, for an entry must fit in one frame between members ({PEER_FRAME} bytes)",
        ),
        (
            "limits.max_inflight_bytes",
            limits.max_inflight_bytes < largest,
            f"must be at least {largest}, for one request of limits.max_request_bytes must be admitted",
        ),
        (
            "storage.rocksdb.level0_stop",
            config.storage.rocksdb.level0_stop <= config.storage.rocksdb.level0_files,
            "must be more than storage.rocksdb.level0_files",
        ),
        (
            "maintenance.snapshot_send_rate",
            0 < upkeep.snapshot_send_rate * upkeep.snapshot_chunk_timeout < upkeep.snapshot_chunk_size,
            "too little to send maintenance.snapshot_chunk_size within maintenance.snapshot_chunk_timeout",
        ),
        ("listen.peer", bool(clash), f"{config.listen.peer!r} is in listen.client too"),
        ("cluster.initial", ours is None, f"does not name this member, {config.node.name!r} (node.name)"),
    ]
    for path, wrong, reason in rules:
        if wrong:
            table, _, key = path.rpartition(".")
            given = layer.get((table, key))
            raise ConfigError(f"{given.where if given else name}: {path}: {reason}")


class Tables(TypedDict, total=False):
    """The keywords of `Config`: its tables, each a mapping of keys to values as in TOML."""

    node: Mapping[str, object]
    listen: Mapping[str, object]
    advertise: Mapping[str, object]
    cluster: Mapping[str, object]
    storage: Mapping[str, object]
    raft: Mapping[str, object]
    wal: Mapping[str, object]
    performance: Mapping[str, object]
    codecs: Mapping[str, object]
    maintenance: Mapping[str, object]
    limits: Mapping[str, object]
    watch: Mapping[str, object]
    log: Mapping[str, object]
    metrics: Mapping[str, object]


class Config:
    """All settings of a node: one attribute for each table.

    `Config(node={"name": "n1", "data_dir": "/tmp/n1"}, listen={"client": "127.0.0.1:0"})` builds one in a program;
    each keyword is a table, given as a mapping of keys to values as in TOML. A duration is a number of seconds or a
    text like "100ms", a size a number of bytes or a text like "4MiB"; docs/configuration.md lists all keys. Raises
    ConfigError for an unknown table or key, and for a value that cannot be used.
    """

    node: NodeTable
    listen: ListenTable
    advertise: AdvertiseTable
    cluster: ClusterTable
    storage: StorageTable
    raft: RaftTable
    wal: WalTable
    performance: PerformanceTable
    codecs: CodecsTable
    maintenance: MaintenanceTable
    limits: LimitsTable
    watch: WatchTable
    log: LogTable
    metrics: MetricsTable

    _layer: _Layer

    __slots__ = ("_layer", *TABLES)

    def __init__(self, **tables: Unpack[Tables]) -> None:
        self._fill(_collect(tables, lambda table, key: "Config()", program=True), "Config()")

    @classmethod
    def from_dict(cls, tables: Mapping[str, Mapping[str, Any]], name: str = "Config.from_dict") -> Config:
        """The settings of {table: {key: value}}, as `to_dict` gives them; `name` stands for the file in errors. Raises
        ConfigError."""
        if not isinstance(tables, Mapping):
            raise TypeError(f"tables must be a mapping, not {type(tables).__name__}")
        return cls._made(_collect(tables, lambda table, key: name, program=True), name)

    @classmethod
    def from_toml(cls, text: str, name: str = "metastore.toml") -> Config:
        """The settings in TOML text; `name` is the file's name in errors. Raises ConfigError."""
        return cls.load(text, name)

    @classmethod
    def load(
        cls,
        text: str = "",
        name: str = "metastore.toml",
        env: Mapping[str, str] | None = None,
        overrides: Iterable[str] = (),
    ) -> Config:
        """The settings of TOML text under those of environment variables under overrides. Raises ConfigError."""
        layer = _toml_layer(text, name)
        _merge(layer, _env_layer(env or {}))
        _merge(layer, _override_layer(overrides))
        return cls._made(layer, name)

    def changed(self, **tables: Unpack[Tables]) -> Config:
        """A copy with some keys changed: `config.changed(raft={"batch_max_size": 1})`. Raises ConfigError."""
        layer = dict(self._layer)
        layer.update(_collect(tables, lambda table, key: "Config.changed()", program=True))
        return self._made(layer, "Config.changed()")

    def value(self, table: str, key: str) -> Any:
        """A key's value by its names, `table` perhaps a nested one; None where there is no such key."""
        found: Any = self
        for name in (*table.split("."), key):
            found = getattr(found, name, None)
        return found

    def plugins(self, table: str) -> dict[str, Options]:
        """The options of plug-ins by their names, those of engines (`table` is "storage") or of codecs ("codecs")."""
        found: dict[str, dict[str, Given]] = {}
        for (place, key), given in self._layer.items():
            inside = place.partition(".")
            if inside[0] == table and inside[2] and place not in NESTED:
                found.setdefault(inside[2], {})[key] = given
        return dict(found)

    @property
    def largest_operation(self) -> int:
        """Bytes that an operation of `limits.max_request_bytes` may have when it is framed: one byte more for each
        separator inside, and a header."""
        return self.limits.max_request_bytes + self.limits.max_request_bytes // 8 + 1024

    @property
    def gather_time(self) -> float:
        """How long a group waits for more writes (seconds). It waits for none where each has a group of its own."""
        grouped = self.wal.group_commit and self.raft.enable_batch_proposal
        return self.performance.gather_time if grouped else 0.0

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{table: {key: value}}, durations in seconds and sizes in bytes; `from_dict` makes the same settings of it."""
        tables: dict[str, dict[str, Any]] = {
            table: {item.name: _plain(getattr(getattr(self, table), item.name)) for item in dataclasses.fields(made)}
            for table, made in TABLES.items()
        }
        for table in ("storage", "codecs"):
            for name, options in self.plugins(table).items():
                tables[table][name] = {key: _own(given.value) for key, given in options.items()}
        return tables

    @classmethod
    def _made(cls, layer: _Layer, name: str) -> Config:
        config = cls.__new__(cls)
        config._fill(layer, name)
        return config

    def _fill(self, layer: _Layer, name: str) -> None:
        object.__setattr__(self, "_layer", layer)
        for table, made in TABLES.items():
            values = _parsed(layer, table)
            for place, inner in NESTED.items():
                if place.startswith(f"{table}."):
                    values[place.partition(".")[2]] = inner(**_parsed(layer, place))
            if table == "node" and "data_dir" not in values:
                values["data_dir"] = f"data/{values.get('name', 'n1')}"
            if table == "cluster" and not values.get("initial"):
                alone = {self.node.name: self.advertise.peer or self.listen.peer}
                values["initial"] = MappingProxyType(alone)
            object.__setattr__(self, table, made(**values))
        _check_together(self, layer, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Config is frozen: use changed() to get a copy with another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Config is frozen")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Config:
        return self

    def __deepcopy__(self, _memo: object) -> Config:
        return self

    def __reduce__(self) -> tuple[Callable[[_Layer], Config], tuple[_Layer]]:
        return Config._restored, (self._layer,)

    @classmethod
    def _restored(cls, layer: _Layer) -> Config:
        """What was pickled, made again: its checks are those of the version that reads it."""
        return cls._made(layer, "a pickled Config")

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{table}={getattr(self, table)!r}' for table in TABLES)})"
