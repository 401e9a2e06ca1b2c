"""Calibration files: what is written is read back, and anything else is refused with file and key."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.calibration import CalibrationFile, read_calibration
from gliclass_cli.decoding import Decoder
from gliclass_cli.errors import UsageProblem
from gliclass_cli.labels import make_labels
from gliclass_cli.predictions import Calibration, Choice

MULTI = {
    "format": "gliclass-calibration",
    "version": 1,
    "model": "m",
    "mode": "multi",
    "temperature": 1.5,
    "bias": -0.5,
    "thresholds": {"a": 0.25},
    "rows": 30,
    "cross_validation": {"folds": 5},
}
POSITIVE = st.floats(1e-6, 1e6)


def written(folder: Path, value: Any) -> str:
    path = folder / "calibration.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


@given(temperature=POSITIVE, bias=st.floats(-100, 100), thresholds=st.dictionaries(st.text(), st.floats(0, 1)))
def test_a_file_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, temperature: float, bias: float, thresholds: dict[str, float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    for file in (
        CalibrationFile("org/model", "single", Calibration(single_temperature=temperature), 20, {"folds": 5}),
        CalibrationFile(
            "é", "multi", Calibration(multi_temperature=temperature, multi_bias=bias, thresholds=thresholds), 3
        ),
    ):
        path.write_bytes(file.to_bytes())
        assert read_calibration(str(path)) == file


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temperature": 0}, "'temperature' must be above 0"),
        ({"temperature": -1}, "'temperature' must be above 0"),
        ({"temperature": math.nan}, "'temperature' must be a finite number"),
        ({"temperature": math.inf}, "'temperature' must be a finite number"),
        ({"temperature": 10**400}, "'temperature' must be a finite number"),
        ({"temperature": "1"}, "'temperature' must be a finite number"),
        ({"temperature": True}, "'temperature' must be a finite number"),
        ({"temperature": None}, "'temperature' must be a finite number"),
        ({"bias": "x"}, "'bias' must be a finite number"),
        ({"thresholds": {"a": 1.5}}, "'thresholds.a' must be from 0 to 1"),
        ({"thresholds": {"a": None}}, "'thresholds.a' must be a finite number"),
        ({"thresholds": [0.5]}, "'thresholds' must be an object"),
        ({"mode": "both"}, "'mode' must be 'single' or 'multi'"),
        ({"mode": "single"}, "'bias' is not known in mode 'single'"),
        ({"version": 2}, "'version' must be 1"),
        ({"version": True}, "'version' must be 1"),
        ({"model": 3}, "'model' must be a text"),
        ({"rows": -1}, "'rows' must be"),
        ({"cross_validation": 3}, "'cross_validation' must be an object"),
        ({"treshold": 3}, "'treshold' is not known"),
        ({"format": "x"}, "no calibration file"),
    ],
)
def test_wrong_values_name_file_and_key(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = written(tmp_path, MULTI | change)
    with pytest.raises(UsageProblem) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"format": "gliclass-calibration", "a": 1, "a": 2}', "[" * 100_000]
)
def test_what_is_no_such_file(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageProblem, match=r"calibration\.json: "):
        read_calibration(path)
    with pytest.raises(UsageProblem, match="no such file"):
        read_calibration(str(tmp_path / "none.json"))
    with pytest.raises(UsageProblem, match="name a file"):
        read_calibration("-")


def test_thresholds_of_labels_apply_unless_one_is_asked_for() -> None:
    calibration = Calibration(thresholds={"a": 0.9, "b": 0.1})
    labels, logits = make_labels(["a", "b", "c"]), np.array([1.0, -1.0, 0.1])  # scores 0.73, 0.27, 0.52
    assert Decoder(Choice(multi=True), calibration).decode(logits, labels).labels == ("c", "b")
    assert Decoder(Choice(multi=True, threshold=0.6), calibration).decode(logits, labels).labels == ("a",)
    assert Decoder(Choice(), calibration).decode(logits, labels).labels == ("a",)


def test_logits_are_kept_where_asked_for_and_never_written() -> None:
    labels, logits = make_labels(["a", "b"]), np.array([1.0, -1.0])
    kept = Decoder(Choice(with_logits=True)).decode(logits, labels)
    assert kept.logits == (1.0, -1.0)
    assert Decoder(Choice()).decode(logits, labels).logits is None
    assert kept.to_dict() == Decoder(Choice()).decode(logits, labels).to_dict()
    assert hash(Calibration(thresholds={"a": 0.5})) == hash(Calibration(thresholds={"a": 0.5}))
