"""Runs that go on: killed at any moment, with any format, they end with the file of an unbroken run."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from typer.testing import CliRunner

from gliclass_cli import resume
from gliclass_cli.classification import Inputs, Sample, Settings, Summary, asked_for, classify_rows
from gliclass_cli.classifier import Classifier, Query
from gliclass_cli.cli.app import app
from gliclass_cli.errors import InputUnusable, Interrupted, OutputFailed, UsageProblem
from gliclass_cli.files import Output, open_source
from gliclass_cli.labels import make_labels
from gliclass_cli.model_folder import model_digest, read_model_folder
from gliclass_cli.predictions import Prediction
from gliclass_cli.readers import ReadOptions
from gliclass_cli.records import Record
from gliclass_cli.resume import Journal, journal_of, unfinished
from gliclass_cli.writers import CsvWriter, JsonlWriter, LabelWriter, ReviewWriter, SelectWriter, Writer

EXAMPLES = Path(__file__).parents[1] / "examples"
MEMBER = 7  # rows of a member here: many ends in a short file


@pytest.fixture(autouse=True)
def short_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "MEMBER_ROWS", MEMBER)
    monkeypatch.setattr(resume, "_PAUSE", 0)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a kill does not lose what the system holds


class Model:
    """Stands for a classifier: an answer for each text, in windows of any size."""

    def __init__(self, seed: int = 0) -> None:
        self._chance = random.Random(seed)

    def stream(
        self, queries: Iterable[Query[Record]], choice: Any, options: Any, stop: threading.Event
    ) -> Iterator[Any]:
        queries = iter(queries)
        while window := [
            (query, None if query.text is None else answer(query.text))
            for query in itertools.islice(queries, self._chance.randint(1, 12))
        ]:
            yield window
            if stop.is_set():
                return


def answer(text: str) -> Prediction:
    label = "late" if len(text) % 3 else "paid"
    return Prediction(label, 0.75, (label,), {"late": 0.25, "paid": 0.75}, uncertain=len(text) % 2 == 0)


def classify(
    folder: Path,
    output: str,
    *names: str,
    writer: Callable[[Inputs], Writer] = lambda inputs: JsonlWriter(with_source=len(inputs.names) > 1),
    rejects: str | None = None,
    seed: int = 0,
    run: dict[str, Any] | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> Summary | None:
    """Do what ``gliclass classify --resume`` does, without a model; None where all is done already."""
    asked = Settings(labels=make_labels(["late", "paid"]), **settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        inputs = Inputs(names, ReadOptions())
        journal = Journal(output, {"labels": "late, paid", **(run or {})})
        if journal.is_complete(rejects):
            journal.check_ended(asked_for(inputs, asked))
            return None
        opened = stack.enter_context(Output(output, keep=True))
        rejected = stack.enter_context(Output(rejects, keep=True)) if rejects else None
        stack.enter_context(journal)
        model = cast(Classifier, Model(seed))
        return classify_rows(inputs, model, writer, opened, asked, rejects=rejected, stop=stop, journal=journal)


def write_jsonl(path: Path, rows: int, first: int = 0) -> None:
    lines = [json.dumps({"id": n, "text": f"order {n} " + "late " * (n % 5)}) for n in range(first, first + rows)]
    lines[3::10] = [f"{{bad {n}" for n in range(len(lines[3::10]))]
    path.write_text("\n".join(lines) + "\n")


def write_csv(path: Path, rows: int) -> None:
    cells = [f'{n},"order\n{n}, ""late"""\n' if n % 3 else f"{n}\n" for n in range(rows)]
    path.write_text("id,text\n" + "".join(cells))


def snapshots(folder: Path, kept: Path, run: Callable[[], object]) -> list[Path]:
    """Copy the folder as it is on the disk before and after each step that matters: as a kill there would leave it."""
    found: list[Path] = []
    seen: list[object] = []

    def stepped(step: Callable[..., Any]) -> Callable[..., Any]:
        def after(*arguments: Any, **options: Any) -> Any:
            take()
            result = step(*arguments, **options)
            take()
            return result

        return after

    def take() -> None:
        content = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
        if content not in seen:
            seen.append(content)
            found.append(kept / str(len(found)))
            shutil.copytree(folder, found[-1])

    with mock.patch("os.fsync", stepped(os.fsync)), mock.patch("pathlib.Path.replace", stepped(Path.replace)):
        run()
    return found


CASES: dict[str, dict[str, Any]] = {
    "jsonl": {"output": "out.jsonl"},
    "gz": {"output": "out.jsonl.gz", "rejects": "bad.jsonl"},
    "bz2": {"output": "out.jsonl.bz2"},
    "xz": {"output": "out.jsonl.xz"},
    "zst": {"output": "out.jsonl.zst", "rejects": "bad.gz"},
    "csv of jsonl": {"output": "out.csv", "writer": lambda inputs: CsvWriter(columns=inputs.columns)},
    "csv of csv": {"output": "out.csv", "writer": lambda inputs: CsvWriter(columns=inputs.columns), "csv": True},
    "tsv, rejects": {
        "output": "out.tsv.zst",
        "writer": lambda inputs: CsvWriter(columns=inputs.columns, delimiter="\t"),
        "rejects": "bad.csv",
        "csv": True,
    },
    "label": {"output": "out.txt", "writer": lambda inputs: LabelWriter()},
    "select": {"output": "o.csv", "writer": lambda inputs: SelectWriter(frozenset(["late"]), inputs.header_raw), "csv": True},
    "select none": {"output": "o.gz", "writer": lambda inputs: SelectWriter(frozenset(["x"]), inputs.header_raw)},
    "skip bad rows": {"output": "out.jsonl.gz", "on_error": "skip", "rejects": "bad"},
    "skip and limit": {"output": "out.jsonl.zst", "skip": 5, "limit": 32},
    "sample": {"output": "out.jsonl", "sample": Sample(20, 3), "rejects": "bad"},
    "review": {"output": "out.csv", "writer": lambda inputs: ReviewWriter(CsvWriter(columns=inputs.columns))},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_any_step_ends_with_the_same_file(case: str, tmp_path: Path) -> None:
    given = dict(CASES[case])
    folder = tmp_path / "run"
    folder.mkdir()
    if given.pop("csv", False):
        names = ["a.csv"]
        write_csv(folder / "a.csv", 40)
    else:
        names = ["a.jsonl", "b.jsonl"]
        write_jsonl(folder / "a.jsonl", 30)
        write_jsonl(folder / "b.jsonl", 25, 30)
    output, rejects = given.pop("output"), given.get("rejects")
    found = snapshots(folder, tmp_path, lambda: classify(folder, output, *names, **given))
    expected = {name: (folder / name).read_bytes() for name in filter(None, (output, rejects))}
    journals = set()
    for number, left in enumerate(found):
        state = unfinished(str(left / output))
        journals.add(state.rows if state else None)
        # Half a row, or half a member, that came behind what is safe.
        if (part := left / f"{output}.part").exists() and number % 2 and state:
            part.write_bytes(part.read_bytes() + b'{"half": "a row')
        classify(left, output, *names, seed=number, **given)
        assert {name: (left / name).read_bytes() for name in expected} == expected
        assert sorted(path.name for path in left.iterdir()) == sorted([*names, *expected, f"{output}.resume"])
    assert len(journals) > 4


def test_the_compressed_file_is_read_as_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 40)
    classify(tmp_path, "out.jsonl", "a.jsonl")
    for ending in (".gz", ".bz2", ".xz", ".zst"):
        classify(tmp_path, f"out.jsonl{ending}", "a.jsonl")
        with open_source(str(tmp_path / f"out.jsonl{ending}")) as source:
            assert source.stream.read() == (tmp_path / "out.jsonl").read_bytes()


def interrupted(folder: Path, output: str, *names: str, **given: Any) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        classify(folder, output, *names, stop=stop, **given)


def test_an_interrupted_run_goes_on_and_a_finished_one_is_finished(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 100)
    classify(tmp_path, "whole.jsonl", "a.jsonl")
    turns = 0
    for turns in range(1, 101):
        before = unfinished(str(tmp_path / "out.jsonl"))
        if before and before.rows >= 90:
            break
        interrupted(tmp_path, "out.jsonl", "a.jsonl", seed=turns)
        after = unfinished(str(tmp_path / "out.jsonl"))
        assert after and after.rows > (before.rows if before else 0)  # all that was done is safe, not only members
    assert turns > 5
    summary = classify(tmp_path, "out.jsonl", "a.jsonl")
    assert summary and (summary.rows, summary.errors) == (100, 10)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert classify(tmp_path, "out.jsonl", "a.jsonl") is None


def test_a_stop_at_a_bad_row_goes_on_when_the_row_is_mended(tmp_path: Path) -> None:
    good = '{"text":"a"}\n' * 30
    (tmp_path / "in.jsonl").write_text(good + "{bad\n" + good)
    with pytest.raises(InputUnusable, match=r"in\.jsonl:31"):
        classify(tmp_path, "out.jsonl", "in.jsonl", on_error="stop")
    state = unfinished(str(tmp_path / "out.jsonl"))
    assert state and state.rows == 30
    (tmp_path / "in.jsonl").write_text(good + '{"text":"b"}\n' + good)
    assert classify(tmp_path, "out.jsonl", "in.jsonl", on_error="stop")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 61


def test_a_file_that_cannot_be_read_in_the_middle_of_a_list(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl"):
        write_jsonl(tmp_path / name, 20)
    plain = (tmp_path / "b.jsonl.gz").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b damaged")
    names = ("a.jsonl", "b.jsonl.gz", "c.jsonl")
    with pytest.raises(InputUnusable, match=r"b\.jsonl\.gz: the compressed data is damaged"):
        classify(tmp_path, "out.jsonl.gz", *names)
    state = unfinished(str(tmp_path / "out.jsonl.gz"))
    assert state and state.rows == 2 * MEMBER
    (tmp_path / "b.jsonl.gz").write_bytes(plain)  # mended: nothing of it was done
    classify(tmp_path, "out.jsonl.gz", *names)
    classify(tmp_path, "whole.jsonl.gz", *names)
    assert (tmp_path / "out.jsonl.gz").read_bytes() == (tmp_path / "whole.jsonl.gz").read_bytes()


def test_the_first_row_alone_may_ask_for_the_text_field(tmp_path: Path) -> None:
    rows = ['{"text":"a"}'] * 20 + ['{"subject":"a","body":"b"}'] + ['{"text":"a"}'] * 3
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    stop = threading.Event()
    stop.set()
    with mock.patch.object(random.Random, "randint", return_value=20):
        interrupted(tmp_path, "out.jsonl", "in.jsonl")
    summary = classify(tmp_path, "out.jsonl", "in.jsonl")  # a bad row, not an end
    assert summary and (summary.rows, summary.errors) == (24, 1)


# --- what is not the same run ---------------------------------------------------------------------------------------


def test_another_run_is_refused_and_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 30)
    interrupted(tmp_path, "out.jsonl", "a.jsonl", seed=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageProblem, match=r"out\.jsonl\.resume: is of another run: labels was late, paid, is late;"):
        classify(tmp_path, "out.jsonl", "a.jsonl", run={"labels": "late"})
    with pytest.raises(UsageProblem, match=r"--threshold was None, is 0\.5"):
        classify(tmp_path, "out.jsonl", "a.jsonl", run={"--threshold": 0.5})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", ["a row", "fewer rows", "a blank line"])
def test_another_input_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, 30)
    interrupted(tmp_path, "out.jsonl", "a.jsonl", seed=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {
        "a row": path.read_bytes().replace(b"order 0", b"order x"),
        "fewer rows": b"\n".join(path.read_bytes().splitlines()[:1]),
        "a blank line": b"\n" + path.read_bytes(),  # the line numbers of bad rows change
    }[change]
    path.write_bytes(changed)
    with pytest.raises(UsageProblem, match=r"the input differs: its first \d+ rows are not those that were done"):
        classify(tmp_path, "out.jsonl", "a.jsonl")
    path.write_bytes(before["a.jsonl"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_input_that_grew_is_read_to_its_end(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 30)
    interrupted(tmp_path, "out.jsonl", "a.jsonl", seed=3)
    write_jsonl(tmp_path / "a.jsonl", 50)
    classify(tmp_path, "out.jsonl", "a.jsonl")
    classify(tmp_path, "whole.jsonl", "a.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    write_jsonl(tmp_path / "a.jsonl", 51)
    with pytest.raises(UsageProblem, match=r"it has more than the 50 rows that were done; remove out\.jsonl and"):
        classify(tmp_path, "out.jsonl", "a.jsonl")


def test_a_complete_file_that_was_changed_or_whose_journal_is_gone_is_not_touched(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 30)
    out = tmp_path / "out.jsonl"
    classify(tmp_path, out.name, "a.jsonl")
    out.write_text("mine\n")
    with pytest.raises(UsageProblem, match=r"out\.jsonl: was changed since"):
        classify(tmp_path, out.name, "a.jsonl")
    journal_of(str(out)).unlink()
    with pytest.raises(UsageProblem, match="is there, and nothing tells which run wrote it"):
        classify(tmp_path, out.name, "a.jsonl")
    assert out.read_text() == "mine\n"
    out.unlink()
    assert classify(tmp_path, out.name, "a.jsonl")
    out.unlink()  # taken away: made again
    assert classify(tmp_path, out.name, "a.jsonl")


def test_parts_of_other_runs_and_parts_that_were_changed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 30)
    part = tmp_path / "out.jsonl.part"
    part.write_text("rows of a run without --resume\n")
    with pytest.raises(UsageProblem, match=r"out\.jsonl\.part: was written without --resume"):
        classify(tmp_path, "out.jsonl", "a.jsonl")
    part.unlink()
    interrupted(tmp_path, "out.jsonl", "a.jsonl", seed=3)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(OutputFailed, match=r"out\.jsonl\.part: holds [\d,]+ bytes, and held [\d,]+"):
        classify(tmp_path, "out.jsonl", "a.jsonl")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": {}}', b'{"rows": "x"}', b"\xff"])
def test_a_journal_that_is_none_is_told(content: bytes, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 5)
    (tmp_path / "out.jsonl.resume").write_bytes(content)
    with pytest.raises(UsageProblem, match=r"out\.jsonl\.resume: is no journal of a run"):
        classify(tmp_path, "out.jsonl", "a.jsonl")


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"subject":"a","body":"b"}\n')
    with pytest.raises(UsageProblem):
        classify(tmp_path, "out.jsonl", "in.jsonl", rejects="bad")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 30)
    out = str(tmp_path / "out.jsonl")
    with contextlib.suppress(Interrupted), Output(out, keep=True) as first, Journal(out, {"n": 1}) as journal:
        journal.begin(first, None, lambda: ({"rows": 0}, {}))
        with pytest.raises(OutputFailed, match="another run is writing it"):
            classify(tmp_path, "out.jsonl", "a.jsonl", run={"n": 1})
        raise Interrupted
    late = Journal(out, {"labels": "late, paid"})
    assert classify(tmp_path, "out.jsonl", "a.jsonl")
    with Output(out, keep=True) as second, pytest.raises(OutputFailed, match="another run was writing it"):
        late.begin(second, None, lambda: ({"rows": 0}, {}))


# --- the command itself ---------------------------------------------------------------------------------------------

LABELS = ("-l", "billing", "-l", "shipping")


def command(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    program = [sys.executable, "-m", "gliclass_cli", "classify", *LABELS, "--max-length", "16", *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False, **options)


def start(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-m", "gliclass_cli", "classify", *LABELS, "--max-length", "16", *arguments]
    return subprocess.Popen(program, stderr=subprocess.PIPE, **options)


def wait_for_rows(process: "subprocess.Popen[bytes]", out: Path, least: int) -> None:
    """Wait until so many rows are safe, or the run ended."""
    while process.poll() is None:
        state = unfinished(str(out))
        if state and state.rows >= least:
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an input, and of what an unbroken run makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    write_jsonl(folder / "in.jsonl", 800)
    result = command("in.jsonl", "-o", "out.jsonl.zst", "--rejects", "bad.jsonl", "--resume", "-q", cwd=folder)
    assert result.returncode == 5
    return folder


def test_killed_twice_the_command_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / "in.jsonl", tmp_path)
    arguments = ("in.jsonl", "-o", "out.jsonl.zst", "--rejects", "bad.jsonl", "--resume")
    out, least, killed = tmp_path / "out.jsonl.zst", 0, 0
    for _ in range(2):
        with start(*arguments, cwd=tmp_path) as process:
            wait_for_rows(process, out, least + 1)
            process.kill()
        state = unfinished(str(out))
        killed += process.returncode == -signal.SIGKILL
        least = state.rows if state else 0
    result = command(*arguments, cwd=tmp_path)
    assert killed == 2
    assert result.returncode == 5
    assert f"out.jsonl.zst.part: holds {least:,} rows; going on" in result.stderr
    assert "800 rows, 80 with errors" in result.stderr
    for name in ("out.jsonl.zst", "bad.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    again = command(*arguments, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "gliclass: out.jsonl.zst: is complete, all 800 rows are done\n")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_asked_to_stop_it_keeps_what_is_done_and_goes_on(
    signum: signal.Signals, code: int, whole: Path, tmp_path: Path
) -> None:
    shutil.copy(whole / "in.jsonl", tmp_path)
    arguments = ("in.jsonl", "-o", "out.jsonl", "--resume", "-q")
    out = tmp_path / "out.jsonl"
    with start(*arguments, cwd=tmp_path) as process:
        wait_for_rows(process, out, 1)
        process.send_signal(signum)
        assert process.stderr
        stderr = process.stderr.read().decode()
    assert process.returncode == code
    state = unfinished(str(out))
    assert state and f"interrupted; {state.rows:,} rows are done and written" in stderr
    assert f"(what is done is in {out}.part; the same command goes on)" in stderr
    assert len((tmp_path / "out.jsonl.part").read_bytes().splitlines()) == state.rows
    assert command(*arguments, "--threshold", "0.5", cwd=tmp_path).returncode == 2
    refused = command("in.jsonl", "-o", "out.jsonl", cwd=tmp_path)
    assert (refused.returncode, f"holds {state.rows:,} rows of a run that was not finished" in refused.stderr) == (
        2,
        True,
    )
    assert command(*arguments, cwd=tmp_path).returncode == 5
    with open_source(str(whole / "out.jsonl.zst")) as source:
        assert out.read_bytes() == source.stream.read()


def test_without_resume_sigterm_keeps_what_is_done_too(tmp_path: Path) -> None:
    with start("-o", str(tmp_path / "out.jsonl"), stdin=subprocess.PIPE) as process:
        assert process.stdin and process.stderr
        process.stdin.write(b"charged twice\n")
        process.stdin.flush()
        while not (tmp_path / "out.jsonl.part").exists():
            time.sleep(0.05)
        time.sleep(1.5)
        process.terminate()
        stderr = process.stderr.read().decode()
        assert process.wait() == 143
    assert "stopping after the batch in hand\n" in stderr
    assert json.loads((tmp_path / "out.jsonl.part").read_text())["text"] == "charged twice"


def test_nohup_goes_on_after_sighup(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    out = tmp_path / "out.jsonl"
    with start("-o", str(out), "-q", stdin=subprocess.PIPE, preexec_fn=ignore) as process:
        assert process.stdin
        while not (tmp_path / "out.jsonl.part").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        process.stdin.write(b"charged twice\n")
        process.stdin.close()
        assert process.wait() == 0
    assert out.exists()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a small file system; skip the test where that is not allowed."""
    mount = shutil.which("mount")
    options = f"size={size}"
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz"])
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(output: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", 1000)
    disk = tmp_path / "disk"
    disk.mkdir()
    shutil.copy(tmp_path / "a.jsonl", disk.parent / "b.jsonl")
    classify(tmp_path, output, "a.jsonl")
    expected = (tmp_path / output).read_bytes()
    with small_disk(disk, "192k"):
        (disk / "fill").write_bytes(b"x" * (110 << 10 if output == "out.jsonl" else 170 << 10))
        with pytest.raises(OutputFailed, match="cannot be written: no space left on the disk"):
            classify(tmp_path, f"disk/{output}", "a.jsonl")
        state = unfinished(str(disk / output))
        assert state and state.rows > 50
        assert sorted(path.name for path in disk.iterdir()) == sorted(["fill", f"{output}.part", f"{output}.resume"])
        (disk / "fill").unlink()
        summary = classify(tmp_path, f"disk/{output}", "a.jsonl")
        assert summary and summary.rows == 1000
        assert (disk / output).read_bytes() == expected


def test_the_command_says_so_where_the_disk_is_full(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", 1000)
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "64k"):
        result = command("in.jsonl", "-o", "disk/out.jsonl", "--resume", cwd=tmp_path)
        assert result.returncode == 6
        part = disk / "out.jsonl.part"
        assert f"{part}: cannot be written: no space left on the disk (what is done is in {part};" in result.stderr
        state = unfinished(str(disk / "out.jsonl"))
        assert state and part.stat().st_size >= state.output > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.jsonl", "--resume"], "--resume: name the output, -o FILE"),
        (["in.jsonl", "-o", "-", "--resume"], "--resume: name the output, -o FILE"),
        (["-o", "out", "--resume"], "--resume: standard input cannot be read again from its beginning"),
        (["in.jsonl", "/dev/null", "-o", "out", "--resume"], "--resume: /dev/null cannot be read again"),
        (["in.jsonl", "-o", "/dev/null", "--resume"], "--resume: /dev/null is no ordinary file"),
        (["in.jsonl", "-o", "out", "--rejects", "/dev/null", "--resume"], "--resume: /dev/null is no ordinary file"),
        (["in.jsonl", "-o", "in.jsonl", "--resume"], "--resume: in.jsonl would be gone once its results are there"),
        (["in.jsonl", "-o", "out", "--summary", "--resume"], "--summary would count the labels of this run alone"),
        (["out.resume", "-f", "text", "-o", "out", "--resume"], "is read, or written by another option"),
    ],
)
def test_what_no_run_can_go_on_with_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"text":"a"}\n')
    (tmp_path / "out.resume").write_text("a\n")
    result = CliRunner().invoke(app, ["classify", *LABELS, *arguments], catch_exceptions=False)
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_each_thing_that_changes_the_output_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", 20)
    examples = [{"text": "paid", "labels": ["billing"]}, {"text": "parcel", "labels": ["shipping"]}]
    (tmp_path / "examples").write_text("\n".join(map(json.dumps, examples)))
    base = ["classify", "in.jsonl", *LABELS, "-o", "out.jsonl", "--resume", "-q"]
    assert CliRunner().invoke(app, base, catch_exceptions=False).exit_code == 5
    for arguments, told in (
        (["-l", "praise"], "labels differ"),
        (["--multi"], "--multi was False, is True"),
        (["--as", "found"], "--as was prediction, is found"),
        (["--limit", "5"], "--limit was None, is 5"),
        (["--examples", "examples"], "examples differ"),
        (["--rejects", "bad"], "--rejects was None, is "),
    ):
        result = CliRunner().invoke(app, [*base, *arguments], catch_exceptions=False)
        assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    same = [*base, "--threads", "1", "--batch-tokens", "64", "--linger", "5", "--offline"]
    assert CliRunner().invoke(app, same, catch_exceptions=False).exit_code == 0


def test_a_model_is_told_by_all_its_files(tmp_path: Path) -> None:
    bundled = read_model_folder(EXAMPLES.parent / "gliclass_cli" / "default_model")
    copied = read_model_folder(shutil.copytree(bundled.path, tmp_path / "model"))
    known = {model_digest(bundled, weights=False)}
    assert {model_digest(copied, weights=False)} == known
    for name in ("config.json", "tokenizer.json", "text.onnx", "weights.safetensors"):
        with (copied.path / name).open("ab") as file:
            file.write(b" ")
        digest = model_digest(copied, weights=False)
        assert digest not in known
        known.add(digest)
