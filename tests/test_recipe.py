"""The recipe of the bundled model: its texts are sound, and its files come out as the trainer wants them."""

import fnmatch
import gzip
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from safetensors.numpy import load_file, save_file

from gliclass_cli.readers import ReadOptions
from gliclass_cli.training.rows import read_sources
from gliclass_cli.training.settings import make_settings, read_settings

RECIPE = Path(__file__).parents[1] / "recipe"
sys.path.insert(0, str(RECIPE))

import finish  # noqa: E402
import prepare  # noqa: E402

TEXTS = sorted((RECIPE / "texts").glob("*/*.txt"))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_texts_are_labelled_well(path: Path) -> None:
    scheme = prepare.read_scheme(path)
    assert len(scheme.rows) >= 15
    counts = Counter(label for row in scheme.rows for label in row.right)
    for axis, labels in scheme.axes.items():
        assert len(labels) == len(set(labels)), axis
        assert [label for label in labels if not counts[label]] == []
        assert max(counts[label] for label in labels) <= 0.85 * len(scheme.rows), axis
    for row in scheme.closed_rows(scheme.labels):
        assert row["text"].strip()
        assert set(row["labels"]) < set(row["all_labels"])
        assert len(set(row["all_labels"])) == len(row["all_labels"])


def test_no_text_comes_twice_and_there_are_thousands() -> None:
    seen = Counter(
        re.sub(r"\W+", " ", row.text.lower()).strip() for path in TEXTS for row in prepare.read_scheme(path).rows
    )
    assert [text for text, count in seen.items() if count > 1] == []
    assert len(seen) > 5000


def test_a_scheme_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text(
        "# a comment\n@axis mood\ngood = fine, not bad\nbad = poor\n@axis place\nhome = house\nwork = office, at work\n"
        "@rows\ngood; ?home | Two\\nlines. || +a lucky day; -a sad day\n | Nothing of it.\nbad; work | Late again.\n",
        "utf-8",
    )
    scheme = prepare.read_scheme(path)
    assert scheme.axes == {"mood": ["good", "bad"], "place": ["home", "work"]}
    assert scheme.wordings["work"] == ["office", "at work"]
    first, second, third = scheme.closed_rows(scheme.labels)
    assert first == {"text": "Two\nlines.", "labels": ["good"], "all_labels": ["good", "bad", "work"]}
    assert second["labels"] == []
    assert third["labels"] == ["bad", "work"]
    assert [row["labels"] for row in scheme.closed_rows(scheme.axes["place"])] == [[], ["work"]]
    assert list(scheme.open_rows()) == [
        {"text": "Two\nlines.", "labels": ["a lucky day", "good"], "all_labels": ["a lucky day", "good", "a sad day"]}
    ]
    path.write_text("@axis mood\ngood = fine\n@rows\nbad | No.\n", "utf-8")
    with pytest.raises(ValueError, match=r"x\.txt:4: no such label: 'bad'"):
        prepare.read_scheme(path)


def test_wordings_that_depend_on_the_file_are_left_out() -> None:
    assert prepare.agreed("camera", [["photo device", "for pictures"]]) == ["photo device", "for pictures"]
    assert prepare.agreed("home", [["house", "flat"], ["smart home", "house"], ["garden"]]) == ["house"]
    assert prepare.agreed("positive", [(), ["good"]]) == []  # a label of a public source, which brings none
    assert prepare.agreed("other sports", [["tennis"]]) == []


def test_checkpoints_are_averaged(tmp_path: Path) -> None:
    case = next(case for case in oracle.CASES if case.architecture == "bi-encoder" and case.scorer == "simple")
    oracle.write_checkpoint(case, tmp_path / "start")
    shutil.copytree(tmp_path / "start", tmp_path / "trained")
    weights = load_file(tmp_path / "start" / "model.safetensors")
    save_file(
        {name: np.asarray(value + 4) for name, value in weights.items()}, tmp_path / "trained" / "model.safetensors"
    )
    finish.average(str(tmp_path / "start"), str(tmp_path / "trained"), 0.25, tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, weights[name] + 1, atol=1e-5)
    assert (tmp_path / "mean" / "tokenizer.json").exists()


def test_files_come_out_as_the_trainer_wants_them(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    pool = [f"label {number}" for number in range(30)]
    sources = {"clinc_out_of_scope", *(name for name, _ in prepare._FOREIGN)}
    for name in sources | {other for _, others in prepare._FOREIGN for other in others}:
        labels = [] if name == "clinc_out_of_scope" else [pool[0]]
        write(data / f"{name}.jsonl.gz", [{"text": f"{name} {number}", "labels": labels} for number in range(3)])
        (data / f"{name}.labels.txt").write_text("".join(f"{label}\n" for label in pool), "utf-8")
    outputs = []
    for folder in (out, tmp_path / "again"):
        command = [sys.executable, str(RECIPE / "prepare.py"), "--data", str(data), "--output", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        outputs.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")})
    assert outputs[0] == outputs[1]
    files = sorted(out.glob("*.jsonl.gz"))
    names = [path.name.partition(".")[0] for path in files]
    loaded = read_sources([str(path) for path in files], ReadOptions(), allow_empty=True)
    assert {f"own_{path.parent.name}_{path.stem}" for path in TEXTS} <= set(names)
    foreign = loaded[names.index("foreign")]
    assert all(not row.true and row.candidates for row in foreign.rows)
    texts, held = (
        {row.text for source in found for row in source.rows if Path(source.name).name.startswith("own_")}
        for found in (
            loaded,
            read_sources([str(path) for path in (out / "held").iterdir()], ReadOptions(), allow_empty=True),
        )
    )
    assert texts.isdisjoint(held)
    assert 0.04 < len(held) / len(texts | held) < 0.09
    assert json.loads((out / "wordings.json").read_text("utf-8"))


def test_the_settings_name_the_files_there_are() -> None:
    values = read_settings((RECIPE / "train.toml").read_text("utf-8"), "train.toml")
    make_settings(values)
    own = {f"own_{path.parent.name}_{path.stem}" for path in TEXTS}
    named = {item.partition("=")[0] for item in values["source_weights"] if item.startswith("own_")}
    names = {f"{name}{ending}" for name in own for ending in ("", "_all", "_open")}
    assert all(fnmatch.filter(names, name) for name in named)
