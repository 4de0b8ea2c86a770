"""`python -m tests.sim`: simulations one after the other, for a number of seeds or of hours. See --help."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from .greetings import QUIET
from .runner import PROFILES, SimulationFailed, simulate


def main() -> int:
    """The command line; gives the exit code: 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=0, help="how many seeds; 0: no limit")
    parser.add_argument("--hours", type=float, default=0.0, help="end after this long; 0: no limit")
    parser.add_argument("--profile", action="append", choices=sorted(PROFILES), help="may be given more than once")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    options = parser.parse_args()
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    profiles = options.profile or sorted(PROFILES)
    count = options.count or (0 if options.hours else 100)
    began = said = time.monotonic()
    done = failed = 0
    seed = options.seed
    while (not count or seed < options.seed + count) and not 0 < options.hours * 3600 <= time.monotonic() - began:
        for profile in profiles:
            done += 1
            try:
                report = simulate(seed, profile)
            except SimulationFailed as error:
                failed += 1
                print(f"seed {seed}, profile {profile}: {error}", flush=True)
                if not options.go_on:
                    return 1
                continue
            if options.verbose:
                print(f"{profile} {seed}: trace {report.trace:08x}, {report.events} events", report.counts, flush=True)
        seed += 1
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{done} simulations, {failed} failures, up to seed {seed - 1}", flush=True)
    took = time.monotonic() - began
    print(f"{done} simulations, {failed} failures, {done / took * 60:.0f} a minute")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
