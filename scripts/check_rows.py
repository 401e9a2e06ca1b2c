"""Classify labelled files with the command itself and check what comes out: every row, in order, untouched, and right.

    python scripts/check_rows.py rows.jsonl.gz [more.jsonl.gz ...] --labels labels.txt --gold label

Prints the accuracy and the rows per second. Ends with 1 where a row is missing, moved or changed.
"""

import argparse
import json
import subprocess
import sys
import time

from gliclass_cli.files import open_source


def read(names: list[str]) -> list[dict[str, object]]:
    """Return the rows of JSON Lines files, compressed or not."""
    rows = []
    for name in names:
        with open_source(name) as source:
            rows += [json.loads(line) for line in source.stream]
    return rows


def main() -> int:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--gold", default="label")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "gliclass_cli", "classify", *arguments.inputs, "--labels", arguments.labels, "-q"]
    start = time.monotonic()
    result = subprocess.run(command, capture_output=True, check=True)
    seconds = time.monotonic() - start
    rows, found = read(arguments.inputs), [json.loads(line) for line in result.stdout.splitlines()]
    predictions = [row.pop("prediction") for row in found]
    if found != rows or [list(row) for row in found] != [list(row) for row in rows]:
        print("a row is missing, moved or changed")
        return 1
    right = sum(prediction["label"] == row[arguments.gold] for prediction, row in zip(predictions, rows, strict=True))
    accuracy, rate = right / len(rows), len(rows) / seconds
    print(f"{len(rows):,} rows in order, all fields kept; accuracy {accuracy:.3f}; {rate:.0f} rows/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
