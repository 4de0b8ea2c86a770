"""The coverage gate: over 80 % of metastore/, and every .pyx in the report.

usage: gate.py coverage.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEAST = 80.0


def main() -> int:
    """Print the result; 0 when the gate is passed."""
    report = json.loads(Path(sys.argv[1]).read_text())
    measured = {str(Path(name)): item["summary"] for name, item in report["files"].items()}
    compiled = sorted(str(path) for path in Path("metastore").rglob("*.pyx"))
    missing = [name for name in compiled if measured.get(name, {}).get("covered_lines", 0) == 0]
    total = report["totals"]["percent_covered"]
    seen = len(compiled) - len(missing)
    print(f"coverage of metastore/: {total:.1f} %, {seen} of {len(compiled)} .pyx files measured")
    if missing:
        print(f"no line measured in: {', '.join(missing)}")
    if total <= LEAST:
        print(f"the gate is {LEAST:.0f} %")
    return int(bool(missing) or total <= LEAST)


if __name__ == "__main__":
    sys.exit(main())
