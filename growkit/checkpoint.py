"""A grown model on disk: weights in safetensors, architecture in JSON; it comes back without pickle.

`architecture.json` holds how the seed was made and every edit since (see `Architecture`), and under `weights_sha256`
the SHA-256 of `weights.safetensors`. Loading builds the seed, replays the edits, which restores the structure, and
reads the weights, if they are the ones the record was written for.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from growkit.config.models import AnyModel, CallableModelSettings, ModelSettings
from growkit.device import lay_channels_last
from growkit.errors import UserInputError
from growkit.models import LIBRARIES, build_model
from growkit.report import write_atomically
from growkit.rng import isolated
from growkit.surgery import Record, edited_buffers, lookup, record_from_json, replay

__all__ = ["ARCHITECTURE_VERSION", "Architecture", "load", "load_model", "save_model"]

ARCHITECTURE_VERSION = 1


@dataclass(frozen=True)
class Architecture:
    """How to rebuild a model's structure.

    Attributes:
        seed: settings of the seed model; None where the run started from a live module, which must then be given again.
        seed_class: name of the live module's class, for messages.
        input_shape, num_outputs: what the seed was built for.
        channels_last: memory layout of the weights; it decides the order of summation, and with it the last bits.
        edits: every edit since the seed, in order.
    """

    seed: ModelSettings | None
    seed_class: str
    input_shape: tuple[int, ...]
    num_outputs: int
    channels_last: bool
    edits: Sequence[Record]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, with a version field (docs/formats.md)."""
        return {
            "version": ARCHITECTURE_VERSION,
            "seed": None if self.seed is None else self.seed.model_dump(mode="json", by_alias=True),
            "seed_class": self.seed_class,
            "input_shape": list(self.input_shape),
            "num_outputs": self.num_outputs,
            "channels_last": self.channels_last,
            "edits": [edit.to_json() for edit in self.edits],
        }

    @classmethod
    def from_json(cls, record: Any, where: Path) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            UserInputError: another version, or not such a record.
        """
        if not isinstance(record, dict):
            raise UserInputError(f"{where} must be an architecture record, got a {type(record).__name__}")
        if record.get("version") != ARCHITECTURE_VERSION:
            raise UserInputError(
                f"{where}: version must be {ARCHITECTURE_VERSION}, got {record.get('version')!r}; another version of "
                "growkit wrote it"
            )
        try:
            seed = None if record["seed"] is None else TypeAdapter(AnyModel).validate_python(record["seed"])
            edits = tuple(record_from_json(edit) for edit in record["edits"])
            shape = tuple(record["input_shape"])
            return cls(seed, record["seed_class"], shape, record["num_outputs"], record["channels_last"], edits)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # ValidationError is a ValueError
            raise UserInputError(
                f"{where} must be an architecture record, got one that is damaged: {type(error).__name__}: {error}"
            ) from error


def save_model(folder: Path, model: nn.Module, architecture: Architecture) -> None:
    """Write `weights.safetensors` and `architecture.json` into `folder`, each whole or not at all.

    The weights are the model's state, and with it any buffer that an edit has widened or brought, also a non-persistent
    one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {**model.state_dict(), **_edited_buffers(model, architecture)}
    # a copy each: safetensors refuses tensors that share memory, as tied weights do
    weights = write_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
    record = {**architecture.to_json(), "weights_sha256": hashlib.sha256(weights).hexdigest()}
    write_atomically(folder / "weights.safetensors", weights)
    write_atomically(folder / "architecture.json", json.dumps(record).encode())


def load(
    run_dir: str | Path, stage: str | int = "final", *, seed_model: nn.Module | None = None, trust: bool = False
) -> nn.Module:
    """The model of a run, on the CPU in eval mode, bit-equal to what was saved.

    Args:
        run_dir: the run folder, or the folder of one saved model, such as a stage's.
        stage: "final", or the number of a train stage, from 0.
        seed_model: the seed, for runs that started from a live module; it is grown and filled in place, where it lies,
            or left as it was if it does not fit.
        trust: allow importing the user's code that a `package.module:callable` model names.

    Raises:
        UserInputError: no such run or stage, a damaged file, or a seed that is missing or does not fit.
    """
    run = Path(run_dir)
    if stage != "final" and not str(stage).isdecimal():
        raise UserInputError(f"stage must be 'final' or the number of a train stage, from 0, got {stage!r}")
    folder = run / "model" if stage == "final" else run / "stages" / f"{int(stage):03d}"
    if stage == "final" and (run / "architecture.json").is_file():
        folder = run
    if not (folder / "architecture.json").is_file():
        saved = sorted(int(path.parent.name) for path in run.glob("stages/[0-9]*/architecture.json"))
        hint = f"there are stages {', '.join(map(str, saved))}" if saved else "is it a run folder?"
        raise UserInputError(f"{run}: a run folder must hold a saved model, got none for stage {stage!r}; {hint}")
    return load_model(folder, seed_model=seed_model, trust=trust)


def load_model(folder: Path, *, seed_model: nn.Module | None = None, trust: bool = False) -> nn.Module:
    """The model saved in `folder`; see `load`."""
    try:
        record = json.loads((folder / "architecture.json").read_text())
        weights = (folder / "weights.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise UserInputError(f"{folder} must hold architecture.json and weights.safetensors, got: {error}") from error
    architecture = Architecture.from_json(record, folder / "architecture.json")
    tensors = _verified(weights, record.get("weights_sha256"), folder / "weights.safetensors")
    model = _seed(architecture, seed_model, trust)
    if seed_model is not None:
        _restore(copy.deepcopy(seed_model), architecture, tensors, folder)  # a trial: a seed that does not fit stays
    _restore(model, architecture, tensors, folder)
    return model.eval()


def _verified(weights: bytes, expected: str | None, where: Path) -> dict[str, Tensor]:
    found = hashlib.sha256(weights).hexdigest()
    if found != expected:
        raise UserInputError(
            f"{where} must have the SHA-256 that architecture.json records, {expected}, got {found}; the file is "
            "damaged or from another model, so copy both again"
        )
    try:
        return read_tensors(weights)
    except SafetensorError as error:
        raise UserInputError(f"{where} must be a safetensors file, got: {error}") from error


def _seed(architecture: Architecture, seed_model: nn.Module | None, trust: bool) -> nn.Module:
    if architecture.seed is None:
        if seed_model is None:
            raise UserInputError(
                f"this run grew a live module ({architecture.seed_class}), which no file can rebuild; "
                "give the seed again: load(run_dir, seed_model=...)"
            )
        return seed_model
    if seed_model is not None:
        return seed_model
    seed = architecture.seed
    if isinstance(seed, CallableModelSettings):
        if seed.name.partition(":")[0] not in LIBRARIES and not trust:
            raise UserInputError(
                f"loading this model imports your code {seed.name!r}; allow it with load(run_dir, trust=True)"
            )
        seed = seed.model_copy(update={"weights": None})  # the run's own come over them
    with isolated():
        return build_model(seed, architecture.input_shape, architecture.num_outputs)


def _restore(model: nn.Module, architecture: Architecture, tensors: dict[str, Tensor], folder: Path) -> None:
    """Give a seed, in place, the structure, values and memory layout that were saved."""
    try:
        replay(model, architecture.edits)
    except IndexError as error:
        raise UserInputError(
            f"{folder}/architecture.json must be an architecture record, got edits that are damaged: {error}"
        ) from error
    _fill(model, architecture, tensors, folder)
    if architecture.channels_last:
        lay_channels_last(model)


def _edited_buffers(model: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """Buffers that edits changed or brought, by name: a state dict leaves out those that are not persistent."""
    return {name: lookup(model, name, "buffer") for name in edited_buffers(architecture.edits)}


@torch.no_grad()
def _fill(model: nn.Module, architecture: Architecture, tensors: dict[str, Tensor], folder: Path) -> None:
    persistent, edited = model.state_dict(), _edited_buffers(model, architecture)
    state = {**persistent, **edited}
    problems = [f"{name} is missing from the file" for name in state.keys() - tensors.keys()]
    problems += [f"{name} is in the file only" for name in tensors.keys() - state.keys()]
    problems += [
        f"{name} is {_kind(state[name])} in the model and {_kind(tensors[name])} in the file"
        for name in state.keys() & tensors.keys()
        if _kind(state[name]) != _kind(tensors[name])
    ]
    if problems:
        raise UserInputError(f"{folder}/weights.safetensors must fit the model, but " + "; ".join(sorted(problems)[:8]))
    model.load_state_dict({name: tensors[name] for name in persistent})
    for name, buffer in edited.items():
        buffer.copy_(tensors[name])


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
