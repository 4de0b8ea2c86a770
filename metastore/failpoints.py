"""Failpoints: named places in the code where a test can make the process die, wait or fail.

Off by default and free when off. Nothing switches them on over a network: only the environment variable
METASTORE_FAILPOINTS at start (`name=action;name=action`) and the embedding API (`Failpoints.set`).

Actions:

    panic          SIGKILL to this process, so that nothing can be tidied up
    sleep(ms)      wait; fractions of a millisecond are allowed
    error          fail with EIO; error(ENOSPC) or error(28) fail with that errno
    block          wait until the action is changed
    block(path)    wait as long as the file `path` is there
    off            nothing

An action may be followed by `@n`: it begins with the n-th hit (`panic@10`).

The points of the log's disk thread are passed without the GIL; there an action is a number in a C struct, which
`bind` lets the thread's owner keep in step.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from .errors import ConfigError

NAMES = (
    "wal.before_write",
    "wal.after_write",
    "wal.before_sync",
    "wal.after_sync",
    "wal.segment",
    "wal.read",
    "wal.release",
    "apply.before",
    "apply.member",
    "apply.after",
    "snapshot.write",
    "snapshot.sync",
    "snapshot.rename",
    "snapshot.verify",
    "snapshot.prune",
    "snapshot.release",
    "snapshot.receive",
    "snapshot.install",
    "snapshot.seal",
    "snapshot.adopt",
    "snapshot.restore",
    "peer.send",
    "restore.begin",
    "restore.log",
    "restore.end",
)

OFF, PANIC, SLEEP, ERROR, BLOCK = range(5)
KINDS = {"off": OFF, "panic": PANIC, "sleep": SLEEP, "error": ERROR, "block": BLOCK}
VARIABLE = "METASTORE_FAILPOINTS"

_SHAPE = re.compile(r"(?P<kind>[a-z]+)(?:\((?P<argument>[^()]*)\))?(?:@(?P<from>[1-9][0-9]{0,8}))?")
# Of a blocked point: how often it looks again whether it may go on, in seconds.
_LOOK_AGAIN = 0.001


@dataclass(frozen=True)
class Action:
    """What a failpoint does.

    `micros` belongs to sleep, `error` (an errno) to error, `path` to block. The first `skip` hits pass without effect.
    """

    kind: int = OFF
    micros: int = 0
    error: int = 0
    path: str = ""
    skip: int = 0


def parse_action(text: str) -> Action:
    """Read one action; ConfigError says what is wrong with it."""
    found = _SHAPE.fullmatch(text.strip())
    if found is None or found["kind"] not in KINDS:
        raise ConfigError(f"failpoint action {text!r}: known are {', '.join(KINDS)}")
    kind, argument = KINDS[found["kind"]], found["argument"]
    skip = int(found["from"]) - 1 if found["from"] else 0
    if kind == SLEEP:
        return Action(SLEEP, micros=_micros(text, argument), skip=skip)
    if kind == ERROR:
        return Action(ERROR, error=_errno(text, argument), skip=skip)
    if kind == BLOCK:
        return Action(BLOCK, path=argument or "", skip=skip)
    if argument is not None:
        raise ConfigError(f"failpoint action {text!r}: takes no argument")
    return Action(kind, skip=skip)


def _micros(text: str, argument: str | None) -> int:
    try:
        value = float(argument or "")
    except ValueError:
        raise ConfigError(f"failpoint action {text!r}: wants milliseconds") from None
    if not 0 <= value <= 60_000:
        raise ConfigError(f"failpoint action {text!r}: from 0 to 60000 milliseconds")
    return round(value * 1000)


def _errno(text: str, argument: str | None) -> int:
    if argument is None:
        return errno.EIO
    number = getattr(errno, argument, None) if not argument.isdigit() else int(argument)
    if not isinstance(number, int) or number not in errno.errorcode:
        raise ConfigError(f"failpoint action {text!r}: {argument!r} is no errno")
    return number


class Failpoints:
    """One node's failpoints. Thread-safe: `set` and `clear` may be called from any thread."""

    def __init__(self, text: str = "") -> None:
        self.active = False
        self._actions: dict[str, Action] = {}
        self._bound: list[tuple[str, Callable[[Action], None]]] = []
        self._lock = threading.Lock()
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, equals, action = part.partition("=")
            if not equals:
                raise ConfigError(f"{VARIABLE}: {part!r} is not name=action")
            self.set(name.strip(), action)

    @classmethod
    def from_environment(cls) -> Failpoints:
        """Makes the failpoints that METASTORE_FAILPOINTS sets. Raises ConfigError on an unknown name or action."""
        return cls(os.environ.get(VARIABLE, ""))

    def set(self, name: str, action: str) -> None:
        """Switch a point on, or off with "off". Raises ConfigError on an unknown name or action."""
        if name not in NAMES:
            raise ConfigError(f"failpoint {name!r}: known are {', '.join(NAMES)}")
        self._change(name, parse_action(action))

    def clear(self) -> None:
        """Switches all points off. Blocked threads go on."""
        for name in NAMES:
            self._change(name, Action())

    def get(self, name: str) -> Action:
        """The action of a point; kind OFF when it is off."""
        return self._actions.get(name, Action())

    def _change(self, name: str, action: Action) -> None:
        with self._lock:
            if action.kind == OFF:
                self._actions.pop(name, None)
            else:
                self._actions[name] = action
            self.active = bool(self._actions)
            bound = [setter for bound_name, setter in self._bound if bound_name == name]
        for setter in bound:
            setter(action)

    def bind(self, name: str, setter: Callable[[Action], None]) -> Callable[[], None]:
        """Calls `setter` with the action of `name`, now and at each change. Returns a function that undoes
        the binding.
        """
        item = (name, setter)
        with self._lock:
            self._bound.append(item)
        setter(self.get(name))

        def unbind() -> None:
            with self._lock:
                if item in self._bound:
                    self._bound.remove(item)

        return unbind

    def hit(self, name: str) -> None:
        """Passes the point `name`. Raises OSError for the action `error`. Callers on a hot path check
        `active` first.
        """
        action = self._actions.get(name)
        if action is None:
            return
        if action.skip:
            self._actions[name] = replace(action, skip=action.skip - 1)
        elif action.kind == PANIC:
            os.kill(os.getpid(), signal.SIGKILL)
        elif action.kind == SLEEP:
            time.sleep(action.micros / 1e6)
        elif action.kind == ERROR:
            raise OSError(action.error, os.strerror(action.error), name)
        else:
            self._wait(name, action)

    def _wait(self, name: str, action: Action) -> None:
        while self._actions.get(name) is action and (not action.path or os.path.exists(action.path)):
            time.sleep(_LOOK_AGAIN)
