"""Answers to HTTP/1.1 requests. Some answers are ready at once, others come later."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

#: Status, content type, body.
Answer = tuple[int, str, bytes]

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"


def to_json(value: Any) -> bytes:
    """Compact JSON, as Go writes it."""
    return json.dumps(value, separators=(",", ":")).encode()


class Later:
    """An answer that comes later. The page sets it once; the connection sets `on_answer` to receive it."""

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self.on_answer: Callable[[Answer], object] = lambda _answer: None

    def give(self, answer: Answer) -> None:
        """Set the answer. A second answer is ignored."""
        if self._answer is None:
            self._answer = answer
            self.on_answer(answer)

    def now(self) -> Answer | Later:
        """The answer if it is there already, else this object."""
        return self if self._answer is None else self._answer
