"""What puts cost in one process, and a key in memory. bench/before.py runs this with the Python of several checkouts.

    python bench/embedded_puts.py ENGINE FOLDER KEYS VALUE_SIZE

It prints an object of JSON, and uses only what all checkouts have that are compared.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from sim.varint import varint

from metastore._core.engine import MemoryEngine
from metastore._core.mvcc import Store
from metastore.errors import EngineBusy

#: Puts of one call of `put_many`, and of one write of the engine.
LIST, BATCH = 5000, 50

Pairs = list[tuple[bytes, bytes]]


def in_process(engine: str, folder: Path, turns: list[Pairs]) -> list[float]:
    """Return CPU microseconds a put of an embedded node, all threads included, for each turn."""
    from metastore import Config, Node

    used = []
    config = Config(node={"data_dir": str(folder)}, storage={"engine": engine}, listen={"client": "127.0.0.1:0"})
    with Node(config) as node:
        for pairs in turns:
            cpu = time.process_time()
            for at in range(0, len(pairs), LIST):
                node.put_many(pairs[at : at + LIST])
            used.append((time.process_time() - cpu) / len(pairs) * 1e6)
    return used


def in_store(engine: Any, turns: list[Pairs]) -> list[float]:
    """Return CPU microseconds a put of the store and its engine, in the thread that calls them, for each turn."""
    store, index, used = Store(engine), 0, []
    for pairs in turns:
        requests = [b"\n" + field(key) + b"\x12" + field(value) for key, value in pairs]
        cpu = time.thread_time()
        for at in range(0, len(requests), BATCH):
            for request in requests[at : at + BATCH]:
                store.put(request)
            index += 1
            while True:
                try:
                    store.commit(index, 1)
                    break
                except EngineBusy:
                    time.sleep(0.001)
        used.append((time.thread_time() - cpu) / len(pairs) * 1e6)
    return used


def field(data: bytes) -> bytes:
    return varint(len(data)) + data


def main() -> None:
    engine, folder, keys, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    draw = random.Random(1)
    names = [b"before/%012d" % n for n in range(keys)]
    draw.shuffle(names)
    turns = [[(name, draw.randbytes(size)) for name in names] for _ in range(2)]
    made: Any = MemoryEngine()
    if engine == "rocksdb":
        from metastore.storage.engines.rocksdb import RocksEngine

        made = RocksEngine(str(folder / "engine"))
        while made.reclaim():
            pass
    store = in_store(made, turns)
    taken = made.size() / keys if engine == "memory" else 0.0
    print(json.dumps({"store": store, "taken": taken, "process": in_process(engine, folder / "node", turns)}))


if __name__ == "__main__":
    main()
