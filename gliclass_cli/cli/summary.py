"""What a run answered, counted by label: the table of ``classify --summary``."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from gliclass_cli.cells import cells, fit
from gliclass_cli.cli.terminal import can_show, styled, tell, width

if TYPE_CHECKING:
    from gliclass_cli.labels import LabelSet
    from gliclass_cli.predictions import Prediction

_MOST_LINES = 30
# Rows may bring labels of their own, without end.
_MOST_LABELS = 100_000
_WIDEST_BAR = 40


class LabelCounts:
    """Counts the labels of a run; with several labels a row the shares add up to more than 100 %."""

    def __init__(self, labels: "LabelSet | None") -> None:
        self._counts: Counter[str] = Counter(dict.fromkeys(labels.names, 0) if labels else {})
        self._rest = 0
        self._none = 0
        self._errors = 0
        self._rows = 0

    def count(self, prediction: "Prediction") -> None:
        """Count the labels of a row."""
        self._rows += 1
        self._none += not prediction.labels
        for label in prediction.labels:
            if label in self._counts or len(self._counts) < _MOST_LABELS:
                self._counts[label] += 1
            else:
                self._rest += 1

    def count_error(self) -> None:
        """Count a row that has no answer."""
        self._rows += 1
        self._errors += 1

    def tell(self) -> None:
        """Write a line for each label to stderr, the most frequent first, with a bar."""
        tell("".join(f"{line.rstrip()}\n" for line in self._lines(sys.stderr)))

    def _lines(self, out: TextIO) -> list[str]:
        from gliclass_cli.writers import printable

        ranked = [(printable(name), count) for name, count in self._counts.most_common()]
        hidden = ranked[_MOST_LINES:]
        rows = [(name, count, "green") for name, count in ranked[:_MOST_LINES]]
        others = sum(count for _, count in hidden) + self._rest
        rows += [(f"({len(hidden):,} more labels)", others, "dim")] if hidden else []
        rows += [
            (name, count, "dim") for name, count in (("(no label)", self._none), ("(error)", self._errors)) if count
        ]
        columns = width(out)
        longest = min(max((cells(name) for name, _, _ in rows), default=0), max(10, columns // 3))
        digits = max((len(f"{count:,}") for _, count, _ in rows), default=1)
        most = max((count for _, count, _ in rows), default=0) or 1
        room = max(1, min(_WIDEST_BAR, columns - longest - digits - 13))
        bar, more = ("━", "…") if can_show("━…", out) else ("=", "...")
        return [
            f"  {fit(name, longest, mark=more)}  {count:>{digits},}  {count / max(1, self._rows):6.1%}  "
            + styled(bar * round(count / most * room), style, out)
            for name, count, style in rows
        ]
