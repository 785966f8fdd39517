"""From settings to a seed model, and whether a model fits its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from growkit.callables import call, named
from growkit.config.models import (
    CallableModelSettings,
    DensenetSettings,
    GptSettings,
    LiveModelSettings,
    LstmSettings,
    MlpSettings,
    MobilenetSettings,
    ModelSettings,
    ResnetSettings,
    Seq2seqSettings,
    VggSettings,
    VitSettings,
    WrnSettings,
)
from growkit.errors import ModelError
from growkit.models.densenet import DenseNet
from growkit.models.gpt import GPT
from growkit.models.library import LIBRARIES, of_library
from growkit.models.lstm import LSTM
from growkit.models.mlp import MLP
from growkit.models.mobilenet import MobileNet
from growkit.models.resnet import ResNet
from growkit.models.seq2seq import Seq2Seq
from growkit.models.vgg import VGG
from growkit.models.vit import ViT
from growkit.models.weights import load_weights
from growkit.models.wrn import WideResNet
from growkit.rng import isolated

__all__ = ["build_model", "check_output"]


def build_model(settings: ModelSettings, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Build a seed model; initial weights come from torch's global generator, which the caller seeds.

    Args:
        settings: which model.
        input_shape: of one input. A user's callable gets neither this nor num_outputs, only its `args`.
        num_outputs: classes or regression targets.

    Raises:
        ModelError: the model does not take such inputs, or a user's callable cannot be imported or called.
    """
    try:
        return _build(settings, input_shape, num_outputs)
    except (RuntimeError, MemoryError) as error:  # torch's word for no memory left is RuntimeError
        raise ModelError(f"model {settings.name!r} cannot be built: {error}") from error  # type: ignore[attr-defined]


def _build(settings: ModelSettings, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    match settings:
        case MlpSettings():
            return MLP(settings, input_shape, num_outputs)
        case VggSettings():
            return VGG(settings, input_shape, num_outputs)
        case WrnSettings():
            return WideResNet(settings, input_shape, num_outputs)
        case ResnetSettings():
            return ResNet(settings, input_shape, num_outputs)
        case MobilenetSettings():
            return MobileNet(settings, input_shape, num_outputs)
        case DensenetSettings():
            return DenseNet(settings, input_shape, num_outputs)
        case VitSettings():
            return ViT(settings, input_shape, num_outputs)
        case LstmSettings():
            return LSTM(settings, input_shape, num_outputs)
        case GptSettings():
            return GPT(settings, input_shape, num_outputs)
        case Seq2seqSettings():
            return Seq2Seq(settings, input_shape, num_outputs)
        case CallableModelSettings():
            return _called(settings, num_outputs)
        case LiveModelSettings():
            raise ModelError(
                "model 'live' is handed over in Python, as growkit.grow(model, train); a file must name a model"
            )
    raise TypeError(f"no model is made from {type(settings).__name__}")


def _called(settings: CallableModelSettings, num_outputs: int) -> nn.Module:
    library, _, name = settings.name.partition(":")
    if library in LIBRARIES:
        known = {"num_classes": num_outputs} if num_outputs else {}
        model = of_library(library, name, {**known, **settings.args})
    else:
        model = _call(settings)
    if settings.weights is not None:
        load_weights(model, Path(settings.weights), settings.weights_except)
    return model


def _call(settings: CallableModelSettings) -> nn.Module:
    make = named("model", settings.name, ModelError)
    if isinstance(make, nn.Module):
        raise ModelError(
            f"model {settings.name!r} must be a callable that builds a model, got an instance of "
            f"{type(make).__name__}: every run builds its own seed, with initial weights that follow from its seed; "
            "write a function that returns the model and name that"
        )
    model = call("model", settings.name, settings.args, ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {settings.name!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def check_output(model: nn.Module, example: Tensor, num_outputs: int, task: str) -> None:
    """Make sure that `model` gives one number per class or target; it runs once and is left as it was.

    Args:
        model: any module; its mode, buffers and torch's random state stay as they are.
        example: inputs [B, ...] on the model's device.
        num_outputs: classes, regression targets or tokens.
        task: "classification", "regression", "language" or "pairs".

    Raises:
        ModelError: the model does not take the inputs, or its output is not [B, num_outputs], for language and pairs
            [B, T, num_outputs].
    """
    try:
        output = _evaluate(model, example)
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"the model does not take inputs {list(example.shape)} of {example.dtype}: {type(error).__name__}: {error}"
        ) from error
    positions = [example.shape[-1]] if task in ("language", "pairs") else []
    wanted = [len(example), *positions, num_outputs]
    if not isinstance(output, Tensor):
        shape = ", ".join(map(str, ("B", *wanted[1:])))
        raise ModelError(f"the model must return one tensor [{shape}], got {type(output).__name__}")
    if list(output.shape) != wanted:
        noun = {"classification": "classes", "language": "tokens", "pairs": "tokens"}.get(task, "targets")
        raise ModelError(
            f"the model gives {list(output.shape)} outputs for {len(example)} inputs, the data have {num_outputs} "
            f"{noun}; it must give {wanted}"
        )


def _evaluate(model: nn.Module, example: Tensor) -> Any:
    """Outputs in evaluation mode. Buffers are lent as copies, so that one the forward writes to stays as it was."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), isolated():
            return functional_call(model.eval(), buffers, (example,))
    finally:
        for module, training in modes:
            module.training = training
