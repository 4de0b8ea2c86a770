"""Fixtures that several unit tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.peernet import Net

from metastore.failpoints import Failpoints


@pytest.fixture
def net(caplog: pytest.LogCaptureFixture) -> Iterator[Net]:
    caplog.set_level(logging.INFO, "metastore.peer")
    net = Net()
    yield net
    net.close()


@pytest.fixture
def points() -> Iterator[Failpoints]:
    failpoints = Failpoints()
    yield failpoints
    failpoints.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder in which a test may make a log."""
    return tmp_path / "data" / "wal"
