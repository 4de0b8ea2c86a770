"""MetaStore: a replicated, strongly consistent metadata store that speaks the etcd v3 API.

    from metastore import Config, Node

    with Node(Config(node={"data_dir": "/tmp/n1"}, listen={"client": "127.0.0.1:0"})) as node:
        node.put(b"key", b"value")

Importing the package is cheap: `Node`, `Config` and `errors` are loaded when they are first used.
"""

# This file and __main__.py keep to the syntax of old Pythons, so that these get a sentence instead of a SyntaxError.

import os as _os

_setup = _os.path.join(_os.path.dirname(_os.path.dirname(_os.path.abspath(__file__))), "setup.py")
if "_chosen" not in globals() and _os.path.exists(_setup):
    from metastore import _source

    _source.give_way()

__version__ = "0.1.0"
__all__ = ["Config", "MetaStoreError", "Node", "__version__", "errors"]

_LAZY = {
    "Config": ("metastore.config", "Config"),
    "MetaStoreError": ("metastore.errors", "MetaStoreError"),
    "Node": ("metastore.embedded.node", "Node"),
    "errors": ("metastore.errors", None),
}


def __getattr__(name):
    """Load `Node`, `Config` and `errors` on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_LAZY))
