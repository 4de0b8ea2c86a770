"""The health pages, as in etcd 3.6: /health, /livez and /readyz, and one page for each check of /livez and /readyz.

A check that needs the other members takes time, so these pages answer later. The deadline of reads
(`limits.request_timeout`) bounds that time. If no leader is known, the page answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .. import errors
from ..replica.alarms import CORRUPT, NAMES
from .answers import JSON, TEXT, Answer, Later, to_json

if TYPE_CHECKING:
    from .ports import Alarms, Reads, Serving, Status

Query = Mapping[str, Sequence[str]]
#: Called with a text that says what is wrong; the text is empty when nothing is.
Verdict = Callable[[str], object]


class Checks:
    """The health pages of a member."""

    def __init__(self, status: Status, serving: Serving, reads: Reads, alarms: Alarms) -> None:
        self._status = status
        self._serving = serving
        self._reads = reads
        self._alarms = alarms
        local: dict[str, Callable[[Verdict], object]] = {"serializable_read": self._serializable_read}
        ready = {
            "data_corruption": self._data_corruption, **local, "linearizable_read": self._linearizable_read,
            "non_learner": self._non_learner, "disk": self._disk,
        }  # fmt: skip
        self._groups: dict[str, dict[str, Callable[[Verdict], object]]] = {"/livez": local, "/readyz": ready}

    def pages(self) -> Mapping[str, Callable[[Query], Answer | Later]]:
        """The pages by their paths."""
        pages: dict[str, Callable[[Query], Answer | Later]] = {"/health": self.health}
        for path, checks in self._groups.items():
            pages[path] = partial(self._group, path)
            for name in checks:
                pages[f"{path}/{name}"] = partial(self._one, path, name)
        return pages

    # ---- /health

    def health(self, query: Query) -> Answer | Later:
        """Whether the cluster serves, or with `serializable=true` whether this member alone does. Gives the
        reason in etcd's words.
        """
        reason = self._alarm(query)
        if not reason and "true" in query.get("serializable", ()):
            return _healthy(_range_error(self._local_read()))
        if not reason and not self._status.leader_id:
            reason = "RAFT NO LEADER"
        if not reason and not self._serving.healthy():
            reason = "NOT SERVING"
        if reason:
            return _healthy(reason)
        later = Later()
        self._linearizable_read(lambda why: later.give(_healthy(_range_error(why))))
        return later.now()

    def _alarm(self, query: Query) -> str:
        excluded = set(query.get("exclude", ()))
        names = [NAMES.get(kind, "UNKNOWN") for _member, kind in self._alarms.alarms()]
        return next((f"ALARM {name}" for name in names if name not in excluded), "")

    # ---- /livez and /readyz

    def _group(self, path: str, query: Query) -> Answer | Later:
        excluded = set(query.get("exclude", ()))
        return self._run(path, [name for name in self._groups[path] if name not in excluded], query)

    def _one(self, path: str, name: str, query: Query) -> Answer | Later:
        return self._run(path, [name], query)

    def _run(self, path: str, names: list[str], query: Query) -> Answer | Later:
        """Runs all checks at once, and answers when the last one has finished."""
        later, verdicts = Later(), dict[str, str]()

        def report(name: str, why: str) -> None:
            verdicts[name] = why
            if len(verdicts) == len(names):
                later.give(_verdict([(one, verdicts[one]) for one in names], "verbose" in query))

        for name in names:
            self._groups[path][name](partial(report, name))
        return later.now() if names else _verdict([], "verbose" in query)

    # ---- checks

    def _data_corruption(self, done: Verdict) -> None:
        corrupt = any(kind == CORRUPT for _member, kind in self._alarms.alarms())
        done("alarm activated: CORRUPT" if corrupt else "")

    def _serializable_read(self, done: Verdict) -> None:
        done(self._local_read())

    def _linearizable_read(self, done: Verdict) -> None:
        if not self._status.leader_id:
            # Without a leader the read would wait until its deadline, but the caller needs the answer now.
            done(errors.NoLeader.default)
        elif not self._serving.healthy():
            done(errors.Stopped.default)
        else:
            self._reads.confirm_read(lambda error: done(self._local_read() if error is None else error.text))

    def _non_learner(self, done: Verdict) -> None:
        done("not supported for learner" if self._status.is_learner else "")

    def _disk(self, done: Verdict) -> None:
        done(self._serving.disk_trouble())

    def _local_read(self) -> str:
        try:
            self._reads.local_read()
        except errors.ApiError as error:
            return error.text
        return ""


def _range_error(why: str) -> str:
    return f"RANGE ERROR:{why}" if why else ""


def _healthy(reason: str) -> Answer:
    body = to_json({"health": "false" if reason else "true", "reason": reason})
    return (503 if reason else 200), JSON, body


def _verdict(checks: Iterable[tuple[str, str]], verbose: bool) -> Answer:
    """The text of the page: one line per check if a check fails or `verbose` asks for it, otherwise "ok"."""
    results = list(checks)
    lines = "".join(f"[-]{name} failed: {why}\n" if why else f"[+]{name} ok\n" for name, why in results)
    if any(why for _name, why in results):
        return 503, TEXT, lines.encode()
    return 200, TEXT, f"{lines if verbose else ''}ok\n".encode()
