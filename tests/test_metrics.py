"""Metrics of each task against scikit-learn and direct formulas, whole and in parts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, mean_absolute_error, mean_squared_error, r2_score

from growkit.data.records import IGNORED
from growkit.metrics import Evaluation, Meter, metric_names

DRAW = torch.Generator().manual_seed(0)


def measured(task: str, outputs: torch.Tensor, targets: torch.Tensor, *, plain: bool = True) -> Evaluation:
    """Measured in two parts of unequal size; the loss of each is its mean."""
    meter = Meter(task, plain)
    for part in (slice(0, 3), slice(3, None)):
        loss = (
            F.mse_loss(outputs[part], targets[part])
            if task == "regression"
            else F.cross_entropy(outputs[part].flatten(0, -2), targets[part].flatten())
        )
        meter.add(loss if plain else 2 * loss, outputs[part], targets[part])
    return meter.result()


@pytest.mark.parametrize("width", [1, 3])
def test_regression_is_measured_as_by_scikit_learn(width: int):
    targets = torch.randn(11, width, generator=DRAW) * torch.tensor([1.0, 50.0, 0.01])[:width] + 7
    outputs = targets + torch.randn(11, width, generator=DRAW) * 0.3
    found = measured("regression", outputs, targets)
    known, guess = targets.double().numpy(), outputs.double().numpy()
    assert found.accuracy is None and found.loss == pytest.approx(mean_squared_error(known, guess), rel=1e-5)
    assert found.metrics["rmse"] == pytest.approx(math.sqrt(mean_squared_error(known, guess)))
    assert found.metrics["mae"] == pytest.approx(mean_absolute_error(known, guess))
    assert found.metrics["r2"] == pytest.approx(r2_score(known, guess), rel=1e-6)


def test_constant_targets_have_no_share_of_variance():
    found = measured("regression", torch.randn(6, 2, generator=DRAW), torch.full((6, 2), 3.3))
    assert set(found.metrics) == {"rmse", "mae"}


def test_classes_have_their_cross_entropy_where_the_loss_is_another():
    outputs, targets = torch.randn(8, 3, generator=DRAW), torch.randint(0, 3, (8,), generator=DRAW)
    found, plain = (measured("classification", outputs, targets, plain=one) for one in (False, True))
    assert found.accuracy == accuracy_score(targets, outputs.argmax(1))
    assert found.metrics["cross_entropy"] == pytest.approx(plain.loss) and found.loss == pytest.approx(2 * plain.loss)
    assert plain.metrics == {}


@pytest.mark.parametrize("plain", [True, False])
def test_perplexity_is_of_the_cross_entropy_of_what_is_not_padding(plain: bool):
    outputs, targets = torch.randn(5, 4, 7, generator=DRAW), torch.randint(0, 7, (5, 4), generator=DRAW)
    targets[1, 2:] = targets[4, 1:] = IGNORED
    kept = targets != IGNORED
    found = measured("pairs", outputs, targets, plain=plain)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(F.cross_entropy(outputs[kept], targets[kept])))
    assert found.accuracy == pytest.approx(accuracy_score(targets[kept], outputs.argmax(-1)[kept]))


@pytest.mark.parametrize("task", ["classification", "regression", "language", "pairs"])
@pytest.mark.parametrize("plain", [True, False])
def test_the_names_of_metrics_are_known_beforehand(task: str, plain: bool):
    shape = () if task == "classification" else (4,)
    outputs = torch.randn(6, *shape, 5, generator=DRAW)
    targets = torch.randint(0, 5, (6, *shape), generator=DRAW)
    if task == "regression":
        outputs, targets = outputs.flatten(1), torch.randn(6, 20, generator=DRAW)
    assert tuple(measured(task, outputs, targets, plain=plain).metrics) == metric_names(task, plain)


def test_errors_are_in_the_units_that_targets_had_before_they_were_scaled():
    scale, targets = torch.tensor([10.0, 0.5]), torch.randn(9, 2, generator=DRAW)
    outputs = targets + 0.1 * torch.randn(9, 2, generator=DRAW)
    meter = Meter("regression", scale=scale)
    meter.add(F.mse_loss(outputs, targets), outputs, targets)
    found, known, guess = meter.result(), (targets * scale).numpy(), (outputs * scale).numpy()
    assert found.loss == pytest.approx(float(F.mse_loss(outputs, targets)))
    assert found.metrics["mae"] == pytest.approx(mean_absolute_error(known, guess), rel=1e-5)
    assert found.metrics["rmse"] == pytest.approx(math.sqrt(mean_squared_error(known, guess)), rel=1e-5)
    assert found.metrics["r2"] == pytest.approx(r2_score(targets, outputs), rel=1e-5)
