"""What the tests and the benches share: servers and clients, clusters, wire formats, models, states made by hand."""

from pathlib import Path

#: The checkout, and its tests; no test looks for them from where its own file lies.
ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
