"""`metastore snapshot status|verify|restore` handles backups and snapshot files without a running node."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metastore._core.codec import PayloadCodec
from metastore._core.snap_chunk import MAX_CHUNK
from metastore.cli import console
from metastore.codecs import for_snapshots as codec_for_snapshots
from metastore.codecs import load_all as load_all_codecs
from metastore.config import Config
from metastore.errors import ConfigError
from metastore.failpoints import VARIABLE, Failpoints
from metastore.replica.roster import Identity
from metastore.settings import IN_MEMORY
from metastore.snapshots.backup_file import BackupSummary, summarize, verify
from metastore.snapshots.restore import Restore

MIN_COMPRESSED = 64  # bytes; shorter chunks stay raw


def parser() -> argparse.ArgumentParser:
    """The options of the subcommand."""
    arg_parser = argparse.ArgumentParser(
        prog="metastore snapshot",
        description="Look at a backup (made by `etcdctl snapshot save`) or a file out of a node's snap folder, check "
        "it, or begin a new cluster with it.",
        epilog="exit codes: 0 good, 2 bad command line or unreadable file, 3 data directory in use, 4 damaged, "
        "6 the disk failed",
    )
    commands = arg_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("status", "what the file says of itself; quick"), ("verify", "read all of it and check it")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", metavar="FILE")
        command.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    command = commands.add_parser(
        "restore", help="make the data directory of a member of a new cluster",
        description="Make the data directory of a member of a new cluster out of a backup. For a cluster of several, "
        "restore the same file once for each member, with its own --name and the same --initial and --token.",
    )  # fmt: skip
    command.add_argument("file", metavar="FILE")
    command.add_argument("--name", help="the member's name (node.name)")
    command.add_argument("--data-dir", metavar="DIR", help="must be empty or not there (node.data_dir)")
    command.add_argument(
        "--initial", metavar="NAME=HOST:PORT,...", help="all members with their peer addresses (cluster.initial)"
    )
    command.add_argument("--token", help="tells clusters apart (cluster.token); a new one keeps old members away")
    command.add_argument("--conf", metavar="FILE", help="take what is not given here from this configuration file")
    command.add_argument("--bump-revision", metavar="N", type=int, default=0, help="go on N revisions later")
    command.add_argument(
        "--mark-compacted", action="store_true", help="count all revisions up to the bumped one as compacted"
    )
    command.add_argument("--skip-hash-check", action="store_true", help="do not compare the SHA-256 at the end")
    return arg_parser


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit code. Raises MetaStoreError."""
    options = parser().parse_args(arguments)
    path = Path(options.file)
    if options.command == "status":
        _show(summarize(path), options.json, "not verified")
    elif options.command == "verify":
        with console.progress() as tell:
            summary = verify(path, True, lambda at, size: tell(f"verifying {path}", at, size))
        sums = "all checksums" if summary.digest is None else "all checksums and the SHA-256"
        _show(summary, options.json, f"good: {summary.trailer.chunks} chunks, {sums}")
    else:
        _restore(path, options)
    return 0


def _show(summary: BackupSummary, as_json: bool, verdict: str) -> None:
    header, trailer = summary.header, summary.trailer
    plain: dict[str, Any] = {
        "file": str(summary.path),
        "kind": "snapshot file" if summary.digest is None else "backup",
        "cluster id": f"{header.cluster_id:016x}",
        "revision": header.revision,
        "index": header.index,
        "term": header.term,
        "voters": " ".join(f"{ident:016x}" for ident in header.conf_state.voters),
        "learners": " ".join(f"{ident:016x}" for ident in header.conf_state.learners),
        "records": trailer.records,
        "chunks": trailer.chunks,
        "chunk size": header.chunk_size,
        "codec": header.codec or "none",
        "bytes raw": trailer.nbytes,
        "bytes": summary.size,
        "sha256": summary.digest.hex() if summary.digest is not None else "",
        "verdict": verdict,
    }
    if as_json:
        console.facts("", {name.replace(" ", "_"): value for name, value in plain.items()}, True)
        return
    for name in ("chunk size", "bytes raw", "bytes"):
        plain[name] = console.size(plain[name])
    console.facts(summary.path.name, plain)


def configuration(options: argparse.Namespace) -> Config:
    """Build the member's configuration from the file and the command line, which goes first. Raises ConfigError."""
    if options.conf is None and options.data_dir is None:
        raise ConfigError("snapshot restore: --data-dir or --conf is needed")
    text = ""
    if options.conf is not None:
        try:
            text = Path(options.conf).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{options.conf}: cannot be read: {error}") from None
    flags = {"node.name": options.name, "node.data_dir": options.data_dir, "cluster.token": options.token}
    overrides = [f"{key}={_quoted(value)}" for key, value in flags.items() if value is not None]
    if options.initial is not None:
        pairs = (f"{_quoted(name)} = {_quoted(where)}" for name, where in _members(options.initial))
        overrides.append(f"cluster.initial={{ {', '.join(pairs)} }}")
    config = Config.load(text, options.conf or "defaults", os.environ, overrides)
    if config.cluster.state != "new":
        raise ConfigError(f'cluster.state is "{config.cluster.state}": a restored member begins a new cluster')
    return config


def _quoted(text: str) -> str:
    """A string of TOML."""
    safe = "".join(char if char.isprintable() and char not in '"\\' else f"\\u{ord(char):04x}" for char in text)
    return f'"{safe}"'


def _members(text: str) -> list[tuple[str, str]]:
    members: list[tuple[str, str]] = []
    for part in text.split(","):
        name, equals, where = part.strip().partition("=")
        if not name or not equals or not where:
            raise ConfigError(f"--initial: {part.strip()!r} is not NAME=HOST:PORT")
        if name in dict(members):
            raise ConfigError(f"--initial: {name!r} is named twice")
        # etcd's form is that of a URL.
        members.append((name, where.removeprefix("http://")))
    return members


def _restore(path: Path, options: argparse.Namespace) -> None:
    config = configuration(options)
    table = config.maintenance
    if config.node.data_dir == IN_MEMORY:
        raise ConfigError(f'node.data_dir = "{IN_MEMORY}": there is nothing to restore into')

    def make_codec() -> PayloadCodec:
        return PayloadCodec(codec_for_snapshots(table), MIN_COMPRESSED, MAX_CHUNK, decoders=load_all_codecs())

    initial = dict(config.cluster.initial) or {config.node.name: config.listen.peer}
    identity = Identity.create(config.node.name, config.cluster.token, initial, secrets.token_hex(16))
    with console.progress() as tell:
        work = Restore(
            path, Path(config.node.data_dir), identity, bump=options.bump_revision,
            mark_compacted=options.mark_compacted, check_digest=not options.skip_hash_check,
            chunk_size=table.snapshot_chunk_size, make_codec=make_codec,
            failpoints=Failpoints(os.environ.get(VARIABLE, "")), progress=tell,
        )  # fmt: skip
        info = work.run(work.check())
    console.facts(
        "restored",
        {
            "data directory": config.node.data_dir,
            "member": f"{config.node.name} ({identity.member_id:016x})",
            "members": " ".join(f"{name}={where}" for name, where in sorted(initial.items())),
            "token": config.cluster.token,
            "cluster id": f"{identity.cluster_id:016x}",
            "revision": info.header.revision,
            "records": info.trailer.records,
        },
    )
