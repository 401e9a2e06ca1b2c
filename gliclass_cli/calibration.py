"""The calibration file: temperature, bias and thresholds that were learned on rows with right labels."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gliclass_cli.errors import UsageProblem
from gliclass_cli.files import STDIN, read_text_file
from gliclass_cli.predictions import Calibration

FORMAT = "gliclass-calibration"
VERSION = 1
Mode = Literal["single", "multi"]
_KEYS = {"format", "version", "model", "mode", "temperature", "bias", "thresholds", "rows", "cross_validation"}


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """What a file holds: the calibration, the mode and the model it was tuned for, and how that was found to work."""

    model: str
    mode: Mode
    calibration: Calibration
    rows: int = 0
    cross_validation: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the file."""
        multi, calibration = self.mode == "multi", self.calibration
        value: dict[str, Any] = {"format": FORMAT, "version": VERSION, "model": self.model, "mode": self.mode}
        value["temperature"] = calibration.multi_temperature if multi else calibration.single_temperature
        if multi:
            value |= {"bias": calibration.multi_bias, "thresholds": dict(calibration.thresholds)}
        value |= {"rows": self.rows, "cross_validation": dict(self.cross_validation)}
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_calibration(name: str) -> CalibrationFile:
    """Read a calibration file. Raises UsageProblem, which names file and key."""
    if name == STDIN:
        raise UsageProblem("--calibration -: name a file; gliclass eval --tune writes one")
    text = read_text_file(name, "calibration", UsageProblem)
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise UsageProblem(f"{name}: not valid JSON: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageProblem(f"{name}: no calibration file ('format' is not {FORMAT!r}); gliclass eval --tune writes one")
    found = _Reader(name, value).read()
    try:
        found.to_bytes()
    except (ValueError, RecursionError) as error:  # infinite, or half of a character
        raise UsageProblem(f"{name}: a value cannot be written as JSON: {error}") from error
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks the values of a file; each problem names its key."""

    name: str
    value: Mapping[str, Any]

    def read(self) -> CalibrationFile:
        if self.value.get("version") != VERSION or isinstance(self.value["version"], bool):
            raise self._problem("version", f"must be {VERSION}: the file is of another version of gliclass")
        mode = self.value.get("mode")
        if mode not in ("single", "multi"):
            raise self._problem("mode", "must be 'single' or 'multi'")
        known = _KEYS if mode == "multi" else _KEYS - {"bias", "thresholds"}
        if unknown := [key for key in self.value if key not in known]:
            raise self._problem(unknown[0], f"is not known in mode {mode!r}")
        model = self.value.get("model")
        if not isinstance(model, str):
            raise self._problem("model", "must be a text")
        found = self.value.get("cross_validation", {})
        if not isinstance(found, dict):
            raise self._problem("cross_validation", "must be an object")
        rows = self.value.get("rows", 0)
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
            raise self._problem("rows", "must be a number of rows")
        return CalibrationFile(model, mode, self._calibration(mode), rows, found)

    def _calibration(self, mode: Mode) -> Calibration:
        temperature = self._number("temperature", self.value.get("temperature"))
        if temperature <= 0:
            raise self._problem("temperature", "must be above 0")
        if mode == "single":
            return Calibration(single_temperature=temperature)
        thresholds = self.value.get("thresholds", {})
        if not isinstance(thresholds, dict):
            raise self._problem("thresholds", "must be an object {label: threshold}")
        checked = {}
        for label, least in thresholds.items():
            checked[label] = self._number(f"thresholds.{label}", least)
            if not 0 <= checked[label] <= 1:
                raise self._problem(f"thresholds.{label}", "must be from 0 to 1")
        bias = self._number("bias", self.value.get("bias", 0.0))
        return Calibration(multi_temperature=temperature, multi_bias=bias, thresholds=checked)

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                if math.isfinite(value):
                    return float(value)
            except OverflowError:  # an integer beyond all floats
                pass
        raise self._problem(key, "must be a finite number")

    def _problem(self, key: str, message: str) -> UsageProblem:
        return UsageProblem(f"{self.name}: {key!r} {message}")
