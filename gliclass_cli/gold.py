"""The right labels of a row, in the forms that people write them, for training and for evaluation."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gliclass_cli.labels import CELL_SEPARATOR
from gliclass_cli.records import FieldProblem

# Where right labels are looked for, in this order.
GOLD_FIELDS = ("true_labels", "gold", "label", "labels")
RIGHT = 0.5  # the confidence from which a label counts as right


def gold_labels(value: Any, field: str, *, several: bool = True) -> dict[str, float]:
    """Return right labels with their confidence 0..1: of a label, a list, ``{label: confidence}``, or a cell of a CSV.

    ``several``: text holds labels joined by ``|``; else it is one label, whatever is in it.

    Raises:
        FieldProblem: it is none of these, or holds a label twice.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with contextlib.suppress(ValueError, RecursionError):  # a label may begin with a bracket too
            value = json.loads(value)
    if isinstance(value, Mapping):
        return {name.strip(): _confidence(name, share, field) for name, share in value.items() if share != 0}
    if isinstance(value, str):
        value = [name for name in (value.split(CELL_SEPARATOR) if several else [value]) if name.strip()]
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise FieldProblem(
            "bad_gold", f"field {field!r}: a label, a list of labels, or {{label: confidence}} belongs here"
        )
    names = [name.strip() for name in value]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise FieldProblem("bad_gold", f"field {field!r}: label {twice[0]!r} is given twice")
    return dict.fromkeys(names, 1.0)


def _confidence(name: str, share: Any, field: str) -> float:
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise FieldProblem("bad_gold", f"field {field!r}: the confidence of {name!r} must be a number from 0 to 1")
    if not name.strip():
        raise FieldProblem("bad_gold", f"field {field!r}: a label is empty")
    return float(share)
