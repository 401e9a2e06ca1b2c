"""Turn the public sources and the texts of `recipe/texts` into the files that the bundled model is trained on.

    python recipe/prepare.py --data DIR --output DIR

DIR of `--data` holds `<source>.jsonl.gz` with `text`, `labels` and, where there is one, `avoid`, and
`<source>.labels.txt` with a source's whole label set: README.md says where they come from. The output has a file for
each source. A scheme of `texts` gives one file for each axis, one for all axes together (`_all`), and one for the
labels that belong to single texts (`_open`); its rows bring their candidates, and one of 16 goes to the folder `held`,
to calibrate by. `wordings.json` is for `--label-info`.
Running it twice gives the same files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

TEXTS: Final = Path(__file__).parent / "texts"
Row = dict[str, Any]

# Texts of a source against the labels of others, where none can be right: "none of these" is learnt from them.
_FOREIGN: Final = (
    ("wordnet_lexname_verb_examples", ("debian_section", "clinc_intent", "debtags")),
    ("goemotions", ("debian_section", "debtags", "ha_intents", "clinc_intent")),
    ("clinc_intent", ("debian_section", "debtags", "wordnet_lexname_noun")),
    ("hwu64_intent", ("debian_section", "debtags")),
    ("debian_section", ("clinc_intent", "hwu64_intent", "ha_intents")),
    ("ha_intents", ("debtags", "wordnet_domain")),
)
_FOREIGN_ROWS: Final = 500  # of each source
_FOREIGN_LABELS: Final = 24


def main() -> None:
    """Write all files."""
    options = parse_options()
    if options.output.exists() and any(options.output.iterdir()):
        sys.exit(f"{options.output}: is not empty; name a new folder")
    (options.output / "held").mkdir(parents=True, exist_ok=True)
    pools = {path.name.removesuffix(".labels.txt"): _lines(path) for path in options.data.glob("*.labels.txt")}
    names = sorted(path.name.removesuffix(".jsonl.gz") for path in options.data.glob("*.jsonl.gz"))
    if not names:
        sys.exit(f"{options.data}: holds no *.jsonl.gz")
    missing = ({name for name, _ in _FOREIGN} - set(names)) | (
        {name for _, others in _FOREIGN for name in others} - set(pools)
    )
    if missing:
        sys.exit(f"{options.data}: lacks {', '.join(sorted(missing))} (<source>.jsonl.gz, <source>.labels.txt)")
    for name in names:
        rows = list(_rows(options.data / f"{name}.jsonl.gz"))
        if any(not row["labels"] for row in rows):
            rows = [row | {"all_labels": pools[name]} for row in rows]
        write(options.output / f"{name}.jsonl.gz", rows)
    write(options.output / "foreign.jsonl.gz", list(foreign_rows(options.data, pools)))
    wordings: dict[str, list[Sequence[str]]] = {label: [()] for pool in pools.values() for label in pool}
    for path in sorted(TEXTS.glob("*/*.txt")):
        scheme = read_scheme(path)
        name = f"own_{path.parent.name}_{path.stem}"
        views = {f"{name}_all": list(scheme.closed_rows(scheme.labels)), f"{name}_open": list(scheme.open_rows())}
        for axis, labels in scheme.axes.items():
            views[f"{name}.{axis.replace(' ', '_')}"] = list(scheme.closed_rows(labels))
        for view, rows in views.items():
            for folder, kept in ((options.output, False), (options.output / "held", True)):
                chosen = [row for row in rows if is_held(row["text"]) is kept]
                if chosen:
                    write(folder / f"{view}.jsonl.gz", chosen)
        for label, others in scheme.wordings.items():
            wordings.setdefault(label, []).append(others)
    info = {label: {"synonyms": kept} for label, lists in sorted(wordings.items()) if (kept := agreed(label, lists))}
    (options.output / "wordings.json").write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", "utf-8")


def agreed(label: str, lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the other wordings of a label, which may stand in several files: those that do not depend on the file."""
    if label.startswith("other"):  # what it means depends on its siblings
        return []
    counts = Counter(other for others in lists for other in dict.fromkeys(others))
    return [other for other, count in counts.items() if count > 1 or len(lists) == 1]


def is_held(text: str) -> bool:
    """Tell whether a text is held back from training: one of 16."""
    return zlib.crc32(text.encode()) % 16 == 0


@dataclass
class Scheme:
    """A file of `texts`: axes of labels, other wordings of each, and rows."""

    axes: dict[str, list[str]] = field(default_factory=dict)
    wordings: dict[str, list[str]] = field(default_factory=dict)
    rows: list[SchemeRow] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The labels of all axes."""
        return list(dict.fromkeys(label for axis in self.axes.values() for label in axis))

    def closed_rows(self, labels: Sequence[str]) -> Iterator[Row]:
        """Yield rows with some labels as candidates, but for those that one may argue about."""
        for row in self.rows:
            candidates = [label for label in labels if label not in row.unsure]
            right = [label for label in row.right if label in candidates]
            if len(candidates) > 1:
                yield {"text": row.text, "labels": right, "all_labels": candidates}

    def open_rows(self) -> Iterator[Row]:
        """Yield the rows that have labels of their own, with these and two right labels of axes as candidates."""
        for row in self.rows:
            if row.own_right or row.own_wrong:
                right = list(dict.fromkeys((*row.own_right, *row.right[:2])))
                wrong = [label for label in row.own_wrong if label not in right]
                yield {"text": row.text, "labels": right, "all_labels": right + wrong}


@dataclass(frozen=True)
class SchemeRow:
    """A text; `own_*` are labels that belong to it alone."""

    text: str
    right: Sequence[str]
    unsure: Sequence[str]
    own_right: Sequence[str]
    own_wrong: Sequence[str]


def read_scheme(path: Path) -> Scheme:
    """Read a file of `texts`.

        @axis sentiment
        positive = good review, praise          a label, and other wordings of it
        negative = bad review, criticism
        @rows
        positive | It lasts two days. || +long battery life; -slow charging
        ?negative | Fine, if you only photograph things that sit still.

    Before ` | ` stand the right labels of all axes; every other label is wrong, but for those with a `?`, which one may
    argue about. Behind ` || ` stand labels of this text alone, right (+) and wrong (-). `\\n` is a line break.

    Raises:
        ValueError: a line that is not like that; says file and line.
    """
    scheme = Scheme()
    axis: list[str] | None = None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        where = f"{path}:{number}"
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("@axis "):
            axis = scheme.axes.setdefault(line.removeprefix("@axis ").strip(), [])
        elif line.strip() == "@rows":
            axis = None
        elif axis is not None:
            label, _, others = (part.strip() for part in line.partition("="))
            axis.append(label)
            known = scheme.wordings.setdefault(label, [])
            known += [other.strip() for other in others.split(",") if other.strip() not in ("", label, *known)]
        else:
            scheme.rows.append(_scheme_row(line, scheme.wordings, where))
    return scheme


def _scheme_row(line: str, labels: Mapping[str, Sequence[str]], where: str) -> SchemeRow:
    head, found, rest = line.partition(" | ")
    if not found:
        raise ValueError(f"{where}: ' | ' belongs between labels and text")
    text, _, own = rest.partition(" || ")
    named = _parts(head)
    unknown = [name for name in named if name.removeprefix("?") not in labels]
    if unknown:
        raise ValueError(f"{where}: no such label: {unknown[0]!r}")
    signs = _parts(own)
    if any(sign[0] not in "+-" for sign in signs):
        raise ValueError(f"{where}: a label of the text's own begins with + or -")
    right, wrong = ([sign[1:].strip() for sign in signs if sign[0] == kind] for kind in "+-")
    return SchemeRow(
        text=text.strip().replace("\\n", "\n"),
        right=list(dict.fromkeys(name for name in named if not name.startswith("?"))),
        unsure=[name[1:] for name in named if name.startswith("?")],
        own_right=[label for label in right if label not in wrong],
        own_wrong=[label for label in wrong if label not in right],
    )


def foreign_rows(data: Path, pools: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """Yield texts with labels of other sources, none of them right: no label shares a word with its text."""
    for source, others in _FOREIGN:
        draw = random.Random(f"foreign {source}")
        rows = list(_rows(data / f"{source}.jsonl.gz"))
        for row in draw.sample(rows, min(_FOREIGN_ROWS, len(rows))):
            words = set(re.findall(r"\w+", row["text"].lower()))
            pool = [label for label in pools[draw.choice(others)] if not words & set(label.lower().split())]
            labels = draw.sample(pool, min(_FOREIGN_LABELS, len(pool)))
            yield {"text": row["text"], "labels": [], "all_labels": labels}


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, compressed, without a time stamp."""
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    print(f"{path.name}: {len(rows):,} rows")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line]


def _rows(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    main()
