"""The progress bar: on stderr, and only where a person watches it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gliclass_cli.classification import Summary
from gliclass_cli.cli.terminal import is_pipe, is_terminal, width
from gliclass_cli.files import STDIN
from gliclass_cli.records import Record

# Seconds without a bar where the end of a pipe may write to the same screen.
_PIPE_DELAY = 2.0


class Progress:
    """How far the input is read, in bytes where all sizes are known, and rows per second."""

    def __init__(self, names: Sequence[str], *, shown: bool) -> None:
        """Show nothing off a terminal, or where not ``shown``."""
        self._shown = shown and is_terminal(sys.stderr)
        self._sizes = [_size(name) for name in names]
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self._shown:
            from tqdm import tqdm

            total = sum(self._sizes) if all(self._sizes) else None
            bar = "{percentage:3.0f}%|{bar}| " if total else ""
            left = "<{remaining}" if total else ""
            self._bar = tqdm(
                total=total,
                file=sys.stderr,
                leave=False,
                bar_format=bar + "{desc} [{elapsed}" + left + "]",
                delay=_PIPE_DELAY if is_pipe(sys.stdout) else 0,
                ncols=width(sys.stderr),
                nrows=24,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def clear(self) -> None:
        """Take the bar off its line, for a message; it comes back when it next moves."""
        if self._bar is not None:
            self._bar.clear()

    def show(self, summary: Summary, record: Record) -> None:
        """Move the bar to the last row written."""
        if self._bar is None:
            return
        rate = summary.rows / summary.seconds if summary.seconds else 0.0
        self._bar.set_description_str(f"{summary.rows:,} rows, {rate:,.0f} rows/s", refresh=False)
        self._bar.update(record.position - self._bar.n)


def _size(name: str) -> int:
    """Return the size of a file, 0 where it has none: a pipe, standard input."""
    path = Path(name)
    return path.stat().st_size if name != STDIN and path.is_file() else 0
