"""One figure of a report: confusion, reliability, and F1 of each label."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gliclass_cli.evaluation.report import Report

_MOST_COUNTS = 15  # labels up to which the cells of a confusion matrix are numbered
_MOST_NAMES = 40  # labels up to which its axes are named
_LONGEST_NAME = 28
# The same bytes each time; a label may hold a $, which is no formula.
_STYLE: Any = {"svg.hashsalt": "gliclass", "text.parse_math": False, "font.size": 9, "axes.titlesize": 10}


def plot_report(report: Report, name: str) -> bytes:
    """Return the figure as a PNG or an SVG, by the ending of ``name``; the same bytes for the same report."""
    kind = PurePath(name).suffix.lower().lstrip(".")
    count = len(report.labels)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a label in a script that no font here has
        height = max(7.0, 0.17 * count + 1.5)
        figure = Figure(figsize=(13, height), layout="constrained")
        left = ["confusion", "reliability"] if report.confusion is not None else ["reliability"]
        axes = figure.subplot_mosaic([[name, "f1"] for name in left], width_ratios=[1, 0.9])
        if report.confusion is not None:
            _confusion(figure, axes["confusion"], report)
        _reliability(axes["reliability"], report)
        _f1(axes["f1"], report)
        data = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(data, format=kind, dpi=120, metadata=metadata)
    return data.getvalue()


def _confusion(figure: Figure, axis: Any, report: Report) -> None:
    """Draw the share of each right label's rows that got each label."""
    counts = report.confusion if report.confusion is not None else np.zeros((0, 0))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the right label's rows", shrink=0.8)
    names = [_short(each.label) for each in report.labels]
    if len(names) <= _MOST_NAMES:
        size = 9 if len(names) <= _MOST_COUNTS else 6
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axis.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= _MOST_COUNTS:
        for i, j in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=8)
    number = "" if len(names) <= _MOST_NAMES else " (labels as at the right, from 0)"
    axis.set(title="Confusion", xlabel="predicted", ylabel=f"right{number}")


def _reliability(axis: Any, report: Report) -> None:
    """Draw accuracy by score, and the share of answers in each bin."""
    axis.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1, label="score = accuracy")
    total = sum(bin.count for bin in report.reliability)
    if total:
        middle = [(bin.low + bin.high) / 2 for bin in report.reliability]
        widths = [bin.high - bin.low for bin in report.reliability]
        share = [bin.count / total for bin in report.reliability]
        axis.bar(middle, share, width=widths, color="lightgray", edgecolor="white", label="share of the answers")
        axis.plot(
            [bin.score for bin in report.reliability],
            [bin.accuracy for bin in report.reliability],
            marker="o",
            color="tab:blue",
            label="accuracy",
        )
        axis.legend(loc="best", framealpha=0.7)
    ece = report.metrics.get("ece")
    title = "Reliability: no scores" if ece is None else f"Reliability (ECE {ece:.3f})"
    axis.set(title=title, xlabel="score", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))


def _f1(axis: Any, report: Report) -> None:
    """Draw the F1 of each label, in the order given."""
    count = len(report.labels)
    axis.barh(range(count), [each.f1 for each in report.labels], color="tab:blue", height=0.8)
    names = [f"{_short(each.label)} ({each.support})" for each in report.labels]
    axis.set_yticks(range(count), names, fontsize=9 if count <= 40 else 7)
    axis.axvline(report.metrics["macro_f1"], color="tab:orange", linewidth=1.2)
    axis.set(title="F1 of each label (its rows); line: macro-F1", xlabel="F1", xlim=(0, 1), ylim=(count - 0.4, -0.6))


def _short(name: str) -> str:
    name = "".join(character if character.isprintable() else " " for character in name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def plot_training(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the loss of each step, and what was measured on the dev file, as a PNG.

    ``lines`` are those of ``metrics.jsonl``: ``step`` with ``loss``, or with ``dev``.
    """
    steps = [line for line in lines if "loss" in line]
    measured = [line for line in lines if "dev" in line]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axis = figure.subplots()
        numbers, losses = [line["step"] for line in steps], np.array([line["loss"] for line in steps])
        axis.plot(numbers, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
        width = max(1, len(losses) // 30)
        padded = np.concatenate((np.full(width - 1, losses[0]), losses)) if len(losses) else losses
        axis.plot(numbers, np.convolve(padded, np.ones(width) / width, "valid"), color="tab:blue", label="loss")
        axis.set(xlabel="step", ylabel="loss", title="Training")
        handles = list(axis.get_lines()[1:])
        if measured:
            right = axis.twinx()
            for number, name in enumerate(measured[0]["dev"]):
                values = [line["dev"][name] for line in measured]
                handles += right.plot(
                    [line["step"] for line in measured], values, f"C{number + 1}", marker="o", markersize=3, label=name
                )
            right.set(ylabel="on the dev file", ylim=(0, 1))
        axis.legend(handles=handles, loc="best")
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=120, metadata={"Software": None})
    return data.getvalue()


def plot_speed(points: Sequence[Mapping[str, Any]], name: str) -> bytes:
    """Return what ``gliclass bench`` measured as a PNG or an SVG, by the ending of ``name``."""
    kind = PurePath(name).suffix.lower().lstrip(".")
    varied = [key for key in points[0] if key in ("backend", "precision", "threads", "batch_tokens", "labels")]
    names = [", ".join(f"{key.replace('_', ' ')} {point[key]}" for key in varied) or "as it is" for point in points]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, max(3.0, 0.35 * len(points) + 1.5)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        places = np.arange(len(points))
        left.barh(places, [point["rows_per_second"] for point in points], color="tab:blue")
        left.set(title="Throughput", xlabel="rows per second", yticks=places, yticklabels=names)
        right.barh(places, [point["p95"] for point in points], color="lightgray", label="p95")
        right.barh(places, [point["p50"] for point in points], color="tab:blue", height=0.5, label="p50")
        right.set(title="One text alone", xlabel="milliseconds")
        right.legend(loc="best")
        left.invert_yaxis()
        data = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(data, format=kind, dpi=120, metadata=metadata)
    return data.getvalue()
