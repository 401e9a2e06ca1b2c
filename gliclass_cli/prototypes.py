"""Examples for models that read each text by itself: a label's vector moves towards the texts of its examples.

Where a logit is a dot product of a text's and a label's vector, the mean text of a label is a label vector too: its
prototype (Snell et al. 2017, Prototypical Networks). A label's name is worth some examples, so both are blended. How
much the examples weigh is chosen by leave-one-out: each is scored with its own text left out of its label's mean.

Texts are closer to texts than to labels, so that all prototypes score higher than names do. One shift of the logits
of all moved labels takes that back: the mean logit of examples for moved labels that they do not carry stays what it
was. Without it, labels with examples would win against those without, and every sigmoid would rise.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.decoding import Floats
from gliclass_cli.predictions import Calibration

Carried = NDArray[np.bool_]
WEIGHTS = tuple(step / 20 for step in range(20))
# Measured on eight data sets: a label's name is worth so many examples, and this is the loss, in nats, of a weight
# that is 1 away from what that makes of them.
_NAME_WORTH = 4.0
_SURENESS = 20.0
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Product:
    """How logits come of vectors, scale * (text . label) + bias, and scores of logits."""

    scale: float
    bias: float
    calibration: Calibration = field(default_factory=Calibration)


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """Label vectors (K, D) that examples have moved with ``weight``, and what is added to their logits (K,)."""

    vectors: Floats
    shifts: Floats
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Similarities:
    """Of N examples and K labels, all (N, K), each example's own text left out of the means of its labels.

    ``name``: cosine of text and label vector; ``mean``: of text and mean text; ``between``: of label vector and mean
    text. ``known``: whether a mean is left. ``lengths``: of a text's times a label's vector.
    """

    carried: Carried
    name: Floats
    mean: Floats
    between: Floats
    known: Carried
    lengths: Floats


def teachable(carried: Carried) -> bool:
    """Tell whether examples (N, K) tell labels apart: one does not carry a label that another one carries."""
    return bool((~carried & carried.any(axis=0)).any())


def make_prototypes(labels: Floats, texts: Floats, carried: Carried, product: Product) -> Prototypes:
    """Move label vectors (K, D) towards the text vectors (N, D) of the examples that carry them, ``carried`` (N, K).

    Labels without examples stay as they are, and all labels do where the examples tell none apart.
    """
    if not teachable(carried):
        return Prototypes(labels, np.zeros(len(labels), dtype=labels.dtype), 0.0)
    similar = compare(labels, texts, carried)
    weight = choose_weight(similar, product)
    shifts = np.where(carried.any(axis=0), _shift(similar, product, weight), 0.0).astype(labels.dtype)
    return Prototypes(blend(labels, texts, carried, weight), shifts, weight)


def blend(labels: Floats, texts: Floats, carried: Carried, weight: float) -> Floats:
    """Return label vectors (K, D) turned towards the texts of their examples; lengths stay.

    The direction is (1 - weight) * unit(label) + weight * unit(mean of unit(text)).
    """
    means = _unit(carried.T.astype(np.float64) @ _unit(texts))
    turned = _unit((1 - weight) * _unit(labels) + weight * means)
    turned *= np.linalg.norm(labels, axis=1, keepdims=True)
    blended: Floats = np.where(np.any(carried, axis=0, keepdims=True).T, turned, labels).astype(labels.dtype)
    return blended


def choose_weight(similar: Similarities, product: Product) -> float:
    """Return the weight of ``WEIGHTS`` with which left-out examples are scored best; of equal ones the smallest.

    The loss is the cross-entropy of the softmax, or of sigmoids where an example carries several labels, summed over
    the examples whose labels have others too. As few examples say little, it grows with the squared distance from
    n / (n + 4), for n examples a label; where each label has one, that is all there is.
    """
    carried = similar.carried
    counts = carried.sum(axis=0)
    judged = (similar.known | ~carried).all(axis=1) & carried.any(axis=1)
    expected = float(counts.sum() / (counts.sum() + _NAME_WORTH * np.count_nonzero(counts)))
    loss = _sigmoid_loss if (carried.sum(axis=1) > 1).any() else _softmax_loss

    def cost(weight: float) -> float:
        logits = left_out_logits(similar, product, weight)[judged]
        return loss(logits, carried[judged], product.calibration) + _SURENESS * (weight - expected) ** 2

    return min(WEIGHTS, key=lambda weight: (round(cost(weight), 9), weight))


def compare(labels: Floats, texts: Floats, carried: Carried) -> Similarities:
    """Compare examples (N, D) with labels (K, D) and with the mean texts of labels, their own left out."""
    names, units, own = _unit(labels), _unit(texts), carried.astype(np.float64)
    sums = own.T @ units  # (K, D)
    name, total = units @ names.T, units @ sums.T
    # What is left of a sum s without a text u: |s - u|^2 = |s|^2 - 2 u.s + 1, and so on; no (N, K, D) is needed.
    left = np.sqrt(np.maximum((sums**2).sum(axis=1) + own * (1 - 2 * total), _TINY))
    return Similarities(
        carried=carried,
        name=name,
        mean=(total - own) / left,
        between=((names * sums).sum(axis=1) - own * name) / left,
        known=own.sum(axis=0) > own,
        lengths=np.outer(np.linalg.norm(texts, axis=1), np.linalg.norm(labels, axis=1)),
    )


def left_out_logits(similar: Similarities, product: Product, weight: float) -> Floats:
    """Return the logits (N, K) of examples, shifted; for its own labels each is left out."""
    shifts = np.where(similar.known, _shift(similar, product, weight), 0.0)
    logits: Floats = product.scale * _cosines(similar, weight) * similar.lengths + product.bias + shifts
    return logits


def _cosines(similar: Similarities, weight: float) -> Floats:
    """Return the cosines (N, K) of texts and blended label vectors; those of label vectors where no mean is left."""
    squares = (1 - weight) ** 2 + weight**2 + 2 * weight * (1 - weight) * similar.between
    blended = ((1 - weight) * similar.name + weight * similar.mean) / np.sqrt(np.maximum(squares, _TINY))
    cosines: Floats = np.where(similar.known, blended, similar.name)
    return cosines


def _shift(similar: Similarities, product: Product, weight: float) -> float:
    """Return by how much the mean logit of examples for moved labels that they do not carry has fallen."""
    foreign = ~similar.carried & similar.carried.any(axis=0)
    fallen = (similar.name - _cosines(similar, weight)) * similar.lengths
    return product.scale * float(fallen[foreign].mean())


def _softmax_loss(logits: Floats, carried: Carried, calibration: Calibration) -> float:
    z = logits / calibration.temperature_of(logits.shape[1])
    return float(np.logaddexp.reduce(z, axis=1).sum() - z[carried].sum())


def _sigmoid_loss(logits: Floats, carried: Carried, calibration: Calibration) -> float:
    z = logits / calibration.multi_temperature + calibration.multi_bias
    return float(np.logaddexp(0.0, z).sum() - z[carried].sum())


def _unit(vectors: Floats) -> Floats:
    """Return vectors as double precision of length 1; null vectors stay."""
    exact = vectors.astype(np.float64)
    unit: Floats = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), _TINY)
    return unit
