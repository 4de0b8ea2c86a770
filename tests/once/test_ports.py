"""Tests in several processes are never given the same port, also while nobody listens there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import ports

#: Offers one port to a process, before all others, and says which one it was given.
OFFERED = """
import sys
from support import ports
ports._left().append(int(sys.argv[1]))
print(*ports.free_ports(1))
"""


def offered(port: int) -> int:
    """The port that another process is given that is offered `port`."""
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", OFFERED, str(port)], cwd=tests, capture_output=True, text=True, check=True
    )
    return int(run.stdout)


def test_a_port_belongs_to_one_test() -> None:
    mine = ports.free_ports(20)
    assert len(set(mine)) == 20 and set(mine) <= set(ports.PORTS)
    assert not set(ports.free_ports(20)) & set(mine)
    assert offered(mine[0]) != mine[0]
    assert offered(2_999) == 2_999, "a port that nobody was given is given"
