"""Runs that go on after a crash: a journal beside the output tells which run it is, and what of it is safe.

While ``-o FILE`` is made with ``--resume``, ``FILE.resume`` holds, in JSON,

    run              all that the results depend on: model, labels, options, inputs
    rows, input      the rows done, and their digest
    output, rejects  bytes of the parts that hold what these rows gave
    summary, writer  what was counted, and what the writer must know to go on
    complete         once FILE is whole: its digest

It is replaced in one step, after those bytes are on the disk. Wherever a run ends, the next one cuts the parts back to
these bytes, reads the rows done without computing them, and goes on. Compressed files are sequences of members that
end after every ``MEMBER_ROWS`` rows, and only there are they cut: a run that was broken gives the same bytes.
"""

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from gliclass_cli.errors import InputUnusable, Interrupted, OutputFailed, UsageProblem
from gliclass_cli.files import Output, part_of
from gliclass_cli.records import Record

MEMBER_ROWS = 200
# The pause after saving, in times of what saving took: it costs half a percent, however slow the disk is.
_PAUSE = 200
_DIGEST = "sha256:"


@dataclass(frozen=True, slots=True)
class State:
    """What the journal holds; see above."""

    run: Mapping[str, Any]
    rows: int = 0
    input: str = ""
    output: int = 0
    rejects: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)
    writer: Mapping[str, Any] = field(default_factory=dict)
    complete: str | None = None


class Journal:
    """What is safe of a run into ``output``; as a context around the run it saves the last of it, or completes it."""

    def __init__(self, output: str, run: Mapping[str, Any]) -> None:
        """Find what an earlier run left.

        Raises:
            UsageProblem: another run left it, or nothing tells which one.
        """
        self.path = journal_of(output)
        self._part, self._target = part_of(output), Path(output).resolve()
        self._found = _read(self.path)
        self.state = self._taken_up(json.loads(json.dumps(run)))
        self._pending = self.state
        self._input = hashlib.sha256()
        self._rows = self.state.rows
        self._outputs: list[Output] = []
        self._counted: Callable[[], tuple[dict[str, Any], dict[str, Any]]] = lambda: ({"rows": self._rows}, {})
        self._due = 0.0

    def _taken_up(self, run: Mapping[str, Any]) -> State:
        """Return the state to go on from."""
        found, part = self._found, self._part.exists()
        if found is not None and part and not found.rows and not found.complete:
            return State(run)
        if found is not None and (part or (found.complete and self._target.exists())):
            if differing := _differing(found.run, run):
                raise UsageProblem(
                    f"{self.path}: is of another run: {differing}; give the same options to go on with that one, name "
                    f"another -o FILE, or remove {self._there().name} and {self.path.name}"
                )
            return found
        if part and self._part.stat().st_size:
            raise UsageProblem(
                f"{self._part}: was written without --resume, so that no run can go on with it; rename or remove it"
            )
        if self._target.exists():
            raise UsageProblem(
                f"{self._target}: is there, and nothing tells which run wrote it; remove it, name another -o FILE, or "
                "leave --resume out"
            )
        return State(run)

    def is_complete(self, rejects: str | None) -> bool:
        """Tell whether the file is complete; it is given its name where the run ended just before that.

        Raises:
            UsageProblem: the file is not the one that the run wrote.
            OutputFailed: it cannot be renamed.
        """
        if self.state.complete is None:
            return False
        if self._part.exists() and _file_digest(self._part) == self.state.complete:
            for name in filter(None, (rejects, str(self._target))):
                if part_of(name).exists():
                    Output(name, keep=True).commit()
        if not self._target.exists() or _file_digest(self._target) != self.state.complete:
            raise UsageProblem(f"{self._target}: was changed since the run that {self.path.name} tells of; remove both")
        return True

    def begin(
        self, output: Output, rejects: Output | None, counted: Callable[[], tuple[dict[str, Any], dict[str, Any]]]
    ) -> None:
        """Cut the parts back to what is safe, and write on there; ``counted`` returns the summary and writer's state.

        Raises:
            OutputFailed: another run was faster, a part was changed, or the journal cannot be written.
        """
        if _read(self.path) != self._found:
            raise OutputFailed(f"{self._part}: another run was writing it; run again")
        self._outputs = [output] if rejects is None else [output, rejects]
        self._counted = counted
        output.cut(self.state.output)
        if rejects is not None:
            rejects.cut(self.state.rejects)
        if self.state.rows:
            output.wrote = True  # the part belongs to these rows, also where --select took none
        else:
            self._write(self.state)

    def rest(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the rows after those that are done. Raises UsageProblem where these are not what they were."""
        records = iter(records)
        for record in itertools.islice(records, self.state.rows):
            self._digest(record)
        if self.state.rows and self._input.hexdigest() != self.state.input:
            raise UsageProblem(
                f"{self.path}: the input differs: its first {self.state.rows:,} rows are not those that were done; "
                f"bring them back, name another -o FILE, or remove {self._there().name} and {self.path.name}"
            )
        yield from records

    def check_ended(self, records: Iterable[Record]) -> None:
        """Raise UsageProblem where a complete file is not that of all ``records``."""
        if next(self.rest(records), None) is not None:
            raise UsageProblem(
                f"{self.path}: the input differs: it has more than the {self.state.rows:,} rows that were done; remove "
                f"{self._target.name} and {self.path.name} to classify all"
            )

    def passed(self, record: Record) -> None:
        """Take note of a row whose output is written."""
        self._digest(record)
        self._rows += 1
        if self._rows % MEMBER_ROWS == 0 and self._compressed:
            self._mark()

    def pause(self) -> None:
        """Save what is done, where it is time; between windows of rows."""
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Put what is done on the disk. Raises OutputFailed; what was safe stays so."""
        if not self._compressed:
            self._mark()
        if self._pending == self.state:
            return
        start = time.monotonic()
        for output in self._outputs:
            output.sync()
        self._write(self._pending)
        self.state = self._pending
        self._outputs[0].wrote = True
        self._due = time.monotonic() + _PAUSE * (time.monotonic() - start)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._complete()
            return
        with contextlib.suppress(OSError, OutputFailed):  # the first error is the one to tell
            if self._outputs and isinstance(error, InputUnusable | Interrupted):
                self.save()
            if self._outputs and not self._outputs[0].wrote:
                self.path.unlink()

    def _there(self) -> Path:
        """Return the file that holds what is done."""
        return self._part if self._part.exists() else self._target

    @property
    def _compressed(self) -> bool:
        return any(output.compressed for output in self._outputs)

    def _digest(self, record: Record) -> None:
        """Add what of a row shows in the output, or changes it."""
        names = "\0".join(record.fields or ())
        head = f"{record.line}\0{len(record.raw)}\0{names}\0".encode("utf-8", "surrogatepass")
        self._input.update(head + record.raw)

    def _mark(self) -> None:
        """Remember this place, to be saved; not where a row was counted and could not be written."""
        summary, writer = self._counted()
        if summary["rows"] == self._rows:
            output, rejects = (*(output.end_member() for output in self._outputs), 0)[:2]
            self._pending = replace(
                self.state,
                rows=self._rows,
                input=self._input.hexdigest(),
                output=output,
                rejects=rejects,
                summary=summary,
                writer=writer,
            )

    def _complete(self) -> None:
        """Note that all is done: the parts only need their names."""
        for output in self._outputs:
            output.finish()
        self._mark()
        self._write(replace(self._pending, complete=_file_digest(self._part)))

    def _write(self, state: State) -> None:
        output = Output(str(self.path))
        try:
            with output:
                output.write(json.dumps(asdict(state), indent=1).encode() + b"\n")
        except OutputFailed:
            with contextlib.suppress(OSError):
                part_of(str(self.path)).unlink()
            raise


def journal_of(name: str) -> Path:
    """Return where the journal of an output file is."""
    target = Path(name).resolve()
    return target.with_name(target.name + ".resume")


def unfinished(name: str) -> State | None:
    """Return how far a run into this file is that was not finished and can go on. Raises UsageProblem."""
    found = _read(journal_of(name)) if part_of(name).exists() else None
    return None if found is None or found.complete else found


def digest_of(value: Any) -> str:
    """Return a digest of a value in JSON."""
    return _DIGEST + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> State | None:
    """Read a journal, or None where there is none. Raises UsageProblem."""
    try:
        value = json.loads(path.read_bytes())
        state = State(**{item.name: value[item.name] for item in fields(State)})
        if not all(isinstance(number, int) for number in (state.rows, state.output, state.rejects)):
            raise ValueError("not numbers")
        return state
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageProblem(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UsageProblem(f"{path}: is no journal of a run; rename it, or name another -o FILE") from error


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Tell in which fields two runs differ."""
    told = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old != new:
            digests = all(str(value).startswith(_DIGEST) for value in (old, new))
            told.append(
                f"{name} differ{'' if name.endswith('s') else 's'}" if digests else f"{name} was {old}, is {new}"
            )
    return ", ".join(told)


def _file_digest(path: Path) -> str:
    """Return the digest of a file. Raises OutputFailed."""
    try:
        with path.open("rb") as file:
            return _DIGEST + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputFailed(f"{path}: cannot be read: {error.strerror}") from error
