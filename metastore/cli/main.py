"""The command line reads the file, builds the configuration, runs a node, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from metastore import __version__, _source, logs
from metastore.cli.options import add_set
from metastore.config import Config, misspelt_variables
from metastore.errors import EXIT_CODES, ConfigError, MetaStoreError, Stopped, UnsupportedPlatform, reason
from metastore.member.memory_limit import settle_malloc
from metastore.member.signals import WOKEN, Signals
from metastore.settings import IN_MEMORY

log = logging.getLogger("metastore.cli")

#: First word -> module whose `main(arguments)` gives the exit code.
COMMANDS = {"cluster": "metastore.cli.cluster", "snapshot": "metastore.cli.snapshot", "wal": "metastore.cli.wal"}
#: The top-level modules of the packages that pyproject.toml lists as dependencies.
DEPENDENCIES: Final = (
    "google.protobuf", "httptools", "numpy", "prometheus_client", "rich", "rocksdict", "snappy", "tomli", "zstandard",
)  # fmt: skip
#: Seconds in which a second signal to stop counts as the first one again: `timeout` signals a process and then its
#: group.
SAME_SIGNAL: Final = 0.5


class Runnable(Protocol):
    """The command line needs these parts of `metastore.embedded.node.Node`."""

    @property
    def told(self) -> bool:
        """Whether the failure that stopped it is in the log already."""

    @property
    def gave_up(self) -> bool:
        """Whether `stop` left it waiting for its disk."""

    def start(self) -> None:
        """Open the data, bind the addresses, serve. Raises MetaStoreError."""

    def wait(self) -> object:
        """Block until the node has stopped; raises the MetaStoreError that stopped it, if one did."""

    def stop(self) -> None:
        """Drain and stop; callable from any thread, and more than once."""


def parser() -> argparse.ArgumentParser:
    """The options of the program."""
    codes = "".join(f"\n  {code}  {meaning}" for code, meaning in EXIT_CODES.items())
    arg_parser = argparse.ArgumentParser(
        prog="metastore",
        usage="metastore [options]                     run a node"
        "\n       metastore cluster [--nodes N] [options]  run a cluster on this machine, for trying out"
        "\n       metastore snapshot status|verify|restore FILE [options]"
        "\n       metastore wal dump|verify DIR [options]",
        description="A replicated, strongly consistent metadata store that speaks the etcd v3 API.",
        epilog="Environment variables METASTORE_<TABLE>__<KEY> override the file, --set overrides both."
        "\n\n`metastore snapshot` looks at backups, checks and restores them, `metastore wal` shows and checks the log;"
        "\nsee the --help of each."
        f"\n\nexit codes:{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arg_parser.add_argument("--conf", metavar="FILE", help="configuration file (TOML); without it, the defaults")
    add_set(arg_parser, "set one key, such as raft.batch_max_time=5ms")
    arg_parser.add_argument("--log-level", choices=sorted(logs.LEVELS), help="the same as --set log.level=...")
    arg_parser.add_argument("--log-json", action="store_true", help="the same as --set log.json=true")
    arg_parser.add_argument("--version", action="store_true", help="print the version and what the build is, and exit")
    return arg_parser


def version() -> str:
    """One line: the version, Python, and the build."""
    parts = [f"metastore {__version__}", f"Python {sys.version.split()[0]}"]
    if _source.compiled():
        from metastore._core import build_info

        info = build_info()
        parts.append(f"{info['flavour']} build, {info['compiler']}, Cython {info['cython']}")
        parts.append(f"nghttp2 {info['nghttp2']}")
    else:
        parts.append("compiled modules missing")
    return ", ".join(parts)


def is_installed(name: str) -> bool:
    """Whether there is a module of this name. Nothing but its parents is imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False  # its parent is not there


def check_platform() -> None:
    """Raise UnsupportedPlatform unless this is Linux with the compiled modules and the packages that we need."""
    if sys.platform != "linux":
        raise UnsupportedPlatform("metastore runs on Linux only.")
    if not _source.compiled():
        raise UnsupportedPlatform(
            "the compiled modules of metastore are missing for this Python: run ./dev run in the source folder, "
            "or install the package with pip."
        )
    missing = [name for name in DEPENDENCIES if not is_installed(name)]
    if missing:
        raise UnsupportedPlatform(
            f"{sys.executable} lacks {', '.join(missing)}, which metastore needs: run .venv/bin/metastore, whose .venv "
            "./dev run makes, or install the package with pip."
        )


def load_config(options: argparse.Namespace) -> Config:
    """Build the configuration from file, environment and flags. Raises ConfigError."""
    text = ""
    if options.conf is not None:
        try:
            with open(options.conf, encoding="utf-8") as file:
                text = file.read()
        except OSError as error:
            raise ConfigError(f"{options.conf}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{options.conf}: not valid TOML: no UTF-8 at byte {error.start}") from None
    overrides = list(options.overrides)
    if options.log_level:
        overrides.append(f"log.level={options.log_level}")
    if options.log_json:
        overrides.append("log.json=true")
    return Config.load(text, options.conf or "defaults", os.environ, overrides)


def announce(config: Config, conf: str | None) -> None:
    """Log what is about to run, and which variables look as if they were meant for it."""
    data_dir = config.node.data_dir
    log.info(
        "metastore %s starts: name=%s data_dir=%s engine=%s configuration=%s", __version__, config.node.name,
        data_dir if data_dir == IN_MEMORY else os.path.abspath(data_dir), config.storage.engine,
        "defaults" if conf is None else conf,
    )  # fmt: skip
    for variable, setting in misspelt_variables(os.environ).items():
        log.warning("the environment variable %s means nothing; %s sets that key", variable, setting)


def make_node(config: Config) -> Runnable:
    """Make the node. Its module is imported late, so --help and a bad configuration answer at once."""
    from metastore.embedded.node import Node

    node: Runnable = Node(config)
    return node


class Run:
    """One run of a node: the node runs in a thread of its own, and the main thread handles the signals."""

    def __init__(self, node: Runnable) -> None:
        self.node = node
        self.failure: BaseException | None = None
        self.stop_asked: float | None = None  # when the first signal to stop came
        self.output = logs.ErrorFile()
        self._over = False

    def _serve(self, signals: Signals) -> None:
        try:
            # The modules stay, and so do the objects made for the start. Without this, a full collection looks at all
            # of them again, and the loop's turn in which one falls took 20 to 40 ms. The start has turns, too: it
            # applies what the engine lacks.
            gc.freeze()
            self.node.start()
            gc.freeze()
            self.node.wait()
        except BaseException as failure:  # noqa: BLE001 - carried to the main thread, whatever it is
            self.failure = failure
        finally:
            self.node.stop()
            self._over = True
            signals.wake()

    def until_over(self) -> None:
        """Serve until a signal, or until the node fails. Raises what made the node fail."""
        # A closed terminal ends the program that runs in it; elsewhere SIGHUP is for the log.
        hangup_stops = os.isatty(2) and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        stops = {signal.SIGTERM, signal.SIGINT} | ({signal.SIGHUP} if hangup_stops else set())
        with Signals((*stops, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)) as signals:
            serving = threading.Thread(target=self._serve, args=(signals,), name="node", daemon=True)
            serving.start()
            while not self._over:
                for number in signals.wait():
                    if number in stops:
                        self._stop(signal.Signals(number))
                    elif number != WOKEN:
                        self._told(signal.Signals(number))
            serving.join()
            # The interpreter takes a while to end, and no late signal may change its exit code.
            signals.ignore_afterwards()
        # A node that was stopped before it was started reports that. This is what was asked for.
        if self.failure is not None and not (self.stop_asked is not None and isinstance(self.failure, Stopped)):
            if isinstance(self.failure, MetaStoreError) or not self.node.told:
                raise self.failure
            # The log already has it with its traceback.
            outcome = MetaStoreError(reason(self.failure))
            outcome.told = True
            raise outcome from self.failure
        if self.node.gave_up:
            # Work that still waits for the disk must not be awaited at the end of the interpreter either.
            log.info("stopped")
            logging.shutdown()
            os._exit(0)

    def _stop(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.stop_asked is None:
            self.stop_asked = now
            log.info("stopping on %s", number.name)
            # The stop runs in a thread of its own, because a second signal must be heard meanwhile.
            threading.Thread(target=self.node.stop, name="stop", daemon=True).start()
        elif now - self.stop_asked >= SAME_SIGNAL:
            # A second signal says that the stop takes too long. Everything acknowledged is on disk already.
            os.write(2, f"metastore: second {number.name}: exit without draining\n".encode())
            os._exit(128 + number)

    def _told(self, number: signal.Signals) -> None:
        if number != signal.SIGHUP:
            log.info("%s means nothing to this program", number.name)
        elif not self.output.path:
            log.info("SIGHUP: standard error is no file, so there is no log to open again")
        else:
            try:
                self.output.reopen()
            except OSError as error:
                log.error("SIGHUP: %s: cannot be opened again: %s", self.output.path, error.strerror)
            else:
                log.info("SIGHUP: the log goes to a newly opened %s", self.output.path)


def run(config: Config, make: Callable[[Config], Runnable] = make_node) -> None:
    """Run a node until SIGTERM or SIGINT, or until it fails. For the main thread. Raises MetaStoreError."""
    Run(make(config)).until_over()
    log.info("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code (see `metastore.errors.EXIT_CODES`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = False
    try:
        if words and words[0] in COMMANDS:
            check_platform()
            command: Callable[[Sequence[str]], int] = importlib.import_module(COMMANDS[words[0]]).main
            return command(words[1:])
        options = parser().parse_args(words)
        if options.version:
            print(version())
            return 0
        check_platform()
        settle_malloc()
        config = load_config(options)
        logs.setup(config.log.level, config.log.json)
        as_json = config.log.json
        announce(config, options.conf)
        run(config)
    except MetaStoreError as error:
        if error.told:
            pass
        elif as_json:
            log.critical("%s", error.text)
        else:
            print(f"metastore: {' '.join(error.text.split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        # A node handles SIGINT itself. This is Ctrl-C in one of the tools, whose work can be begun again.
        print("metastore: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
