"""Fixtures that several unit tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from support.peernet import Net


@pytest.fixture
def net(caplog: pytest.LogCaptureFixture) -> Iterator[Net]:
    caplog.set_level(logging.INFO, "metastore.peer")
    net = Net()
    yield net
    net.close()
