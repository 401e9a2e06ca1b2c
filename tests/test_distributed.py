"""Many files on a cluster: what a local run writes, also where a worker dies; what is done is not done again."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gliclass_cli.classification import Settings
from gliclass_cli.classifier import Classifier
from gliclass_cli.cli.app import app
from gliclass_cli.errors import InputUnusable, ModelUnusable, OutputFailed, UsageProblem
from gliclass_cli.labels import make_labels
from gliclass_cli.readers import ReadOptions
from gliclass_cli.writers import JsonlWriter

pytest.importorskip("ray.data")
from gliclass_cli import distributed
from gliclass_cli.distributed import Job, Part, find_inputs, missing_parts, plan_parts

ROWS = (Path(__file__).parents[1] / "examples" / "tickets.jsonl").read_text("utf-8").splitlines()
LABELS = ("-l", "billing", "-l", "shipping", "-l", "bug report")


def gliclass(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def shards(folder: Path) -> list[str]:
    """Six inputs: plain and compressed, one of them with a bad row, one empty."""
    names = []
    for number in range(6):
        lines = [] if number == 3 else ROWS[number * 10 : number * 10 + 10] + ["{bad"] * (number == 1)
        data = "".join(line + "\n" for line in lines).encode()
        names.append(f"in{number}.jsonl.gz" if number == 2 else f"in{number}.jsonl")
        (folder / names[-1]).write_bytes(gzip.compress(data) if number == 2 else data)
    return names


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def parts_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("_"))


def writer_of(folder: Path) -> int | None:
    """The process that has an unfinished part of a folder open."""
    if not list(folder.glob("*.part")):
        return None
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = link.readlink()
        except OSError:
            continue
        if target.parent == folder and target.suffix == ".part":
            return int(link.parts[2])
    return None


# --- a cluster -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = shards(tmp_path)
    assert gliclass("classify", *names, *LABELS, "-o", "local.jsonl").exit_code == 5
    command = ["classify", "in*", *LABELS, "--engine", "ray", "-o", "out", "--workers", "2"]
    environment = {**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.Popen(
        [sys.executable, "-m", "gliclass_cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    killed = None
    while killed is None:
        assert run.poll() is None, run.stderr and run.stderr.read()
        time.sleep(0.02)
        killed = writer_of(tmp_path / "out")
    os.kill(killed, signal.SIGKILL)
    results, messages = run.communicate()
    assert (run.returncode, results) == (5, ""), messages
    assert "gliclass: in1.jsonl:11: not valid JSON" in messages
    assert "gliclass: 51 rows, 1 with errors, " in messages
    parts = parts_of(tmp_path / "out")
    assert [path.name for path in parts] == [f"{number:05}-{name}" for number, name in enumerate(names)]
    assert b"".join(map(content, parts)) == (tmp_path / "local.jsonl").read_bytes()

    # What is there is not done again, and other settings do not go into the same folder.
    result = gliclass(*command)
    assert (result.exit_code, "6 parts were there before" in result.stderr) == (0, True)
    result = gliclass(*command, "--threshold", "0.5")
    assert (result.exit_code, "out: holds the parts of a run with other settings" in result.stderr) == (2, True)


# --- what a worker does ----------------------------------------------------------------------------------------------


def job_of(folder: Path, output: str) -> Job:
    return Job(
        load=Classifier.load,
        make_writer=partial(writer),
        read=ReadOptions(),
        settings=Settings(make_labels(["billing", "shipping"])),
        output=output,
        directory=str(folder),
    )


def writer(inputs: object) -> JsonlWriter:
    return JsonlWriter(with_source=True)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_worker_writes_whole_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "in.jsonl").write_text('{"text": "I was charged twice"}\n{bad\n')
    (tmp_path / "out").mkdir()
    worker = distributed._Worker(job_of(tmp_path, f"{scheme}{tmp_path}/out"))
    for source in ("in.jsonl", f"file://{tmp_path}/in.jsonl"):
        answer = worker({"source": source, "target": "00000-in.jsonl"})
        outcome = distributed._outcome(answer)
        assert (outcome.problem, outcome.summary.rows, outcome.summary.errors) == (None, 2, 1)
        assert outcome.told[0].startswith(f"{source}:2: not valid JSON")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000-in.jsonl"]
        lines = (tmp_path / "out" / "00000-in.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["prediction"]["label"] == "billing"
        assert json.loads(lines[1])["prediction"]["error"]["file"] == source


def test_a_part_that_cannot_be_read_is_told_and_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' * 9)[:-9])
    (tmp_path / "out").mkdir()
    worker = distributed._Worker(job_of(tmp_path, str(tmp_path / "out")))
    outcome = distributed._outcome(worker({"source": "in.jsonl.gz", "target": "00000-in.jsonl"}))
    assert isinstance(outcome.problem, InputUnusable)
    assert "in.jsonl.gz: the compressed data is damaged" in str(outcome.problem)
    assert not (tmp_path / "out" / "00000-in.jsonl").exists()


def test_what_no_part_would_escape_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(tmp_path, str(tmp_path))
    broken = Job(partial(Classifier.load, "./none"), job.make_writer, job.read, job.settings, job.output, job.directory)
    answer = distributed._Worker(broken)({"source": "in.jsonl", "target": "00000-in.jsonl"})
    with pytest.raises(ModelUnusable, match=r"\./none"):
        distributed._outcome(answer)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_patterns_are_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl"):
        (tmp_path / name).touch()
    assert find_inputs(["?.jsonl", "c[1].jsonl", "none.jsonl"]) == ["a.jsonl", "b.jsonl", "c[1].jsonl", "none.jsonl"]
    assert find_inputs([f"file://{tmp_path}/?.jsonl"]) == [f"file://{tmp_path}/{name}.jsonl" for name in "ab"]
    with pytest.raises(InputUnusable, match="no file has such a name"):
        find_inputs(["*.csv"])
    with pytest.raises(InputUnusable, match=r"nosuch://x/\*: "):
        find_inputs(["nosuch://x/*"])


@pytest.mark.parametrize(
    ("sources", "ending", "targets"),
    [
        (["a/x.jsonl", "b/x.jsonl"], ".jsonl", ["00000-x.jsonl", "00001-x.jsonl"]),
        (["s3://b/x.csv.GZ", "y"], ".jsonl", ["00000-x.jsonl.gz", "00001-y.jsonl"]),
        (["x.jsonl.zst"], ".parquet", ["00000-x.parquet"]),
        (["x.v2.log"], ".txt", ["00000-x.v2.txt"]),
    ],
)
def test_parts_are_named_by_place_and_input(sources: list[str], ending: str, targets: list[str]) -> None:
    assert plan_parts(sources, ending) == [Part(*each) for each in zip(sources, targets, strict=True)]


def test_finished_parts_count_for_the_same_run_only(tmp_path: Path) -> None:
    sources = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for source in sources:
        Path(source).write_text("{}\n")
    parts, out = plan_parts(sources, ".jsonl"), str(tmp_path / "out")
    assert missing_parts(out, parts, "x") == parts
    (tmp_path / "out" / parts[0].target).touch()
    (tmp_path / "out" / f"{parts[1].target}.part").touch()
    assert missing_parts(out, parts, "x") == parts[1:]
    for changed, settings, told in ((parts, "y", "other settings"), (parts[1:], "x", "other inputs")):
        with pytest.raises(UsageProblem, match=told):
            missing_parts(out, changed, settings)
    Path(sources[1]).write_text('{"text": "mended"}\n')  # nothing was made of it yet
    assert missing_parts(out, parts, "x") == parts[1:]
    Path(sources[0]).write_text('{"text": "changed"}\n')
    with pytest.raises(UsageProblem, match=f"a.jsonl has changed since {parts[0].target} was written; remove"):
        missing_parts(out, parts, "x")
    with pytest.raises(UsageProblem, match="other files"):
        missing_parts(str(tmp_path), parts, "x")
    with pytest.raises(InputUnusable, match="none: no such file"):
        missing_parts(out, plan_parts(["none"], ".jsonl"), "x")
    with pytest.raises(OutputFailed):
        missing_parts(sources[0], parts, "x")


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["in.jsonl"], "name a folder or a URL for them with -o"),
        (["-", "-o", "out"], "does not take standard input"),
        (["in.jsonl", "-o", "out", "--skip", "1", "--limit", "2"], "does not take --skip, --limit"),
        (["in.jsonl", "-o", "out", "--select", "billing"], "does not take --select"),
        (["in.jsonl", "-o", "out", "--rejects", "bad"], "does not take --rejects"),
        (["in.jsonl", "-o", "out", "--on-error", "stop"], "does not take --on-error stop"),
        (["in.jsonl", "-o", "out", "--linger", "1"], "does not take --linger"),
        (["in.jsonl", "-o", "out", "--output-format", "csv"], "--output-format csv: has one head for all rows"),
    ],
)
def test_what_makes_no_sense_there_is_refused_by_name(arguments: list[str], told: str) -> None:
    result = gliclass("classify", *LABELS, "--engine", "ray", *arguments)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr


def test_options_of_a_cluster_need_the_engine() -> None:
    assert gliclass("classify", *LABELS, "in.jsonl", "--workers", "2").exit_code == 2


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.errors.find_spec", lambda name: None)
    result = gliclass("classify", *LABELS, "in.jsonl", "--engine", "ray", "-o", "out")
    assert (result.exit_code, result.stderr) == (
        4,
        "gliclass: --engine ray needs ray: pip install 'gliclass-cli[ray]'\n",
    )
