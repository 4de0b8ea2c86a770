"""Entry points of plug-ins: found by name, loaded, and called with the options that they name.

Whatever goes wrong with a plug-in is a ConfigError of one line that names the entry point, its package and version. An
exception of a plug-in says little to a user who does not know which of the installed packages raised it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import ConfigError, one_line
from .ports import CONTRACT
from .settings import Given, Options, did_you_mean, parse_duration, parse_size, wrong_type
from .threads import is_no_fault


def installed(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by their names. A name should have one."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def origin(point: EntryPoint) -> str:
    """What an entry point leads to, and the package that installed it."""
    package = "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return f"{point.value} of {package}"


def sole(points: list[EntryPoint], what: str) -> EntryPoint:
    """The only one of the entry points of a name; `what` is said about it in errors. Raises ConfigError."""
    if len(points) > 1:
        raise ConfigError(f"{what} is installed {len(points)} times: {', '.join(sorted(map(origin, points)))}")
    return points[0]


def load(point: EntryPoint, what: str) -> Callable[..., Any]:
    """The factory that an entry point leads to. Raises ConfigError."""
    try:
        factory = point.load()
    except BaseException as error:
        if is_no_fault(error):
            raise
        raise ConfigError(f"{what} ({origin(point)}) cannot be loaded: {one_line(error)}") from error
    if not callable(factory):
        raise ConfigError(f"{what} ({origin(point)}) cannot be loaded: it is no class and no function")
    try:
        # A function declares nothing; what it makes does.
        if getattr(factory, "CONTRACT", None) is not None:
            check_contract(factory)
    except ConfigError as error:
        raise ConfigError(f"{what} ({origin(point)}) {error.text}") from None
    return factory


def check_contract(plugin: object) -> None:
    """Raise ConfigError unless `plugin` declares the contract of this program."""
    declared = getattr(plugin, "CONTRACT", None)
    if type(declared) is not int:
        raise ConfigError(f"does not declare which contract it keeps: it needs CONTRACT = {CONTRACT}")
    if declared != CONTRACT:
        raise ConfigError(f"keeps contract {declared}, and this MetaStore needs contract {CONTRACT}")


def arguments(factory: Callable[..., Any], place: str, given: Options) -> tuple[dict[str, Any], ...]:
    """The arguments by which a factory gets the options `given` in the table `place`: none if it names no options.

    The factory names its options, with their default values, in OPTIONS. Raises ConfigError.
    """
    known = getattr(factory, "OPTIONS", None)
    if known is None:
        for key, one in given.items():
            raise ConfigError(f"{one.where}: {place}.{key}: unknown key: {place.partition('.')[2]!r} takes no options")
        return ()
    if not isinstance(known, Mapping):
        raise ConfigError(f"{place}: the plug-in's OPTIONS must be a mapping of keys to default values")
    options = dict(known)
    for key, one in given.items():
        if key not in options:
            raise ConfigError(f"{one.where}: {place}.{key}: unknown key{did_you_mean(key, options)}")
        try:
            options[key] = like(known[key], one)
        except ValueError as error:
            raise ConfigError(f"{one.where}: {place}.{key}: {error}") from None
    return (options,)


def like(default: object, given: Given) -> object:
    """A given value as an option whose default value is `default`. Raises ValueError."""
    value = given.value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, int):
        if isinstance(value, str):
            return parse_size(value)
        expected, fits = "an integer or a size", number and isinstance(value, int)
    elif isinstance(default, float):
        if isinstance(value, str):
            return parse_duration(value)
        expected, fits = "a number or a duration", number
    elif isinstance(default, str):
        if given.text is not None and not isinstance(value, str):
            return given.text  # a flag or a variable, where words need no quotes
        expected, fits = "a string", isinstance(value, str)
    elif isinstance(default, list | tuple):
        expected, fits = "an array", isinstance(value, list | tuple)
    elif isinstance(default, Mapping):
        expected, fits = "a table", isinstance(value, Mapping)
    else:
        return value
    if not fits:
        raise wrong_type(expected, value)
    return float(value) if isinstance(default, float) and isinstance(value, int) else value
