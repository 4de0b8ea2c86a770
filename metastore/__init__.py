"""MetaStore: a replicated, strongly consistent metadata store that speaks the etcd v3 API.

    from metastore import Config, Node

    with Node(Config(node={"data_dir": "/tmp/n1"}, listen={"client": "127.0.0.1:0"})) as node:
        node.put(b"key", b"value")

Importing the package is cheap: what it offers is loaded when it is first used. Type checkers find it in __init__.pyi.
"""

# This file and __main__.py keep to the syntax of old Pythons, so that these get a sentence instead of a SyntaxError.

import os as _os

_setup = _os.path.join(_os.path.dirname(_os.path.dirname(_os.path.abspath(__file__))), "setup.py")
if "_chosen" not in globals() and _os.path.exists(_setup):
    from metastore import _source

    _source.give_way()

__version__ = "0.1.0"

# Each name, and the module that it is loaded from; `errors` is a module itself.
_LAZY = {
    "ApiError": "metastore.errors",
    "AsyncElection": "metastore.embedded.aio_locks",
    "AsyncKV": "metastore.embedded.aio",
    "AsyncLeadership": "metastore.embedded.aio_locks",
    "AsyncLease": "metastore.embedded.aio_leases",
    "AsyncLock": "metastore.embedded.aio_locks",
    "AsyncObservation": "metastore.embedded.aio_locks",
    "AsyncWatch": "metastore.embedded.aio_watch",
    "Columns": "metastore.embedded.columns",
    "CompactResult": "metastore.embedded.results",
    "Compare": "metastore.embedded.transactions",
    "Config": "metastore.config",
    "DeleteResult": "metastore.embedded.results",
    "Election": "metastore.embedded.locks",
    "EventKind": "metastore.embedded.results",
    "Futures": "metastore.embedded.calls",
    "GrantResult": "metastore.embedded.results",
    "KeyValue": "metastore.embedded.results",
    "Leadership": "metastore.embedded.locks",
    "Lease": "metastore.embedded.leases",
    "LeaseInfo": "metastore.embedded.results",
    "Lock": "metastore.embedded.locks",
    "MetaStoreError": "metastore.errors",
    "Node": "metastore.embedded.node",
    "Observation": "metastore.embedded.locks",
    "Op": "metastore.embedded.transactions",
    "PutManyResult": "metastore.embedded.results",
    "PutResult": "metastore.embedded.results",
    "RangeResult": "metastore.embedded.results",
    "SortOrder": "metastore.embedded.requests",
    "SortTarget": "metastore.embedded.requests",
    "TxnResult": "metastore.embedded.results",
    "Watch": "metastore.embedded.watch",
    "WatchBatch": "metastore.embedded.results",
    "WatchEvent": "metastore.embedded.results",
    "errors": "metastore.errors",
}
__all__ = ["__version__"] + sorted(_LAZY)  # noqa: RUF005 the syntax of old Pythons


def __getattr__(name):
    """Load what the package offers on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    value = module if module.__name__ == "metastore." + name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_LAZY))
