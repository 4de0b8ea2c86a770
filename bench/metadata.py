"""Realistic metadata by the gigabyte: machines, the services and tasks that run on them, the packages that they have.

The package records come from a Debian status file (/var/lib/dpkg/status), each as JSON with all of its fields. Every
machine has its own choice of packages, with dates and checksums of its own. About a third of the bytes are other JSON
objects, with ids, digests, addresses and times of their own. The same seed gives the same records.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

STATUS = Path("/var/lib/dpkg/status")
# A value goes into one HTTP/2 frame; see loader.py.
MAX_VALUE = 12_000
# Of 100 packages: how many a machine has, and how many of these have another version than most machines.
INSTALLED, OTHER_VERSION = 85, 4
SERVICES = ("api", "auth", "billing", "cache", "catalog", "ingest", "mail", "queue", "search", "web")
ZONES = ("eu-1a", "eu-1b", "eu-2a", "us-1a")


def read_packages(path: Path = STATUS) -> list[dict[str, str]]:
    """Return the stanzas of a status file, field by field. Raises SystemExit if there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise SystemExit(f"no package records: {error}; name a Debian status file by --packages") from error
    found = []
    for stanza in filter(str.strip, text.split("\n\n")):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] += "\n" + line.strip()
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Package" in fields and "Version" in fields:
            found.append(fields)
    if not found:
        raise SystemExit(f"no package records in {path}")
    return found


class _Package:
    """One package: the JSON text that all machines share, cut where the version goes in."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.name = fields["Package"]
        self.version = fields["Version"]
        rest = {key: value for key, value in fields.items() if key != "Version"}
        while len(shared := json.dumps(rest, sort_keys=True)) > MAX_VALUE - 400:
            del rest[max(rest, key=lambda key: len(rest[key]))]
        self.shared = shared[:-1]


def _machine(chance: random.Random, number: int, host: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records of a machine and of what runs on it."""
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    facts = {
        "host": host, "address": address, "zone": chance.choice(ZONES), "cpus": chance.choice((4, 8, 16, 64)),
        "memory": chance.choice((16, 32, 128)) << 30, "serial": f"{chance.getrandbits(64):016x}",
        "kernel": f"6.1.0-{chance.randrange(20, 30)}-amd64", "boot": 1_760_000_000 + chance.randrange(10_000_000),
        "disks": [{"name": f"nvme{n}n1", "wwn": f"{chance.getrandbits(64):016x}"} for n in range(chance.randint(1, 3))],
    }  # fmt: skip
    yield f"/machines/{host}".encode(), json.dumps(facts).encode()
    for name in chance.sample(SERVICES, 4):
        instance = {
            "service": name, "host": host, "endpoint": f"http://{address}:{chance.randrange(20_000, 30_000)}",
            "version": f"{chance.randrange(3)}.{chance.randrange(20)}.{chance.randrange(9)}", "weight": 100,
            "id": f"{chance.getrandbits(128):032x}", "tags": chance.sample(("blue", "green", "canary", "spot"), 2),
            "checks": [{"type": "http", "path": "/health", "interval": "10s", "timeout": "2s"}],
        }  # fmt: skip
        yield f"/services/{name}/{instance['id']}".encode(), json.dumps(instance).encode()


def _task(chance: random.Random, host: str) -> tuple[bytes, bytes]:
    """Return the record of a task that a scheduler has put on a machine."""
    app, ident = chance.choice(SERVICES), f"{chance.getrandbits(128):032x}"
    address = f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(256)}"
    owner = {"kind": "Deployment", "name": f"{app}-{chance.getrandbits(36):09x}", "generation": chance.randrange(40)}
    began = 1_760_000_000_000 + chance.randrange(10_000_000_000)
    task = {
        "kind": "Task", "id": ident, "app": app, "host": host,
        "phase": chance.choice(("Running", "Running", "Pending")),
        "image": f"registry.example.net/{app}@sha256:{chance.getrandbits(256):064x}",
        "labels": {"app": app, "team": chance.choice(("core", "edge", "pay")), "rev": f"{chance.getrandbits(40):010x}"},
        "resources": {"cpu": f"{chance.randrange(1, 40) * 100}m", "memory": f"{chance.randrange(1, 64) * 128}Mi"},
        "network": {"ip": address, "ports": [8080]},
        "created": began, "started": began + chance.randrange(60_000), "restarts": chance.choice((0, 0, 0, 1, 7)),
        "owner": owner,
        "conditions": [
            {"type": kind, "status": "True", "at": began + chance.randrange(90_000)} for kind in ("Scheduled", "Ready")
        ],
    }  # fmt: skip
    return f"/tasks/{app}/{ident}".encode(), json.dumps(task).encode()


def records(seed: int, nbytes: int, packages: list[dict[str, str]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values, of `nbytes` together or a little more."""
    chance = random.Random(seed)
    kinds = [_Package(fields) for fields in packages]
    total = 0
    for number in itertools.count():
        host = f"m{number:06d}.{chance.choice(ZONES)}.example.net"
        for key, value in _machine(chance, number, host):
            total += len(key) + len(value)
            yield key, value
        at = 1_700_000_000 + chance.randrange(50_000_000)
        for kind in kinds:
            draw = chance.randrange(100)
            if draw >= INSTALLED:
                continue
            version = f"{kind.version}~{chance.randrange(9)}" if draw < OTHER_VERSION else kind.version
            at += chance.randrange(100)
            key = f"/machines/{host}/packages/{kind.name}".encode()
            value = (
                f'{kind.shared}, "Version": "{version}", "installed_at": {at}, "machine": "{host}", '
                f'"sha256": "{chance.getrandbits(256):064x}"}}'
            ).encode()
            for pair in ((key, value), _task(chance, host)):
                total += len(pair[0]) + len(pair[1])
                yield pair
            if total >= nbytes:
                return


def small(seed: int, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield `count` keys of 8 bytes with values of 15: where the instances of services are to be found.

    A pair has 45 random bits, and so 6 of the 23 bytes are those that no codec can save.
    """
    chance = random.Random(seed)
    for _ in range(count):
        place = f"node-{chance.randrange(4096):04d}:{chance.randrange(20_000, 32_768)}"
        yield f"/e/{chance.getrandbits(20):05x}".encode(), place.encode()
