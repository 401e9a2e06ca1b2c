"""Check the texts of `recipe/texts`: how many, how labels are balanced, and that none is in the tasks that judge.

    python recipe/check_texts.py --dev DIR

A text counts as known if it shares 8 words in a row with a text of a task in DIR (`*.jsonl.gz` with `text`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prepare import TEXTS, read_scheme

_RUN = 8


def main() -> None:
    """Print a line for each file, and what was found in the tasks."""
    options = parse_options()
    known = {}
    for path in sorted(options.dev.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            known |= {run: path.name for line in lines for run in runs(json.loads(line)["text"])}
    total = words = labels = opened = shared = 0
    print(f"{'file':36} {'rows':>5} {'words':>5} {'labels':>6} {'right':>5} {'open':>5}  rarest and commonest label")
    for path in sorted(TEXTS.glob("*/*.txt")):
        scheme = read_scheme(path)
        rows = len(scheme.rows)
        length = sum(len(row.text.split()) for row in scheme.rows)
        counts = Counter(dict.fromkeys(scheme.labels, 0))
        for row in scheme.rows:
            counts.update(row.right)
            for run in runs(row.text):
                if run in known:
                    shared += 1
                    print(f"{path}: shares {run!r} with {known[run]}")
                    break
        own = sum(len(row.own_right) + len(row.own_wrong) for row in scheme.rows)
        (most, many), (least, few) = counts.most_common(1)[0], counts.most_common()[-1]
        print(
            f"{path.parent.name + '/' + path.stem:36} {rows:5} {length / rows:5.0f} {len(scheme.labels):6} "
            f"{counts.total() / rows:5.1f} {own:5}  {least} {few / rows:.1%}, {most} {many / rows:.1%}"
        )
        total, words, labels, opened = total + rows, words + length, labels + len(scheme.labels), opened + own
    print(
        f"{total:,} texts, {words:,} words, {labels:,} labels of axes, {opened:,} of single texts; {shared} share "
        f"{_RUN} words in a row with a task"
    )


def runs(text: str) -> Iterator[str]:
    """Yield all runs of words, in lower case, without punctuation; a short text is one."""
    found = re.findall(r"\w+", text.lower())
    for start in range(max(1, len(found) - _RUN + 1)):
        run = found[start : start + _RUN]
        if len(run) >= 4:
            yield " ".join(run)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    main()
