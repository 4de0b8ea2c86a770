"""Code that the tests and the benches share: servers and clients, clusters, wire formats, models, states made by
hand."""

from pathlib import Path

#: The checkout and its tests. No test derives these paths from the place of its own file.
ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
