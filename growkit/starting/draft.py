"""Settings on their way to a file: what the data are, what suits them, what the user says beside."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growkit.config import Config, lay_overrides
from growkit.config.data import AugmentSettings, SplitSettings
from growkit.data.records import CLASSIFICATION, REGRESSION, Data, Source
from growkit.data.sources import read_source
from growkit.data.splits import assemble
from growkit.errors import DataError, UserInputError
from growkit.starting.images import class_names, image_section
from growkit.starting.page import Section, page
from growkit.starting.recipe import growth_section, seed_for, train_section
from growkit.starting.recognise import Found
from growkit.starting.sequences import pair_section, text_section
from growkit.starting.tables import table_section

__all__ = ["Draft", "draft"]

MOST_CLASSES = 8  # that are named


@dataclass
class Draft:
    """Settings with their comments.

    Attributes:
        found: the data, in words.
        why: this model.
        values: the settings, by section.
        comments: by section and key.
        notes: what the user should know.
    """

    found: str = ""
    why: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: str, section: Section) -> None:
        """Add a section, in place."""
        self.values[name] = section.values
        self.comments |= {(name, key): text for key, text in section.comments.items()}

    def override(self, overrides: Sequence[str]) -> Config:
        """Lay the user's settings on top, in place, and say so beside them."""
        self.values, config = lay_overrides(self.values, overrides, "growkit init")
        for text in overrides:
            section, _, key = text.partition("=")[0].strip().partition(".")
            if not key:  # the section as a whole: what was said of its keys may no longer hold
                self.comments = {place: said for place, said in self.comments.items() if place[0] != section}
            self.comments[(section, key.split(".")[0]) if key else ("", section)] = "as given to growkit init"
        return config

    def text(self, place: Path) -> str:
        """The file."""
        command = f"growkit init {shlex.quote(str(place))}"
        head = [f"Written by `{command}`, for {self.found}.", "`growkit schema` prints all there is to set."]
        return page(head, self.values, self.comments)


def draft(found: Found, target: str | None, overrides: Sequence[str]) -> Draft:
    """Read the data and choose all settings.

    Raises:
        UserInputError: the data cannot be used, or the user's settings are wrong.
    """
    made = Draft(values={"version": 1, "seed": 0}, comments={("", "seed"): "of everything random"})
    section, made.notes = _data_section(found, target)
    made.put("run", _run_section())
    made.put("data", section)
    config = made.override(overrides)
    source = read_source(config.data)
    _check_classes(source, found)
    data, split = _split(source, config)
    made.found = _described(found, source)
    empty = [name for name in ("test", "validate") if len(data.split(name)) == 0]
    if empty:
        made.notes.append(f"no samples are held out for {' and '.join(empty)}, for some classes have too few")
    _complete(section, found, source, data, split)
    made.put("data", section)
    seed = seed_for(data)
    made.why = seed.why
    given = config.train.epochs if "epochs" in config.train.model_fields_set else None
    train = train_section(seed, data, given)
    made.put("model", seed.model)
    made.put("train", train)
    made.put("growth", growth_section(seed, train.values["epochs"]))
    made.override(overrides)
    return made


def _data_section(found: Found, target: str | None) -> tuple[Section, list[str]]:
    match found.kind:
        case "images":
            return image_section(found)
        case "table":
            return table_section(found, target)
        case "text":
            return text_section(found), []
        case "pairs":
            return pair_section(found), []
    section = Section()
    section.put("name", "npz", "train_images, train_labels, and maybe test_images, test_labels")
    section.put("path", str(found.path), "as seen from where growkit runs")
    return section, []


def _run_section() -> Section:
    section = Section()
    section.put("root", "runs", "a run is written to ROOT/NAME/STAMP, NAME being that of this file")
    if importlib.util.find_spec("tensorboard") is None:
        section.put("tensorboard", False, "tensorboard is not installed")
    return section


def _check_classes(source: Source, found: Found) -> None:
    if source.task == CLASSIFICATION and len(source.pool.targets.unique()) < 2:
        remedy = "; a folder for each is expected" if found.kind == "images" else ""
        raise UserInputError(f"{found.path}: there must be at least two classes to tell apart, found one{remedy}")


# --- splits


def _split(source: Source, config: Config) -> tuple[Data, SplitSettings]:
    """The data in the largest splits that leave each class a sample to train on."""
    settings = config.data
    augment = getattr(settings, "augment", AugmentSettings())
    error: DataError | None = None
    for split in [settings.split] if "split" in settings.model_fields_set else _ladder():
        try:
            return assemble(source, split, settings.split_seed, augment, settings.limit), split
        except DataError as found:
            error = error or found
    assert error is not None
    raise error


def _ladder() -> Iterator[SplitSettings]:
    yield SplitSettings()
    yield SplitSettings(diagnose=0.0, accept=0.0)
    yield SplitSettings(validate=0.0, diagnose=0.0, accept=0.0)  # type: ignore[call-arg]
    yield SplitSettings(test=0.0, validate=0.0, diagnose=0.0, accept=0.0)  # type: ignore[call-arg]


# --- what only the data as they were read can tell


def _complete(section: Section, found: Found, source: Source, data: Data, split: SplitSettings) -> None:
    if found.kind == "table":
        other = "regression" if data.task == CLASSIFICATION else "classification"
        scaled = "" if data.task == CLASSIFICATION else "; values are put to mean 0 and deviation 1 to train"
        section.put("task", data.task, f"or {other}{scaled}")
    if len(data.input_shape) == 3:
        section.put("augment", _augmentation(found, data), "of training images; flip: false where left is not right")
    own = f"null takes the data's own, {len(source.own['test'])}" if "test" in source.own else "null is 20 %"
    few = "" if split == SplitSettings() else "; less is held out than usual, for some classes have few samples"
    section.put("split", split.model_dump(by_alias=True), f"shares held out; test: {own}; train is the rest{few}")
    section.put("limit", None, "a number takes so many samples, for a first try")


def _augmentation(found: Found, data: Data) -> dict[str, Any]:
    """Windows of the padded image, and mirrored ones where that is likely to keep the class."""
    names = class_names(found.path) if found.kind == "images" else []
    letters = bool(names) and all(len(name) == 1 for name in names)
    return {"crop": min(data.input_shape[1:]) // 8, "flip": data.input_shape[0] == 3 and not letters, "cutout": 0}


def _described(found: Found, source: Source) -> str:
    count, shape = len(source.pool), tuple(source.pool.inputs.shape[1:])
    also = "".join(f", {len(own):,} more for {name}" for name, own in source.own.items())
    if found.kind == "pairs":
        return f"{count:,} pairs of texts"
    if found.kind == "text":
        return f"{count * shape[0]:,} bytes in {count:,} windows of {shape[0]}"
    noun = "images" if len(shape) == 3 else "rows"
    form = f"{shape[1]}x{shape[2]}, {'grey' if shape[0] == 1 else 'rgb'}" if len(shape) == 3 else f"{shape[0]} features"
    return f"{count:,} {noun} ({form}) {_aim(found, source)}{also}"


def _aim(found: Found, source: Source) -> str:
    targets = source.pool.targets
    if source.task == REGRESSION:
        return f"with values from {targets.min().item():g} to {targets.max().item():g}"
    counts = targets.bincount().tolist()
    names = class_names(found.path) if found.kind == "images" else []
    if len(names) != len(counts) or len(names) > MOST_CLASSES:
        return f"of {len(counts)} classes, {min(counts):,} to {max(counts):,} of each"
    named = ", ".join(f"{name} {number:,}" for name, number in zip(names, counts, strict=True))
    return f"of {len(counts)} classes: {named}"
