"""Joining a running cluster: `join` asks real members, and a member joins and catches up."""

from __future__ import annotations

import json
import logging
import lzma
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_ports

from metastore import Config, Node, codecs, errors
from metastore._core.batch import frame
from metastore._core.op import LEVEL, MEMBER, encode_op
from metastore._core.raft_types import ConfState, Message, MessageType, Snapshot
from metastore._core.raft_wire import REFUSALS
from metastore.member import membership_client, peering, state
from metastore.member.membership_client import dialled_address
from metastore.net.accept import real_address
from metastore.peers import join
from metastore.replica import roster
from metastore.snapshots import files as snapshots
from metastore.storage.starts import next_start


def configured(folder: Path, name: str, port: int, **cluster: Any) -> Config:
    return Config.from_dict(
        {
            "node": {"name": name, "data_dir": str(folder / name)},
            "listen": {"client": "127.0.0.1:0", "peer": f"127.0.0.1:{port}"},
            "cluster": {"token": "joiners", "initial": {name: f"127.0.0.1:{port}"}, **cluster},
            "wal": {"segment_size": "1MiB"},
        }
    )


def add(node: Node, port: int, learner: bool) -> Any:
    """Let `node` add a member. Return its record."""
    outcome: Future[Any] = Future()
    running = node._running()

    def done(member: Any, error: errors.MetaStoreError | None) -> None:
        outcome.set_exception(error) if error is not None else outcome.set_result(member)

    running.loop.call_soon_threadsafe(lambda: running.changes.add_member([f"http://127.0.0.1:{port}"], learner, done))
    return outcome.result(10)


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


@pytest.fixture
def first(tmp_path: Path, ports: list[int]) -> Iterator[Node]:
    with Node(configured(tmp_path, "n1", ports[0])) as node:
        yield node


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "PATIENCE", 0.2)


def test_a_learner_joins_and_has_everything(
    first: Node, tmp_path: Path, ports: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first.put("before", "1")
    member = add(first, ports[1], learner=True)
    first.put("between", "2")
    both = {"n1": f"127.0.0.1:{ports[0]}", "n2": f"127.0.0.1:{ports[1]}"}
    with Node(configured(tmp_path, "n2", ports[1], initial=both, state="existing")) as second:
        assert second._running().disk.identity.member_id == member.id
        assert [kv.key for kv in second.range("a", "z", serializable=True).kvs] == [b"before", b"between"]
        first.put("after", "3")
        assert second.get("after") is not None
    lines = [record.getMessage() for record in caplog.records if record.name == "metastore.join"]
    assert lines[0].endswith(f"the peer URL http://127.0.0.1:{ports[1]}; asking 127.0.0.1:{ports[0]}")
    assert f"as n2 ({member.id:016x}), a learner; members: n1 at http://127.0.0.1:{ports[0]}" in lines[1]
    # Once joined, the directory says which member it belongs to, and `state` no longer counts.
    with Node(configured(tmp_path, "n2", ports[1], initial=both, state="new")) as again:
        assert again._running().disk.identity.member_id == member.id
        assert again.get("after") is not None


def test_who_was_not_added_is_refused(first: Node, ports: list[int]) -> None:
    add(first, ports[1], learner=True)
    with pytest.raises(errors.ConfigError, match=f"no member has the peer URL http://127.0.0.1:{ports[2]}"):
        join.join([f"127.0.0.1:{ports[0]}"], "n3", "joiners", f"127.0.0.1:{ports[2]}", "x")


def test_the_token_need_not_be_known(first: Node, tmp_path: Path, ports: list[int]) -> None:
    """`member add` does not print it. From then on the token with which the directory was made counts."""
    add(first, ports[1], learner=True)
    both = {"n1": f"127.0.0.1:{ports[0]}", "n2": f"127.0.0.1:{ports[1]}"}
    config = configured(tmp_path, "n2", ports[1], initial=both, state="existing", token="unknown")
    with Node(config) as second:
        assert (
            first.put("k", "v") is not None
            and second._running().disk.identity.cluster_id == first._running().disk.identity.cluster_id
        )
    with pytest.raises(errors.ConfigError, match=r"cluster\.token is 'joiners', but the data directory was made with"):
        Node(config.changed(cluster={"token": "joiners", "initial": both, "state": "existing"})).start()
    with pytest.raises(errors.ConfigError, match=r"node\.name is 'n3', but the data directory is that of 'n2'"):
        Node(config.changed(node={"name": "n3", "data_dir": str(tmp_path / "n2")}, cluster={"initial": {
            "n1": both["n1"], "n3": both["n2"]}, "token": "unknown"})).start()  # fmt: skip


def test_members_of_several_clusters_are_refused(first: Node, tmp_path: Path, ports: list[int]) -> None:
    add(first, ports[1], learner=True)
    with Node(configured(tmp_path, "other", ports[2], initial={"other": f"127.0.0.1:{ports[2]}"})) as other:
        add(other, ports[1], learner=True)
        with pytest.raises(errors.ConfigError, match=r"cluster\.initial names members of several clusters"):
            join.join([f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[2]}"], "n2", "", f"127.0.0.1:{ports[1]}", "x")


def test_a_roster_as_long_as_it_may_be(first: Node, ports: list[int]) -> None:
    """It was bound to 16 KiB, and a longer one stopped the member that was asked for it."""
    urls = [f"http://{'h' * 200}:{port}" for port in range(1, 17)]
    assert error_of_change(first, urls) is None
    add(first, ports[1], learner=False)
    answer = join._ask(f"127.0.0.1:{ports[0]}")
    assert [len(member.peer_urls) for member in answer.contacts].count(16) == 1
    running = first._running()
    long = roster.Member(7, "", tuple(f"http://h{number}:1" for number in range(20_000)), ())
    done: Future[None] = Future()

    def grow() -> None:
        running.driver.roster.members[7] = long
        done.set_result(None)

    running.loop.call_soon_threadsafe(grow)
    done.result(10)
    assert len(join.roster_record(running.disk.identity, running.driver.roster)) > 300_000
    assert long in join._ask(f"127.0.0.1:{ports[0]}").contacts
    running.loop.call_soon_threadsafe(lambda: running.driver.roster.members.pop(7))


@pytest.mark.parametrize(
    "record", [b"", b"[]", b"\xff", b'{"version": 2}', b"[" * 100_000, b'{"version": 1, "cluster_id": 0}',
               b'{"version": 1, "cluster_id": 5, "members": [], "contacts": [{}]}',
               b'{"version": 1, "cluster_id": "x\\n", "members": [], "contacts": []}']
)  # fmt: skip
def test_a_roster_that_is_none(record: bytes) -> None:
    with pytest.raises(errors.FormatError, match="its roster cannot be read") as refused:
        join.read_record(record)
    assert "\n" not in refused.value.text


def test_who_a_directory_is_of() -> None:
    """Older directories have neither name nor token in their identity. Both are found all the same."""
    own = roster.Identity.create("a", "t", {"a": "h:1", "b": "h:2"}, "00")
    assert roster.Identity.decode(own.encode()) == own
    record = {key: value for key, value in json.loads(own.encode()).items() if key not in ("name", "token")}
    old = roster.Identity.decode(json.dumps({**record, "version": 1}).encode())
    assert (old.name, old.token) == ("", 0)
    joined = roster.Identity(old.cluster_id, 9, "01", old.members, old.members)
    for identity in (own, old):
        identity.check("a", "t")
        assert not identity.differs({"b": "h:2", "a": "h:1"}) and identity.differs({"a": "h:1"})
        for name, token in (("b", "t"), ("a", "u")):
            with pytest.raises(errors.ConfigError):
                identity.check(name, token)
    joined.check("anything", "anything")
    with pytest.raises(errors.FormatError, match="version 3"):
        roster.Identity.decode(json.dumps({**record, "version": 3}).encode())


# ---- the number of the start


def test_every_start_has_a_later_number(tmp_path: Path) -> None:
    assert [next_start(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["starts"]
    good = (tmp_path / "starts").read_bytes()
    for at in range(len(good) - 1):
        (tmp_path / "starts").write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(errors.DamagedData, match="starts: cannot be read"):
            next_start(tmp_path)
        (tmp_path / "starts").write_bytes(good[:at])
        with pytest.raises(errors.DamagedData, match="starts: cannot be read"):
            next_start(tmp_path)
    (tmp_path / "starts").unlink()
    (tmp_path / "starts").mkdir()
    with pytest.raises(errors.DiskFailed, match="starts"):
        next_start(tmp_path)


def test_a_wiped_directory_cannot_join_again(first: Node, tmp_path: Path, ports: list[int]) -> None:
    add(first, ports[1], learner=True)
    both = {"n1": f"127.0.0.1:{ports[0]}", "n2": f"127.0.0.1:{ports[1]}"}
    config = configured(tmp_path, "n2", ports[1], initial=both, state="existing")
    with Node(config):
        pass
    elsewhere = configured(tmp_path / "wiped", "n2", ports[1], initial=both, state="existing")
    with pytest.raises(errors.ConfigError, match="has joined before with another data directory"):
        Node(elsewhere).start()


def test_nobody_there(ports: list[int]) -> None:
    with pytest.raises(errors.ConfigError, match=r"cannot join the cluster: .*refused"):
        join.join([f"127.0.0.1:{ports[0]}"], "n2", "joiners", f"127.0.0.1:{ports[1]}", "x")
    with pytest.raises(errors.ConfigError, match="must name a member that is there"):
        join.join([f"127.0.0.1:{ports[1]}"], "n2", "joiners", f"127.0.0.1:{ports[1]}", "x")


# ---- messages of other members


def called(node: Node, call: Any) -> Any:
    """Return what `call(running)` returns in the loop's thread, or the exception that it raises."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call(node._running()))
        except Exception as error:  # noqa: BLE001 - handed to the test
            outcome.set_result(error)

    node._running().loop.call_soon_threadsafe(run)
    return outcome.result(10)


def test_no_message_takes_the_last_terms(first: Node) -> None:
    """After the last term no cluster could ever hold an election again."""
    running = first._running()
    for term in ((1 << 64) - 1, 1 << 62, running.driver.raw.term + (1 << 32) + 1):
        for kind in (MessageType.MsgApp, MessageType.MsgVote, MessageType.MsgPreVote, MessageType.MsgHeartbeatResp):
            message = Message(kind, running.disk.identity.member_id, 9, term)
            assert isinstance(called(first, lambda at, m=message: at.driver.receive(m)), errors.FormatError)
    assert first.put("k", "v") is not None and running.driver.raw.term == 1


def test_nothing_above_the_level_of_all_members_is_logged(first: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation was requested here, or another member forwarded it."""
    monkeypatch.setattr(membership_client, "level_of", lambda operation: LEVEL + 1)
    assert isinstance(error_of_change(first, ["http://127.0.0.1:9"]), errors.NotCapable)
    refused: list[Any] = []

    def forward(running: Any) -> None:
        running.driver.link.refuse = lambda *answer: refused.append(answer)
        running.kv.cluster_level = 0
        running.driver.receive_forward(99, frame([encode_op(1, 5, b"")]), running.loop.now())

    assert called(first, forward) is None
    assert [(to, REFUSALS[code], ids) for to, code, ids in refused] == [(99, errors.NotCapable, [5])]


class Lzma:
    """A codec plug-in."""

    name, flag = "lzma", 20

    def compress(self, data: bytes) -> bytes:
        return lzma.compress(data)

    def decompress(self, data: bytes, max_size: int) -> bytes:
        return lzma.decompress(data)


def test_a_codec_is_used_when_all_members_can_read_it(
    tmp_path: Path, ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that cannot read the log's entries is told so, by name, and does not stop at each start."""
    known = [codecs.Snappy(), codecs.Zstd(), Lzma()]
    compressed = {"performance": {"compression_codec": "lzma", "compression_min_size": 1}}
    value = "x" * 1000
    with monkeypatch.context() as patch:
        patch.setattr(peering, "load_all", lambda _tables: known)
        patch.setattr(state, "load_all_codecs", lambda _tables, _configured: known)
        needed = {"lzma": known[2]}
        patch.setattr(state, "codec_for_proposals", lambda table, _tables: needed.get(table.compression_codec))
        with Node(configured(tmp_path, "n1", ports[0]).changed(**compressed)) as one:
            one.put("alone", value)
            assert called(one, lambda at: set(at.replica.codec.plugins)) == {(20, "lzma")}
            add(one, ports[1], learner=True)
            # The newcomer has not yet told which codecs it can read.
            assert called(one, lambda at: at.replica.codec.codec.name) == "snappy"
            both = {"n1": f"127.0.0.1:{ports[0]}", "n2": f"127.0.0.1:{ports[1]}"}
            config = configured(tmp_path, "n2", ports[1], initial=both, state="existing")
            with Node(config):
                one.put("together", value)
                assert called(one, lambda at: at.replica.codec.codec.name) == "lzma"
            patch.setattr(peering, "load_all", lambda _tables: known[:2])
            patch.setattr(state, "load_all_codecs", lambda _tables, _configured: known[:2])
            second = Node(config)
            # It meets one of these first: another member's word, or the entry itself.
            with pytest.raises(
                errors.CodecMissing,
                match=r"'lzma' \(flag 20\), which member|^entry \d+ needs the codec with flag 20 \(not installed\)$",
            ):
                second.start()
                second.wait(20)
            assert one.put("after", value) is not None


def test_a_snapshot_is_compressed_by_what_all_members_can_read(
    tmp_path: Path, ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "codec_for_snapshots", lambda _table, _tables: Lzma())
    monkeypatch.setattr(snapshots, "load_all_codecs", lambda _tables: [codecs.Snappy(), codecs.Zstd(), Lzma()])
    with Node(configured(tmp_path, "n1", ports[0])) as one:
        make_codec = one._running().snapshots.store.make_codec
        assert make_codec().codec.name == "lzma"
        add(one, ports[1], learner=True)
        assert make_codec().codec.name == "zstd"
        called(one, lambda at: setattr(at.state.codecs, "known", frozenset({(20, "lzma")})))
        assert make_codec().codec.name == "lzma"


# ---- what a membership change may ask for


def error_of_change(node: Node, urls: list[str], ident: int = 0) -> Any:
    """Let `node` add a member at `urls`, or move the member `ident` there. Return the resulting error."""
    outcome: Future[Any] = Future()
    running = node._running()

    def ask() -> None:
        try:
            if ident:
                running.changes.update_member(ident, urls, outcome.set_result)
            else:
                running.changes.add_member(urls, True, lambda _member, error: outcome.set_result(error))
        except errors.MetaStoreError as error:
            outcome.set_result(error)

    running.loop.call_soon_threadsafe(ask)
    return outcome.result(30)


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        ([], ""),
        (["http://["], ""),
        (["http://a:1", "https://a:2"], ": https is not there yet between members, only http"),
        (["http://a"], ""),
        ([f"http://a:{port}" for port in range(1, 18)], ": 17 URLs; a member has 16 at most"),
        ([f"http://{'a' * 260}:1"], ": a URL is longer than 256 bytes"),
        (["http://\ud800:1"], ": half a character"),
    ],
)
def test_peer_urls_are_judged_before_anything_else(first: Node, urls: list[str], reason: str) -> None:
    """URLs from another member are checked, too, because that member may not have checked them."""
    for ident in (0, first._running().disk.identity.member_id):
        error = error_of_change(first, urls, ident)
        assert isinstance(error, errors.MemberBadURLs) and error.text == errors.MemberBadURLs.default + reason
    for action in ("add", "add_learner", "update"):
        with pytest.raises(errors.MemberBadURLs):
            roster.Change(action, roster.Member(7, "", tuple(urls), ())).check_size()
    with pytest.raises(errors.RequestTooLarge):
        roster.Change("publish", roster.Member(7, "n" * 200, (), ())).check_size()
    assert first.put("k", "v") is not None


def test_a_forwarded_change_is_judged_by_the_leader(first: Node) -> None:
    """A follower of another version, or a stranger in its name, may send anything."""
    running = first._running()
    change = roster.Change("update", roster.Member(running.disk.identity.member_id, "", ("http://[",), ()))
    refused: Future[Any] = Future()

    def ask() -> None:
        running.driver.link.refuse = lambda *answer: refused.set_result(answer)
        running.driver.receive_forward(99, frame([encode_op(MEMBER, 5, change.encode())]), running.loop.now())

    running.loop.call_soon_threadsafe(ask)
    to, code, ids = refused.result(10)
    assert (to, REFUSALS[code], ids) == (99, errors.MemberBadURLs, [5])
    assert next(iter(running.changes.members())).peer_urls != ("http://[",)


def test_a_snapshot_that_is_not_here_is_not_begun(first: Node) -> None:
    """A stranger in a leader's name announces one: a core that believes it gives up its log for it."""
    running = first._running()
    far = Snapshot(1000, 2, ConfState((running.disk.identity.member_id,)))
    message = Message(MessageType.MsgSnap, running.disk.identity.member_id, 9, 2, snapshot=far)
    assert called(first, lambda at: at.peering.on_message(message)) is None
    assert first.put("k", "v") is not None and running.driver.raw.term == 1


def test_the_roster_of_another_cluster_tells_nothing(first: Node) -> None:
    running = first._running()
    record = join.roster_record(running.disk.identity, running.driver.roster)
    other = json.dumps({**json.loads(record), "cluster_id": 7}).encode()
    error = called(first, lambda at: at.peering.on_roster(9, other))
    assert isinstance(error, errors.FormatError) and error.text == "a roster of another cluster"


def test_a_roster_with_addresses_that_are_none_stops_nobody(first: Node) -> None:
    """Older versions let such addresses into the log."""
    broken = roster.Member(9, "", ("http://[", "nonsense"), ())
    assert dialled_address(broken) == ""
    assert dialled_address(roster.Member(9, "", ("http://[", "https://b:2"), ())) == "b:2"


def test_a_peer_port_that_cannot_be_opened_refuses_the_first_member(tmp_path: Path) -> None:
    config = configured(tmp_path, "n1", 0).changed(listen={"peer": "no-such-host.invalid:2380"})
    with Node(config) as node:
        for _ in range(2):
            error = error_of_change(node, ["http://127.0.0.1:9"])
            assert isinstance(error, errors.Unhealthy) and "no-such-host.invalid" in error.text
        assert node.put("k", "v") is not None


def test_nobody_is_told_to_dial_everywhere(tmp_path: Path) -> None:
    config = configured(tmp_path, "n1", 0).changed(
        listen={"client": ["0.0.0.0:0", "127.0.0.1:0"], "peer": "0.0.0.0:2380"}, cluster={"initial": {}}
    )
    with Node(config) as node:
        member = next(iter(node._running().changes.members()))
    urls = [*member.client_urls, *member.peer_urls]
    assert len(urls) == 3 and not any("0.0.0.0" in url or url.endswith(":0") for url in urls), urls
    assert real_address("[::]:7").endswith("]:7") and "[::]" not in real_address("[::]:7")
