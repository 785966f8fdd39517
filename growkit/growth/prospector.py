"""Asks growth batches what growth promises, for the policies that must be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from growkit.config.growth import NormSettings, RandomSettings
from growkit.cost import BACKWARD_AND_FORWARD, count_flops
from growkit.data import Data, batches
from growkit.graph import GrowthSite
from growkit.growth.base import Prospects
from growkit.growth.depths import BlockOrder
from growkit.growth.initializers.norms import fan_out_norm
from growkit.growth.promise import measure_blocks
from growkit.growth.statistics import Loss, Measurement
from growkit.growth.statistics.prospects import BATCHES, measure_prospects
from growkit.surgery import Inputs

__all__ = ["Prospector"]


@dataclass(frozen=True)
class Prospector:
    """Draws batches of training data and measures the prospects of all sites that may grow.

    Attributes:
        model: that is trained; it is left as it was.
        sites: gives those that may grow now. blocks: gives the blocks that may come now.
        data: with a train split.
        loss: data loss of (outputs, targets).
        initializer: its settings say how long new slices are; those without a length count as random's.
        batch_size: of each growth batch.
        stream: source of the batches and of their augmentation; no other draw depends on it.
        channels_last: the layout of images.
    """

    model: nn.Module
    sites: Callable[[], Sequence[GrowthSite]]
    data: Data
    loss: Loss
    initializer: object
    batch_size: int
    stream: torch.Generator
    channels_last: bool
    blocks: Callable[[], Sequence[BlockOrder]] = list

    def __call__(self) -> Prospects:
        (inputs, targets), *more = [self._draw() for _ in range(BATCHES)]
        measurement = Measurement(self.model, self.loss, inputs, targets, tuple(self.sites()), tuple(more))
        settings = self.initializer if isinstance(self.initializer, NormSettings) else RandomSettings()
        flops = count_flops(self.model, self.data.example(2)).total
        found = measure_prospects(measurement, lambda site, found: fan_out_norm(site, found, settings), flops)
        orders = self.blocks()
        promised = measure_blocks(self.model, self.loss, measurement.batches, orders)
        passes = found.passes + BACKWARD_AND_FORWARD * len(orders)
        return replace(found, sites={**found.sites, **promised}, passes=passes)

    def _draw(self) -> tuple[Inputs, torch.Tensor]:
        stream, layout = self.stream, self.channels_last
        drawn = batches(self.data, "train", self.batch_size, order=stream, augmentation=stream, channels_last=layout)
        inputs, targets = next(iter(drawn))
        return Inputs((inputs,)), targets
