"""Make a wheel self-contained, install it into a fresh environment, and use it: start, put, get, stop. Then do the same
with the storage engines in examples/, by the commands of docs/plugins.md.

usage: wheel.py FOLDER-WITH-THE-WHEEL FOLDER-FOR-THE-RESULT
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (".pyx", ".c", ".so.new")


def repaired(raw: Path, target: Path) -> Path:
    """The wheel with its libraries inside (auditwheel); checks what it holds."""
    (wheel,) = raw.glob("metastore_kv-*.whl")
    subprocess.run([sys.executable, "-m", "auditwheel", "repair", "-w", target, wheel], check=True)
    (made,) = target.glob("metastore_kv-*.whl")
    names = zipfile.ZipFile(made).namelist()
    assert any(re.match(r"metastore_kv\.libs/libnghttp2", name) for name in names), "libnghttp2 is not in the wheel"
    assert not [name for name in names if name.endswith(SOURCES)], "sources of the build are in the wheel"
    for needed in (
        "metastore/py.typed",
        "metastore/__init__.pyi",
        "metastore/_core/build.pyi",
        "metastore/proto/descriptors.binpb",
    ):
        assert needed in names, f"{needed} is not in the wheel"
    assert "manylinux" in made.name, made.name
    return made


def etcdctl(address: str, *arguments: str) -> str:
    """Output of one etcdctl call."""
    env = {**os.environ, "ETCDCTL_API": "3"}
    argv = ["etcdctl", "--endpoints", address, *arguments]
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=20).stdout


def use(python: Path, folder: Path, *options: str) -> None:
    """Start the installed program in `folder`, put and get, see which libraries it uses, stop it."""
    listen = ["--set", "listen.client=127.0.0.1:0"]
    script = python.with_name("metastore")
    node = subprocess.Popen([script, *listen, *options], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        assert node.stderr is not None
        address = ""
        for line in node.stderr:
            print(line, end="")
            match = re.search(r"ready to serve client requests.*?client\W+([\w.\[\]:]+:\d+)", line)
            if match:
                address = match[1]
                break
        assert address, "the node did not become ready"
        assert etcdctl(address, "put", "key", "value") == "OK\n"
        assert etcdctl(address, "get", "key") == "key\nvalue\n"
        loaded = {line.split()[-1] for line in Path(f"/proc/{node.pid}/maps").read_text().splitlines()}
        libraries = [name for name in loaded if "nghttp2" in name]
        assert libraries and all("metastore_kv.libs" in name for name in libraries), libraries
        node.send_signal(signal.SIGTERM)
        assert node.wait(10) == 0
    finally:
        if node.poll() is None:
            node.kill()


def plugins(wheel: Path, folder: Path) -> None:
    """Install the examples from wheels by the commands of docs/plugins.md, and run a node on each. The page's first
    command would also build the node; that wheel is there already."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    (block,) = re.findall(r"<!-- run: sh -->\n```sh\n(.*?)```", page, re.DOTALL)
    build, *commands, start = block.splitlines()
    assert " . ./examples" in build and start.startswith("env/bin/metastore --set ")
    folder.mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "wheels").mkdir()
    shutil.copy(wheel, folder / "wheels")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in [build.replace(" . ./", " ./"), *commands]:
        subprocess.run(["sh", "-ec", command], cwd=folder, env=env, check=True)
    python = folder / "env" / "bin" / "python"
    (folder / "lmdb").mkdir()
    use(python, folder / "lmdb", *start.split()[1:])
    (folder / "sqlite").mkdir()
    use(python, folder / "sqlite", "--set", "storage.engine=sqlite")
    subprocess.run([python, "-m", "pip", "install", "-q", "pytest"], check=True)
    # The contract suite, from outside of the tree. tests/once runs that of the other example.
    argv = [python, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "test_lmdb_engine.py"]
    subprocess.run(argv, cwd=folder / "examples" / "lmdb_engine", check=True)


def main() -> int:
    """The steps in order; any failure raises."""
    wheel = repaired(Path(sys.argv[1]), Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
        installed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
        assert "cython" not in installed.lower(), "the wheel needs Cython"
        use(python, folder)
        plugins(wheel, folder / "plugins")
    print(f"{wheel.name}: installed, started, put, got, stopped, with each engine of examples/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
