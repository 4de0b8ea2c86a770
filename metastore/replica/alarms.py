"""Alarms: conditions that one member reports and that all members must act on. Pure.

The alarms are part of the replicated state. Operations of kind ALARM change them, and a meta record stores them.
Layouts: FORMATS.md, "Alarms".

While any member has NOSPACE raised, puts are refused; while any member has CORRUPT raised, every change is refused.
The log alone determines which alarms are raised, so every member makes the same decision about an operation in it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .. import errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._core.mvcc import Store

NOSPACE, CORRUPT = 1, 2  # etcdserverpb.AlarmType
GET, ACTIVATE, DEACTIVATE = 0, 1, 2  # etcdserverpb.AlarmRequest.AlarmAction
NAMES = {NOSPACE: "NOSPACE", CORRUPT: "CORRUPT"}
META_ALARMS = b"alarms"
VERSION = 1
MAX_ALARMS = 1000  # (member, alarm) pairs: a client may name members that do not exist

_REQUEST = struct.Struct("<BBBxQ")
_ALARM = struct.Struct("<BxxxQ")

#: (member id, alarm)
Alarm = tuple[int, int]


def encode_change(action: int, member: int, alarm: int) -> bytes:
    """The request of an operation of kind ALARM. Raises InvalidAlarm for an action or alarm that does not exist."""
    if action not in (ACTIVATE, DEACTIVATE):
        raise errors.InvalidAlarm(f"metastore: there is no alarm action {action}")
    if alarm and alarm not in NAMES:
        raise errors.InvalidAlarm(f"metastore: there is no alarm {alarm}")
    return _REQUEST.pack(VERSION, action, alarm, member)


def decode_change(data: bytes) -> tuple[int, Alarm]:
    """(action, (member, alarm)), the inverse of `encode_change`. Raises FormatError."""
    if len(data) != _REQUEST.size:
        raise errors.FormatError(f"alarm operation: {len(data)} bytes instead of {_REQUEST.size}")
    version, action, alarm, member = _REQUEST.unpack(data)
    if version != VERSION or action not in (ACTIVATE, DEACTIVATE) or alarm not in (0, *NAMES) or data[3]:
        raise errors.FormatError(f"alarm operation: unknown version {version}, action {action} or alarm {alarm}")
    return action, (member, alarm)


def encode_alarms(alarms: Iterable[Alarm]) -> bytes:
    """The meta record, and what an operation answers: the alarms in ascending order."""
    return bytes([VERSION]) + b"".join(_ALARM.pack(kind, member) for member, kind in sorted(alarms))


def decode_alarms(data: bytes) -> list[Alarm]:
    """Inverse of `encode_alarms`. Raises DamagedData."""
    if not data or data[0] != VERSION or (len(data) - 1) % _ALARM.size:
        raise errors.DamagedData("engine: the record of the alarms has an unknown form")
    alarms = [(member, kind) for kind, member in _ALARM.iter_unpack(data[1:])]
    if encode_alarms(set(alarms)) != data or any(kind not in NAMES for _, kind in alarms):
        raise errors.DamagedData("engine: the record of the alarms holds what cannot be")
    return alarms


class Alarms:
    """The alarms of the applied state.

    raised: (member id, alarm) pairs. kinds: the alarms that any member has raised, NOSPACE | CORRUPT as bits 1 and 2.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.raised: frozenset[Alarm] = frozenset()
        self.kinds = 0
        self.load()

    def load(self) -> None:
        """Loads the alarms from the store. Raises DamagedData."""
        data = self.store.get_meta(META_ALARMS)
        self._set(frozenset(decode_alarms(data)) if data is not None else frozenset())

    def _set(self, raised: frozenset[Alarm]) -> None:
        self.raised = raised
        self.kinds = sum({kind for _, kind in raised})

    def apply(self, request: bytes) -> bytes:
        """Carries out a committed operation. Returns the encoded alarm that it raised or cleared, if there is any.

        This follows etcd: an alarm that is raised again is answered like a new one, clearing an alarm that is not
        raised is answered with nothing, and alarm 0 changes nothing. Raises FormatError and TooManyRequests
        (MAX_ALARMS); then nothing has changed.
        """
        action, alarm = decode_change(request)
        known = alarm in self.raised
        if not alarm[1] or (action == DEACTIVATE and not known):
            return encode_alarms(())
        if action == ACTIVATE and not known and len(self.raised) >= MAX_ALARMS:
            raise errors.TooManyRequests()
        if known != (action == ACTIVATE):
            changed = self.raised | {alarm} if action == ACTIVATE else self.raised - {alarm}
            self.store.put_meta(META_ALARMS, encode_alarms(changed))
            self._set(changed)
        return encode_alarms([alarm])
