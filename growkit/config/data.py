"""Settings of the data sources, the five splits and the augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from growkit.config.base import BY_NAME, Fraction, Seed, Settings, named

__all__ = [
    "AnyData",
    "AugmentSettings",
    "Cifar10Settings",
    "Cifar100Settings",
    "DataSettings",
    "DigitsSettings",
    "ImageFolderSettings",
    "MemorySettings",
    "NpzSettings",
    "SplitSettings",
    "TabularSettings",
    "TeacherSettings",
    "TextPairSettings",
    "TextSettings",
]


class SplitSettings(Settings):
    """Shares of the five splits; train is what remains.

    test: null takes the data set's own test split, or 20 % where it has none. validate: share of what is left after
    test; steers growth and tuning. diagnose: share of the same; serves diagnosis. accept: share of the same; read once,
    by the refinement gate.
    """

    test: Fraction | None = None
    validate_: Fraction = Field(default=0.1, alias="validate")
    diagnose: Fraction = 0.1
    accept: Fraction = 0.1

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> SplitSettings:
        held_out = self.validate_ + self.diagnose + self.accept
        if held_out >= 1.0:
            raise ValueError(f"validate + diagnose + accept must be < 1 so that train is not empty, got {held_out:g}")
        return self


class AugmentSettings(Settings):
    """Augmentation of training images, one vectorised operation per batch.

    crop: pixels of zero padding, after which a window of the original size is cut at random; 0 is off.
    flip: mirror left-right with probability 1/2. cutout: side of the square set to the mean (DeVries and Taylor, 2017).
    """

    crop: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    cutout: Annotated[int, Field(ge=0)] = 0


class DataSettings(Settings):
    """What every source shares: how much of it, and how it is split.

    limit: samples kept before splitting, stratified; test is untouched. split_seed: fixes who is in which split.
    """

    limit: Annotated[int, Field(ge=10)] | None = None
    split_seed: Seed = 0
    split: SplitSettings = SplitSettings()


class ImageSettings(DataSettings):
    """A source of images."""

    augment: AugmentSettings = AugmentSettings()


class DigitsSettings(ImageSettings):
    """scikit-learn's 1 797 handwritten digits, 8x8, embedded: no download."""

    name: Literal["digits"] = "digits"
    augment: AugmentSettings = AugmentSettings(crop=1)


class CifarSettings(ImageSettings):
    """CIFAR through torchvision.

    root: the folder it lies in; null takes the environment variable GROWKIT_DATA. download: fetch it if it is missing.
    """

    root: str | None = None
    download: bool = False
    augment: AugmentSettings = AugmentSettings(crop=4, flip=True)


class Cifar10Settings(CifarSettings):
    """CIFAR-10: 50 000 + 10 000 images, 32x32x3, 10 classes (Krizhevsky, 2009)."""

    name: Literal["cifar10"] = "cifar10"


class Cifar100Settings(CifarSettings):
    """CIFAR-100: 50 000 + 10 000 images, 32x32x3, 100 classes (Krizhevsky, 2009)."""

    name: Literal["cifar100"] = "cifar100"


class NpzSettings(ImageSettings):
    """A NumPy archive with `train_images`, `train_labels` and optionally `test_images`, `test_labels`.

    Images are uint8 [N, H, W, C] or [N, H, W]; features may be float [N, D]. Labels are integers [N].
    path: the archive.
    """

    name: Literal["npz"] = "npz"
    path: str


class ImageFolderSettings(ImageSettings):
    """Images in a folder for each class, decoded once into a cache; all of them lie in memory.

    path: PATH/CLASS/FILE, or PATH/train/CLASS/FILE with val and test beside train, which are taken as they are.
    size: side of the square that images are resized to and cut from; null wants all of one size. mode: rgb or grey.
    skip_broken: leave out what cannot be decoded, and say so; else it is an error. cache: folder for the decoded
    images; null takes growkit/imagefolder in the user's cache, false keeps none. workers: threads; null takes as many
    as there are processors.
    """

    name: Literal["imagefolder"] = "imagefolder"
    path: str
    size: Annotated[int, Field(ge=1)] | None = None
    mode: Literal["rgb", "grey"] = "rgb"
    skip_broken: bool = False
    cache: str | Literal[False] | None = None
    workers: Annotated[int, Field(ge=1)] | None = None


class TabularSettings(DataSettings):
    """A CSV with a header; numbers are put to mean 0 and deviation 1 of the train split, other columns become 0/1.

    So are values to predict: a loss of 1 is that of predicting their mean.

    path: the file. target: the column to predict. test_path: a table of its own to test on; null splits it off. task:
    classification, regression, or auto, which takes text and up to 50 different whole numbers for classes. categories:
    columns of numbers that are none. ignore: columns to leave out. delimiter: between cells.
    """

    name: Literal["tabular"] = "tabular"
    path: str
    target: str
    test_path: str | None = None
    task: Literal["auto", "classification", "regression"] = "auto"
    categories: Annotated[tuple[str, ...], Field(strict=False)] = ()
    ignore: Annotated[tuple[str, ...], Field(strict=False)] = ()
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","


class TeacherSettings(DataSettings):
    """Gaussian inputs labelled by a random teacher network (the MLP experiment of Evci et al., ICLR 2022).

    widths: the teacher's layers, input first, output last; weights are drawn from U(-1, 1), hidden units are ReLU.
    """

    name: Literal["teacher"] = "teacher"
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=2)] = (20, 10, 10)
    samples: Annotated[int, Field(ge=10)] = 1000
    teacher_seed: Seed = 0


class TextSettings(DataSettings):
    """A text as bytes, for language models: each is predicted from those before it.

    path: a UTF-8 file; null takes the docstrings of Python's standard library, which are there wherever Python is.
    length: bytes of a window; windows lie side by side, and are what is split and counted.
    """

    name: Literal["text"] = "text"
    path: str | None = None
    length: Annotated[int, Field(ge=2)] = 128


class TextPairSettings(DataSettings):
    """Pairs of texts as bytes, such as a sentence and its translation: the second is predicted byte by byte.

    path: a UTF-8 file with a pair on each line, a tab between; null takes names of Python's standard library with the
    first line of their docstrings. length: the longest sequence, in bytes and one more for its end. skip_long: leave
    out pairs that are longer, and say so; else they are an error.
    """

    name: Literal["text_pair"] = "text_pair"
    path: str | None = None
    length: Annotated[int, Field(ge=2)] = 64
    skip_long: bool = False


class MemorySettings(ImageSettings):
    """Data handed over in Python, to `growkit.grow`; a file can only record that they were."""

    name: Literal["memory"] = "memory"


AnyData = Annotated[
    DigitsSettings
    | Cifar10Settings
    | Cifar100Settings
    | NpzSettings
    | ImageFolderSettings
    | TabularSettings
    | TeacherSettings
    | TextSettings
    | TextPairSettings
    | MemorySettings,
    BY_NAME,
    named("digits"),
]
