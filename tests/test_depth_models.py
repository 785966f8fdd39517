"""growkit's own seed models grow deeper, whatever stands between their layers."""

from __future__ import annotations

import pytest
import torch

from growkit import deepen, find_places
from growkit.config.models import MlpSettings, ModelSettings, VggSettings
from growkit.models import build_model

SEEDS = {
    "mlp": (MlpSettings(hidden=(6, 5)), (4,), 2),
    "mlp, batch norm": (MlpSettings(hidden=(6, 5), norm="batchnorm"), (4,), 2),
    "vgg": (VggSettings(width=0.02), (1, 8, 8), 8),
    "vgg, batch norm": (VggSettings(width=0.02, norm="batchnorm"), (1, 8, 8), 8),
}


@pytest.mark.parametrize("name", SEEDS)
def test_every_layer_may_be_followed_by_one_more(name: str) -> None:
    settings, shape, layers = SEEDS[name]
    torch.manual_seed(0)
    model, x = build_model(settings, shape, 3), torch.randn(4, *shape)
    before = model.eval()(x)
    places = find_places(model, x)
    assert len(places) == layers
    deepen(model, places[1])
    torch.testing.assert_close(model.eval()(x), before)
    assert len(find_places(model, x)) == layers + 1


@pytest.mark.parametrize("settings", [MlpSettings(hidden=(6, 5), activation="gelu")], ids=["gelu"])
def test_an_activation_that_is_not_idempotent_is_refused(settings: ModelSettings) -> None:
    places = find_places(build_model(settings, (4,), 3), torch.randn(4, 4))
    assert not list(places) and "no idempotent activation" in places.refusals[0].reason
