"""The source folder must not hide an installed package.

`python -m metastore`, typed in a checkout, finds the folder `metastore` there before anything that pip installed,
with modules that may never have been compiled for this Python. So a package that was imported from a checkout looks
whether another one is installed, and hands over to it. An editable install is the checkout itself and stays.
"""

# Old Pythons must be able to read this file, see __init__.py.

import os
import sys


def give_way():
    """Replace the checkout's package in `sys.modules` by the installed one, if there is one."""
    spec = installed_spec()
    if spec is None:
        return
    import importlib.util

    for name in [name for name in sys.modules if name == "metastore" or name.startswith("metastore.")]:
        del sys.modules[name]
    module = importlib.util.module_from_spec(spec)
    # The other one may be a checkout too (an editable install) and find this one in turn: it stays.
    module.__dict__["_chosen"] = True
    sys.modules["metastore"] = module
    spec.loader.exec_module(module)


def installed_spec():
    """The import spec of another package of our name, past the checkout's folder; None if there is none."""
    checkout = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    others = [path for path in sys.path if os.path.realpath(path or os.curdir) != checkout]
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find("metastore", others) if find else None
        if spec is not None and spec.origin:
            here = os.path.join(checkout, "metastore")
            return None if os.path.dirname(os.path.realpath(spec.origin)) == here else spec
    return None


def compiled():
    """Whether the compiled modules for this Python lie beside the sources."""
    import importlib.machinery

    core = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_core", "build")
    return any(os.path.exists(core + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES)
