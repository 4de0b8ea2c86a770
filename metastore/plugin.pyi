"""The contract between MetaStore and its plug-ins. Version 1.

A plug-in is an entry point: of the group `metastore.storage` for a storage engine, of the group `metastore.codecs` for
a codec. The name of the entry point is what the configuration says. Two installed entry points of one name in one
group are refused.

**The factory.** The entry point names a factory: a class, or a function. A factory that takes options names them in its
attribute `OPTIONS`, a mapping of each key to its default value. It is then called with one more argument: a dict with
all keys of `OPTIONS`. The values come from the table `[storage.<name>]` or `[codecs.<name>]`, from `--set
storage.<name>.<key>=...`, or are the defaults. Unknown keys are refused at the start. A value must have the type of its
default, where a default that is an int also takes a size ("64MiB"), one that is a float also takes a duration ("5s"),
and the default None takes anything. A factory without `OPTIONS` takes no options, and a table for it is refused.

    make_engine(folder)            make_codec()               # without OPTIONS
    make_engine(folder, options)   make_codec(options)        # with OPTIONS

A factory may raise ConfigError or ValueError for options that it cannot use. Whatever it raises is one line and ends
the start: exit code 2. DamagedData, DataDirInUse and DiskFailed of an engine keep their own exit codes (4, 3 and 6).

**The version.** Each engine and each codec has the attribute `CONTRACT`, which is the number 1. Write the number, and
not `metastore.plugin.CONTRACT`: it says which contract the plug-in was written for. Another number is refused by name.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from ._core.ordered_map import OrderedMap
from .errors import ConfigError as ConfigError
from .errors import DamagedData as DamagedData
from .errors import DataDirInUse as DataDirInUse
from .errors import DiskFailed as DiskFailed
from .errors import EngineBusy as EngineBusy
from .errors import EngineDamaged as EngineDamaged
from .errors import EngineFailed as EngineFailed
from .errors import EngineFull as EngineFull
from .errors import FormatError as FormatError
from .errors import MetaStoreError as MetaStoreError
from .settings import parse_duration as parse_duration
from .settings import parse_size as parse_size

#: The version of the contract that this MetaStore keeps.
CONTRACT: int
#: The key of the engine's own record, b"mapplied": the log position (u64 index, u64 term, little-endian).
APPLIED_KEY: bytes

#: The changes of one write: an ordered map of the keys to their new values, where None deletes the key. `items()` goes
#: over all of it in the order of the keys. An engine neither changes a batch nor keeps it.
Batch = OrderedMap

class Engine:
    """The base of all storage engines: an ordered map of bytes to bytes, keys in memcmp order, which takes one atomic
    write for each applied batch.

    An engine overrides `get`, `scan`, `write`, `applied`, `view`, `size` and `restore`, declares `CONTRACT` and
    `persistent`, and has `durable_applied` if it is persistent. All else has a default. A start refuses an engine that
    lacks one of these, and one that overrides one of `stage` and `adopt` without the other.

    **Threads.** All calls come from the node's one thread, one after the other, except:

    - A view is read and closed in another thread, while the engine is written to and read in the node's own. So is each
      object that `iterate` of a view has returned. A view is never used by two threads at the same time.
    - An engine that `stage` returned is filled (`restore`, `seal`, `close`) in another thread.

    **How long.** The node does nothing else during a call, and its heartbeats wait. A call that looks at one key should
    take microseconds, however many records were removed next to it. `scan` is asked for 64 pairs or fewer at a time.
    `write` should take milliseconds at most, and raises EngineBusy where it would have to wait. `reclaim` and
    `defragment` take a millisecond at most.

    **What a call may raise.** EngineBusy and EngineFull of `write` hold up writes, and the same call comes again 5 ms
    later; after 3 s the node logs it and says that it is not healthy. Anything else that any call raises stops the
    node with exit code 13 and one sentence with the engine's name, the call, and the exception; DamagedData stops it
    with exit code 4. It cannot go on, because its state would then differ from that of the other members. What the
    stream of a `restore` raises must pass through `restore`.
    """

    #: 1. The base has None, so an engine that does not declare it is refused.
    CONTRACT: ClassVar[int | None]
    #: Whether a start finds again what the engine holds in its folder, up to `durable_applied()` at least, whatever
    #: ended the process or the machine. The log is cut behind `durable_applied()`. With False nothing is left after a
    #: stop: the node takes snapshots, and fills the engine from them. There is no default.
    persistent: bool
    #: The version of the files. The node writes it, with the engine's name, into a marker in the engine's folder
    #: (`metastore-engine.json`), and refuses a folder whose marker has another version before it calls the factory.
    FORMAT: ClassVar[int]  # the default is 1
    #: Bytes of the longest key and of the longest value that the engine takes; None for no limit below 512 MiB. Keys
    #: are some 15 bytes longer than those of clients, and each zero byte in a client's key takes two. A start refuses
    #: limits (`limits.max_key_bytes`, `limits.max_request_bytes`) under which a request could have more.
    max_key: int | None  # None
    max_value: int | None  # None
    #: Whether the engine takes no writes at present, because it found no room on its disk. Reads go on.
    full: bool  # False

    @property
    def headroom(self) -> int | None:
        """Bytes that must be free on its disk, or it may find no room; None (default) for an engine without files."""

    # -- reading. A view has these too. They show all writes that have returned.

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """Return the (key, value) pairs with start <= key < end (None: no bound), at most `limit` pairs (0: all), from
        the last one down if `reverse`. `APPLIED_KEY` is a key like any other."""

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all pairs from `start` on, in order. On an engine it may or may not show writes made meanwhile;
        on a view it never does. The default calls `scan`; an engine that can walk in bounded memory overrides it."""

    def seek_ge(self, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the first pair whose key is not below `key`, or None. The default calls `scan`."""

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        """Return the last pair whose key is not above `key`, or None. The default calls `scan`. Each put needs this
        once."""

    def find_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, or None, in the order of `keys`. The default calls `get` for each."""

    def count(self, start: bytes, end: bytes | None) -> int | None:
        """Return how many keys of clients are alive with start <= key < end (None: no bound) as of the last write, if
        the engine knows without walking over them. A key of table `k` (FORMATS.md, "Engine records") is alive if its
        newest version is no tombstone. None, the default, means that the engine does not know; the caller then walks.
        """

    @property
    def index_state(self) -> tuple[bool, int, int] | None:
        """Of an engine that counts its keys after a start, a slice at each `reclaim`: whether it has counted all, how
        many it has counted, and how often a number was found to be wrong. `/status` and `/metrics` show it. None, the
        default, for other engines."""

    def applied(self) -> tuple[int, int]:
        """Return (index, term) of the last write, (0, 0) for a new engine. A view: as of its beginning."""

    def size(self) -> int:
        """Return the bytes that the engine takes, of memory or of files, with everything besides keys and values.
        `limits.quota_bytes` is compared with this: beyond it puts are refused and the alarm NOSPACE is raised."""

    def size_in_use(self) -> int:
        """Return the bytes of `size` that do not wait to be given back, never more than `size`. Default: `size`."""

    def data_size(self) -> int:
        """Return about how many bytes a snapshot has to walk over. Default: `size`."""

    def close(self) -> None:
        """Release what the engine, or the view, holds; it is not used afterwards. Closing a view leaves its engine as
        it is, and closing an engine comes after its views are closed. What was written is still there at the next
        start if it was durable."""

    # -- writing

    def write(self, batch: Batch, index: int, term: int) -> None:
        """Store every pair of `batch` (value None: delete the key), and the log position under `APPLIED_KEY`:
        all of it or nothing, whatever ends the process. The next read sees it. Raises EngineBusy if it cannot take the
        batch without waiting; nothing is stored then, and the same call comes again."""

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace the contents by these pairs, in the order of their keys, with `APPLIED_KEY` among them. If the stream
        raises, its exception passes through, and the contents are the old ones. If the process dies, a start finds the
        old contents, or the first part of the new ones with the log position of neither: (0, 0). Raises FormatError if
        the stream has no log position."""

    def view(self) -> View:
        """Return a view: a read-only engine with the present contents, which neither later writes nor `adopt` change.
        Several views live at once (snapshots, backups, sums, long reads: some 40), for seconds and longer. See
        "Threads" for who reads them."""

    # -- what lasts

    def durable_applied(self) -> int:
        """Return the applied index up to which everything survives a crash of the process and of the machine. Never too
        much: the log is cut behind it. A persistent engine has this. Of any other engine it is 0."""

    def flush(self) -> None:
        """Bring `durable_applied()` on, as far as the engine can by itself, and wait for that. Default: nothing."""

    def begin_flush(self) -> None:
        """The same without waiting, if the engine can; `durable_applied()` shows the progress. Default: `flush`. Called
        after `maintenance.snapshot_count` entries."""

    # -- upkeep

    def reclaim(self) -> bool:
        """Do a slice (at most a millisecond) of the freeing that is left over; True while there is more."""

    def defragment(self) -> float | None:
        """Begin, or go on, to give back room that is held and not needed (at most a millisecond). Return None when it
        is done, else the seconds after which to call again. Default: `reclaim`, until that is done."""

    # -- receiving a snapshot beside the old contents: an optional capability, all of it or nothing

    def stage(self) -> Engine | None:
        """Return a new, empty engine beside this one, which another thread fills by `restore`. None, the default, means
        that the engine cannot: then `restore` is called on the engine itself, and the node stands still meanwhile."""

    def seal(self) -> None:
        """Called on a staged engine that is filled, by the thread that filled it. From here on a start finds its
        contents and not the old ones; that is one step, whatever ends the process. Only what an engine that is not
        persistent has staged needs no `seal`."""

    def adopt(self, staged: Engine) -> None:
        """Take over, at once, the contents of a sealed engine that `stage` returned; that object is not used
        afterwards. Views of the old contents stay as they are until they are closed."""

    def drop(self) -> None:
        """Drop the contents if that gives back memory. The next call is `restore`. Default: nothing."""

#: A view of an engine: an engine of which only the reading methods are called.
View = Engine

@runtime_checkable
class Codec(Protocol):
    """A compression codec for log entries and snapshots.

    One thread at a time uses an object; the node makes several objects, and uses them in several threads at once. When
    a codec is loaded, `decompress(compress(data))` must give `data` back, or the codec is refused.
    """

    #: The name of its entry point.
    name: str
    #: The byte before each payload: 16 to 255, chosen once and for all, since it stands in every log and snapshot.
    flag: int
    #: 1: `CONTRACT: ClassVar[int] = 1`. It is not part of the type, but a codec without it is refused.
    def compress(self, data: bytes) -> bytes:
        """Return the compressed form, a `bytes`. It may be longer than the data, and is not used then. If this raises,
        or returns something else, the data is stored as it is, which the log and a metric say."""
        ...

    def decompress(self, data: bytes, max_size: int) -> bytes:
        """Return what `compress` was given, a `bytes` of at most `max_size` bytes.

        Raises FormatError for damaged bytes, and for a content of more than `max_size` bytes, **before** it takes much
        more memory than that, whatever the bytes claim. Anything else that it raises or returns is a fault of the
        codec, and stops the node with exit code 15."""
        ...

__all__ = [
    "APPLIED_KEY", "CONTRACT", "Batch", "Codec", "ConfigError", "DamagedData", "DataDirInUse", "DiskFailed", "Engine",
    "EngineBusy", "EngineDamaged", "EngineFailed", "EngineFull", "FormatError", "MetaStoreError", "View",
    "parse_duration", "parse_size",
]  # fmt: skip
