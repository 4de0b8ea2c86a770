"""The checks of what a program gives to the calls of the embedded store. Each error names the argument.

A value of the wrong type raises TypeError, and a value that cannot be meant raises ValueError. Nothing is guessed: text
is no number, and a number is no flag, for a mistake would else be found in the data, long after.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar

#: A key or a value; str is encoded as UTF-8.
Key = bytes | str
#: What `put_many` takes. A mapping's keys are not covariant for type checkers, so each kind is named.
Pairs = Iterable[tuple[Key, Key]] | Mapping[str, Key] | Mapping[bytes, Key] | Mapping[Key, Key]

#: Numbers of the API have 64 bits and a sign.
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1

_Kind = TypeVar("_Kind", bound=IntEnum)


def named(value: object) -> str:
    """The type of `value`, for an error's text."""
    return "None" if value is None else type(value).__name__


def as_bytes(value: Key, name: str) -> bytes:
    """The bytes of a key or value; `name` is the argument's. Raises TypeError, ValueError."""
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}: UTF-8 cannot encode it: {error.reason}") from None
    if isinstance(value, bytes | bytearray | memoryview):  # also kinds of bytes, as NumPy has one
        return bytes(value)
    raise TypeError(f"{name} must be bytes or str, not {named(value)}")


def number(value: int, name: str) -> int:
    """`value`, if it is a whole number of 64 bits. Raises TypeError, ValueError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {named(value)}")
    if not LOWEST <= value <= HIGHEST:
        raise ValueError(f"{name} is out of range: {value} does not fit into 64 bits")
    return value


def flag(value: bool, name: str) -> bool:
    """`value`, if it is True or False. Raises TypeError."""
    if value is not True and value is not False:
        raise TypeError(f"{name} must be True or False, not {named(value)}")
    return value


def choice(value: _Kind, kind: type[_Kind], name: str) -> _Kind:
    """`value` as one of `kind`. Raises TypeError, ValueError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a {kind.__name__}, not {named(value)}")
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be a {kind.__name__}, and {value} is none") from None


def several(values: Sequence[Any], kind: type, name: str) -> list[Any]:
    """The `values`, all of `kind`. Raises TypeError."""
    if isinstance(values, kind | str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of {kind.__name__}, not {named(values)}")
    listed = list(values)
    for place, value in enumerate(listed):
        if not isinstance(value, kind):
            raise TypeError(f"{name}[{place}] must be of {kind.__name__}, not {named(value)}")
    return listed


def seconds(value: float | None, name: str = "timeout") -> float | None:
    """`value`, if it is a time to wait, or None for no bound of the caller's. Raises TypeError, ValueError."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {named(value)}")
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise ValueError(
            f"{name} must be between 0 and {threading.TIMEOUT_MAX:.0f} seconds, not {value}; None: no bound"
        )
    return float(value)
