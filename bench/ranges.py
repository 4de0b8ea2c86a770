#!/usr/bin/env python3
"""What a range over very many keys costs on a MetaStore node and on a real etcd, in one run on one machine.

    python bench/ranges.py all
    python bench/ranges.py streamed --keys 100000

unary: one Range over all keys, with memory and with RocksDB.
streamed: the same through RangeStream, which etcd has from version 3.7 on. An older etcd is asked for a unary Range.
Both servers get the same keys first. Memory is the highest while the reply is sent, above that before the request.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import loader  # noqa: E402
import paired  # noqa: E402
from options import make_parser  # noqa: E402
from pump import Link, close, play  # noqa: E402
from support import messages as m  # noqa: E402
from support.processes import Server  # noqa: E402

UNARY, STREAMED = b"/etcdserverpb.KV/Range", b"/etcdserverpb.KV/RangeStream"
REFUSED = 1000  # a call that is not implemented is answered with less than so many bytes


def ask(server: Server, path: bytes) -> tuple[int, float]:
    """Ask for all keys. Return the bytes of the reply messages, and the seconds."""
    link = Link(server.address)
    link.call(1, path, m.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString())
    link.ended = lambda link, _stream: setattr(link, "done", True)
    began = time.monotonic()
    play([link])
    took = time.monotonic() - began
    close([link])
    return link.data, took


def whole(server: Server, options: argparse.Namespace, _value: bytes, path: bytes) -> tuple[float, ...]:
    """(seconds, CPU seconds, MiB above idle)."""
    if loader.put_keys(server.address, b"ranges/", options.keys, options.value_size, options.seed) != options.keys:
        raise SystemExit(f"{server.kind}: not all keys were put")
    process = server.running()
    time.sleep(1)
    rss, before = process.rss(), process.cpu_ns()
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins at what is resident now
    data, took = ask(server, path)
    if data < REFUSED and server.kind == "etcd":
        data, took = ask(server, UNARY)
    if data < options.keys * options.value_size:
        raise SystemExit(f"{server.kind}: {data} bytes, less than the values are long")
    cpu = (process.cpu_ns() - before) / 1e9
    return took, cpu, (process.peak_rss() - rss) / (1 << 20)


COLUMNS = ("seconds", "CPU s", "MiB above idle")
ROCKSDB = {"storage.engine": '"rocksdb"'}
MEASUREMENTS = {
    "unary": paired.Measurement(partial(whole, path=UNARY), "Range over all keys, memory", COLUMNS),
    "unary-rocksdb": paired.Measurement(partial(whole, path=UNARY), "Range over all keys, RocksDB", COLUMNS, ROCKSDB),
    "streamed": paired.Measurement(partial(whole, path=STREAMED), "RangeStream over all keys, memory", COLUMNS),
    "streamed-rocksdb": paired.Measurement(
        partial(whole, path=STREAMED), "RangeStream over all keys, RocksDB", COLUMNS, ROCKSDB
    ),
}


def main() -> None:
    parser = make_parser(__doc__, list(MEASUREMENTS), rounds=1, requests=0, value_size=256, seed=1)
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys (default: %(default)s)")
    paired.run(parser.parse_args(), MEASUREMENTS)


if __name__ == "__main__":
    main()
