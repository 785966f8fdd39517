"""A seed model that suits the data, and how it trains and grows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from growkit.data.batches import num_batches
from growkit.data.records import CLASSIFICATION, LANGUAGE, PAIRS, Data
from growkit.starting.page import Section

__all__ = ["Seed", "growth_section", "seed_for", "train_section"]

SMALL_SIDE = 64  # pixels up to which images go through the network at their own size
MANY_IMAGES, MANY_ROWS = 5_000, 5_000
FOR_TRANSFORMER, FOR_LARGER_TRANSFORMER = 256 * 1024, 4 * 2**20  # bytes of text
STEPS = 800  # of training that small data should get
LEAST_EPOCHS, MOST_EPOCHS = 20, 100
BATCHES = ((250, 16), (2_000, 32), (20_000, 64))  # up to so many samples; beyond, 128
EVENTS = 3

ADAMW = "or sgd, adam, adabound, {name: sam, rho: 0.05, base: ...}"
SGD = "or adam, adamw, adabound, {name: sam, rho: 0.05, base: ...}"
GRADMAX = {"name": "gradmax", "scale": 0.5}


@dataclass(frozen=True)
class Seed:
    """A seed model and what goes with it.

    Attributes:
        model: its settings.
        why: it was chosen.
        optimizer: likewise, for batches of 64 and more.
        sites: patterns of the widths that grow.
        initializer: how new units start.
        fallback: where the initializer does not serve.
        smoothing: of labels.
    """

    model: Section
    why: str
    optimizer: dict[str, Any]
    sites: tuple[str, ...] = ("*",)
    initializer: dict[str, Any] = field(default_factory=lambda: GRADMAX)
    fallback: str | None = None
    smoothing: float = 0.0


def seed_for(data: Data) -> Seed:
    """A model that begins at a quarter of its width, by the task and the shape of one input."""
    if data.task == LANGUAGE:
        return _language(len(data.train) * data.input_shape[0])
    if data.task == PAIRS:
        return _pairs()
    if len(data.input_shape) == 3:
        return _small_images(data) if max(data.input_shape[1:]) <= SMALL_SIDE else _large_images(data)
    return _table(data)


def _small_images(data: Data) -> Seed:
    width = 2 if len(data.train) >= MANY_IMAGES else 1
    model = Section()
    model.put("name", "wrn", "or resnet, vgg, mobilenet, densenet, vit, torchvision:NAME; growth.sites go with it")
    model.put("depth", 16, "10, 16, 22, 28, ...: more is slower and better")
    model.put("width", width, "of the residual stream, times 16/32/64; 4 and more for much data")
    model.put("block_width", 0.25, "the blocks begin at a quarter of theirs")
    return Seed(
        model,
        f"wrn, for images of at most {SMALL_SIDE} pixels keep their size through its stem",
        _sgd(0.1),
        sites=("blocks.*.conv1",),
        smoothing=0.1 if data.task == CLASSIFICATION else 0.0,
    )


def _large_images(data: Data) -> Seed:
    model = Section()
    model.put("name", "resnet", "or vgg, mobilenet, densenet, vit, torchvision:NAME")
    model.put("depth", 18, "or 34, 50, 101, 152: more is slower and better")
    model.put("stem", "imagenet", "quarters the sides of images at once; cifar keeps them")
    model.put("width", 0.25, "all channels begin at a quarter of theirs")
    return Seed(
        model,
        f"resnet with ImageNet's stem, for images of more than {SMALL_SIDE} pixels",
        _sgd(0.1),
        fallback="zero",
        smoothing=0.1 if data.task == CLASSIFICATION else 0.0,
    )


def _table(data: Data) -> Seed:
    width = 32 if len(data.train) >= MANY_ROWS else 16
    model = Section()
    model.put("name", "mlp", "or package.module:callable")
    model.put("hidden", [width, width], f"grows to {4 * width} each; one number for each layer")
    return Seed(model, "mlp, for rows of numbers", {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01})


def _language(size: int) -> Seed:
    model = Section()
    optimizer = {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1}
    if size < FOR_TRANSFORMER:
        model.put("name", "lstm", "or gpt, for longer texts")
        model.put("hidden", 128, "units at full width")
        model.put("width", 0.25, "embedding and units begin at a quarter of theirs")
        why = "lstm, for a short text"
        return Seed(model, why, {"name": "adam", "lr": 3e-3}, initializer={"name": "zero"})
    wide, depth, heads = (128, 4, 4) if size >= FOR_LARGER_TRANSFORMER else (64, 2, 2)
    model.put("name", "gpt", "or lstm")
    model.put("size", wide, "of the residual stream at full width, a multiple of heads")
    model.put("depth", depth, "blocks")
    model.put("heads", heads)
    model.put("width", 0.25, "stream, head size and MLPs begin at a quarter of theirs")
    model.put("tied", False, "true: the head is the embedding, whose stream then cannot grow")
    sites = ("embedding", "*.query#2", "*.value", "*.mlp.0")
    return Seed(model, "gpt, for a text that is long enough for a transformer", optimizer, sites, fallback="zero")


def _pairs() -> Seed:
    model = Section()
    model.put("name", "seq2seq")
    model.put("size", 64, "of the residual streams at full width, a multiple of heads")
    model.put("depth", 2, "blocks of the encoder, and of the decoder")
    model.put("heads", 2)
    model.put("width", 0.25, "streams, head size and MLPs begin at a quarter of theirs")
    optimizer = {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1}
    sites = ("source", "target", "*.query#2", "*.value", "*.mlp.0")
    return Seed(model, "seq2seq, for pairs of texts", optimizer, sites, fallback="zero")


def _sgd(rate: float) -> dict[str, Any]:
    return {"name": "sgd", "lr": rate, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def train_section(seed: Seed, data: Data, epochs: int | None) -> Section:
    """How long and in which batches the data train.

    Args:
        seed: the model.
        data: in their splits.
        epochs: as the user wants it; None sizes them to the samples.
    """
    batch = next((batch for most, batch in BATCHES if len(data.train) <= most), 128)
    steps = num_batches(data, "train", batch, training=True)
    sized = min(MOST_EPOCHS, max(LEAST_EPOCHS, 5 * math.ceil(STEPS / steps / 5)))
    optimizer = dict(seed.optimizer)
    if optimizer["name"] == "sgd" and batch < 64:
        optimizer["lr"] = round(optimizer["lr"] * batch / 64, 3)  # smaller batches have noisier gradients
    section = Section()
    section.put(
        "epochs", epochs or sized, f"{steps} step{'s' if steps > 1 else ''} each; more train longer, and mostly better"
    )
    section.put("batch_size", batch, "less where memory is short")
    section.put("optimizer", optimizer, SGD if optimizer["name"] == "sgd" else ADAMW)
    section.put("schedule", {"name": "cosine", "warmup_epochs": 1}, "or constant, step")
    if seed.smoothing:
        section.put("label_smoothing", seed.smoothing, "0.0 for none")
    section.put("device", "auto", "cuda where there is one; or cpu")
    return section


def growth_section(seed: Seed, epochs: int) -> Section:
    """Three events in the first three fifths of training, from a quarter of the width to all of it."""
    every = max(1, epochs // 5)
    section = Section()
    when = {"name": "periodic", "start": every, "every": every, "events": EVENTS, "unit": "epochs"}
    section.put("when", when, "or never; unit: steps")
    section.put("where", "all", "sites of an event; or {name: round_robin, sites_per_event: 1}")
    section.put("sites", list(seed.sites), "widths that may grow; growkit inspect FILE lists them")
    section.put("how_many", {"name": "fraction_of_seed", "fraction": 1.0}, "or {name: fixed, units: 4}")
    name = seed.initializer["name"]
    others = "or random, zero" if name == "gradmax" else "gradmax has no closed form for recurrent units; or random"
    section.put("initializer", seed.initializer if len(seed.initializer) > 1 else name, others)
    if seed.fallback is not None:
        section.put("fallback", seed.fallback, "where several layers write to a width, which gradmax does not serve")
    section.put("target", 4.0, "times the seed's width: the full network")
    section.put("budget", {"params": None, "flops": None}, "numbers end growth where the model would become larger")
    return section
