"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_set(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --set TABLE.KEY=VALUE, which may be given more than once. The parsed option `overrides` is a list."""
    parser.add_argument(
        "--set",
        metavar="TABLE.KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help=f"{meaning}; may be given more than once",
    )
