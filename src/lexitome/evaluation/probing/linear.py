"""One linear layer on frozen features. `logistic` needs scikit-learn, `sgd` needs torch.

logistic    DINOv2's and DINOv3's protocol: L2-regularised logistic regression for 45 values of C from 1e-6 to 1e5, the
            best on validation images (there: a tenth of the training images), then fitted again on both together
sgd         2509.06467's and DINOv3's eval/linear.py: layers of 13 learning rates trained at once by SGD with a cosine
            schedule, the best on validation images

Features are standardised by the training images first: what the strength of a penalty means then does not depend on
the encoder. Several labels are one problem each, under one C.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.evaluation.probing.scores import point_score

CS = tuple(float(c) for c in np.logspace(-6, 5, 45))
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
ITERATIONS = 1000

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Part:
    """Features (N, D) and truth (N, C) of the images of one part."""

    features: Floats
    truth: Bools


@dataclass(frozen=True, eq=False)
class Fitted:
    """(N, C) probabilities of the test images, what validation chose, and the score it was chosen by."""

    probability: NDArray[np.float64]
    chosen: float
    validation: float


def standardised(train: Part, *others: Part) -> tuple[Part, ...]:
    """Mean 0 and deviation 1 of every feature in the training part; constant ones become 0."""
    mean = train.features.mean(axis=0, dtype=np.float64)
    deviation = train.features.std(axis=0, dtype=np.float64)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-9 * np.abs(mean) + 1e-12)
    return tuple(Part(((part.features - mean) * scale).astype(np.float32), part.truth) for part in (train, *others))


def logistic(
    train: Part, val: Part, test: Part, *, exclusive: bool, cs: Sequence[float] = CS,
    advance: Callable[[], None] = lambda: None,
) -> Fitted:  # fmt: skip
    """
    Args:
        advance: called after each C.

    Raises:
        InputError: scikit-learn is not installed.
    """
    check_sklearn()
    train, val, test = standardised(train, val, test)
    scores = []
    for c in cs:
        scores.append(point_score(val.truth, _probability(train, val.features, c, exclusive), exclusive=exclusive))
        advance()
    best = int(np.argmax(scores))
    both = Part(np.concatenate([train.features, val.features]), np.concatenate([train.truth, val.truth]))
    found = _probability(both, test.features, cs[best], exclusive)
    return Fitted(found, float(cs[best]), float(scores[best]))


def check_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError("a linear probe", "needs scikit-learn", 'Type: pip install "lexitome[train]"') from error


def _probability(train: Part, features: Floats, c: float, exclusive: bool) -> NDArray[np.float64]:
    """(N, C). Classes that no training image has get 0."""
    found = np.zeros((len(features), train.truth.shape[1]))
    if exclusive:
        names, values = _fit(train.features, train.truth.argmax(axis=1), features, c)
        found[:, names] = values
        return found
    for column in range(train.truth.shape[1]):
        names, values = _fit(train.features, train.truth[:, column], features, c)
        if True in names:
            found[:, column] = values[:, list(names).index(True)]
    return found


def _fit(features: Floats, target: NDArray[Any], wanted: Floats, c: float) -> tuple[NDArray[Any], Floats]:
    """The values that occur in `target`, and (N, values) probabilities of them."""
    from sklearn.linear_model import LogisticRegression

    names = np.unique(target)
    if len(names) == 1:
        return names, np.ones((len(wanted), 1))
    model = LogisticRegression(C=c, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large C do not converge on separable data, and need not
        model.fit(features, target)
    return model.classes_, model.predict_proba(wanted)


def sgd(
    train: Part, val: Part, test: Part, *, exclusive: bool, rates: Sequence[float] = RATES, epochs: int = 50,
    batch: int = 1024, seed: int = 0,
) -> Fitted:  # fmt: skip
    """Layers of all rates at once; rates are those of a batch of 256 and grow with it (as in eval/linear.py)."""
    import torch
    from torch.nn import functional as F

    train, val, test = standardised(train, val, test)
    x, y = (torch.from_numpy(np.array(each, np.float32)) for each in (train.features, train.truth))
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.nn.Linear(x.shape[1], y.shape[1]) for _ in rates]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.01)
            layer.bias.zero_()
    batch = min(batch, len(x))
    groups = [{"params": layer.parameters(), "lr": r * batch / 256} for layer, r in zip(layers, rates, strict=True)]
    optimiser = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * (len(x) // batch))
    loss = F.cross_entropy if exclusive else F.binary_cross_entropy_with_logits
    for _ in range(epochs):
        shuffled = torch.randperm(len(x), generator=generator)
        for rows in shuffled[: len(x) // batch * batch].split(batch):  # without the rest that fills no batch
            optimiser.zero_grad()
            torch.stack([loss(layer(x[rows]), y[rows]) for layer in layers]).sum().backward()
            optimiser.step()
            schedule.step()

    def answer(layer: torch.nn.Linear, part: Part) -> NDArray[np.float64]:
        with torch.inference_mode():
            logits = layer(torch.from_numpy(np.array(part.features, np.float32))).double()
            return (logits.softmax(1) if exclusive else logits.sigmoid()).numpy()

    scores = [point_score(val.truth, answer(layer, val), exclusive=exclusive) for layer in layers]
    best = int(np.argmax(scores))
    return Fitted(answer(layers[best], test), float(rates[best]), float(scores[best]))
