"""Figures: the same bytes each time, for two labels and for 77, and for labels of any spelling."""

from pathlib import Path

import numpy as np
import pytest

from gliclass_cli.evaluation.report import Report, evaluate
from gliclass_cli.evaluation.rows import Outcomes
from gliclass_cli.plots import plot_report


def report(names: list[str], *, multi: bool = False, rows: int = 60) -> Report:
    random = np.random.default_rng(0)
    logits = random.normal(size=(rows, len(names)))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gold = random.integers(len(names), size=rows)
    predicted = scores.argmax(axis=1)
    if multi:
        return evaluate(Outcomes(tuple(names), True, scores > 0.3, scores > 0.4, scores, scores))
    return evaluate(Outcomes(tuple(names), False, gold, predicted, scores, scores))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("count", [1, 2, 77])
def test_figures_have_the_same_bytes_each_time(count: int, multi: bool) -> None:
    found = report([f"label {number}" for number in range(count)], multi=multi)
    svg = plot_report(found, "report.SVG")
    assert svg.startswith(b"<?xml")
    assert b"<dc:date>" not in svg
    assert svg == plot_report(found, "other.svg")
    png = plot_report(found, "report.png")
    assert png.startswith(b"\x89PNG")
    assert png == plot_report(found, "report.png")


def test_labels_of_any_spelling_are_drawn_as_they_are() -> None:
    plot_report(report(["costs $5 and $6", "分类", "\x1b[31mred", "x" * 200, r"\frac{"]), "report.svg")


def test_a_report_without_scores_is_drawn(tmp_path: Path) -> None:
    unknown = np.full((2, 2), np.nan)
    found = evaluate(Outcomes(("a", "b"), False, np.array([0, 1]), np.array([0, -1]), unknown, unknown))
    assert "ece" not in found.metrics
    assert plot_report(found, "report.png").startswith(b"\x89PNG")
