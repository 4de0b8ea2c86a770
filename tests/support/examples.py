"""The storage engines in examples/."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from . import ROOT

#: What a node must be told to run on them.
EXAMPLES = {
    "sqlite": {"storage.engine": '"sqlite"'},
    "lmdb": {"storage.engine": '"lmdb"', "storage.lmdb.map_size": '"256MiB"', "limits.max_key_bytes": '"496B"'},
}


def install_examples(folder: Path) -> dict[str, str]:
    """Return the environment with both engines, as pip leaves it. tests/node/test_plugin.py has pip do it."""
    site = folder / "site"
    for name in EXAMPLES:
        source = ROOT / "examples" / f"{name}_engine"
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = project["entry-points"]["metastore.storage"]
        lines = [f"{key} = {value}" for key, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[metastore.storage]", *lines, ""]))
        shutil.copy(source / f"{name}_engine.py", site)
    return {"PYTHONPATH": str(site)}
