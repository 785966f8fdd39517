"""Settings of the data sources, the five splits and the augmentation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue, Tag, WithJsonSchema, model_validator

from growkit.config.base import BY_NAME, BY_NAME_OR_PATH, CallablePath, Fraction, Seed, Settings, named

__all__ = [
    "AnyData",
    "AnyPolicy",
    "AugmentSettings",
    "AutoAugmentSettings",
    "CallableDataSettings",
    "Cifar10Settings",
    "Cifar100Settings",
    "DataSettings",
    "DigitsSettings",
    "ImageFolderSettings",
    "ImageSettings",
    "LabelNoiseSettings",
    "MemorySettings",
    "NpzSettings",
    "RandAugmentSettings",
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


class RandAugmentSettings(Settings):
    """Operations drawn at random for each image (Cubuk et al., 2020), as torchvision has them.

    Color leaves grey images as they are.

    operations: how many, one after the other. magnitude: their strength, of 0 .. 30.
    """

    name: Literal["randaugment"] = "randaugment"
    operations: Annotated[int, Field(ge=1)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class AutoAugmentSettings(Settings):
    """One of 25 learned pairs of operations, drawn for each image (Cubuk et al., 2019), as torchvision has them.

    policy: the data that the pairs were learned on.
    """

    name: Literal["autoaugment"] = "autoaugment"
    policy: Literal["cifar10", "imagenet", "svhn"]


AnyPolicy = Annotated[RandAugmentSettings | AutoAugmentSettings, BY_NAME, named("randaugment")]


class AugmentSettings(Settings):
    """Augmentation of training batches, in this order; validation and test are never augmented.

    crop: pixels of zero padding, after which a window of the original size is cut at random; 0 is off.
    flip: mirror left-right with probability 1/2. policy: operations on each uint8 image of 1 or 3 channels; null is
    off. cutout: side of the square set to the mean (DeVries and Taylor, 2017). mixup: alpha of the Beta(alpha, alpha)
    that the share of each sample is drawn from, once for a batch; the rest is another sample of the batch, and targets
    are shared likewise (Zhang et al., 2018); 0 is off. Accuracy of training is then that of the class with the larger
    share.
    """

    crop: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    policy: AnyPolicy | None = None
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: Annotated[float, Field(ge=0.0)] = 0.0


class LabelNoiseSettings(Settings):
    """Symmetric label noise: classes of samples are replaced at random, once, before training.

    rate: probability that a label is replaced, each by itself. among: any draws the new class from all K, the true one
    included, so that a share of rate (K - 1) / K is wrong (Zhang et al., 2017; Jiang et al., 2018); others draws it
    from the K - 1 wrong ones, so that a share of rate is wrong (van Rooyen et al., 2015). Papers call either a noise
    rate; result.json counts the wrong labels. splits: where. seed: fixes the noise of every sample, whatever split it
    is in; labels replaced at one rate are replaced at every higher one.
    """

    rate: Annotated[float, Field(ge=0.0, le=1.0)]
    among: Literal["any", "others"] = "any"
    splits: Annotated[
        tuple[Literal["train", "validate", "diagnose", "accept", "test"], ...], Field(strict=False, min_length=1)
    ] = ("train",)
    seed: Seed = 0


class DataSettings(Settings):
    """What every source shares: how much of it, how it is split, and what is wrong with it on purpose.

    limit: samples kept before splitting, stratified; test is untouched. split_seed: fixes who is in which split.
    train_share: share of the train split that is kept, stratified; the other splits are untouched, and a smaller share
    lies inside a larger one. label_noise: wrong labels; null is none.
    """

    limit: Annotated[int, Field(ge=10)] | None = None
    split_seed: Seed = 0
    split: SplitSettings = SplitSettings()
    train_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    label_noise: LabelNoiseSettings | None = None


def _names_itself(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and not isinstance(value.get("name"), str):
        raise ValueError(f"must be a mapping with the name of a transform and its arguments, got {value!r:.60}")
    return value


_TRANSFORM_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}
Transform = Annotated[dict[str, JsonValue], BeforeValidator(_names_itself), WithJsonSchema(_TRANSFORM_SCHEMA)]


class ImageSettings(DataSettings):
    """A source of images.

    transforms: of torchvision.transforms.v2, by name and with its arguments, for each training image by itself and
    before augment; they are slow and must keep the size. workers: processes for them; null takes as many as there are
    processors, 0 takes the run's own.
    """

    augment: AugmentSettings = AugmentSettings()
    transforms: Annotated[tuple[Transform, ...], Field(strict=False)] = ()
    workers: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _have_work_for_workers(self) -> ImageSettings:
        if self.workers is not None and not self.transforms and not self._READS_FILES:
            raise ValueError(f"workers are for transforms, of which there are none, got {self.workers}; remove it")
        return self

    _READS_FILES: ClassVar[bool] = False


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
    """Images in a folder for each class, decoded once into a cache, or streamed from their files.

    path: PATH/CLASS/FILE, or PATH/train/CLASS/FILE with val and test beside train, which are taken as they are.
    size: side of the square that images are resized to and cut from; null wants all of one size. mode: rgb or grey.
    skip_broken: leave out what cannot be decoded, and say so; else it is an error. cache: folder for the decoded
    images; null takes growkit/imagefolder in the user's cache, false keeps none. stream: decode images whenever they
    are needed; auto does if all of them would take more than a quarter of the memory. workers: processes that decode
    and transform; null takes as many as there are processors, 0 takes the run's own.
    """

    name: Literal["imagefolder"] = "imagefolder"
    path: str
    size: Annotated[int, Field(ge=1)] | None = None
    mode: Literal["rgb", "grey"] = "rgb"
    skip_broken: bool = False
    cache: str | Literal[False] | None = None
    stream: Literal["auto", True, False] = "auto"

    _READS_FILES: ClassVar[bool] = True

    @model_validator(mode="after")
    def _cache_what_is_kept(self) -> ImageFolderSettings:
        if self.stream is True and isinstance(self.cache, str):
            raise ValueError(f"cache is for images that are not streamed, got {self.cache!r} with stream: true")
        return self


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
    out pairs that are longer, and say so; else they are an error, but for those of the standard library.
    """

    name: Literal["text_pair"] = "text_pair"
    path: str | None = None
    length: Annotated[int, Field(ge=2)] = 64
    skip_long: bool = False


class CallableDataSettings(ImageSettings):
    """Any callable `package.module:callable` that returns data: (inputs, targets), a torch Dataset or DataLoader.

    A mapping of `train`, and of `validate` and `test` if they are not to be split off it, may hold those too. The
    global random generators are seeded with split_seed for the call.
    arguments: the keyword arguments it is called with.
    """

    name: CallablePath
    arguments: dict[str, JsonValue] = {}


class MemorySettings(ImageSettings):
    """Data handed over in Python, to `growkit.grow`; a file can only record that they were."""

    name: Literal["memory"] = "memory"


AnyData = Annotated[
    Annotated[DigitsSettings, Tag("digits")]
    | Annotated[Cifar10Settings, Tag("cifar10")]
    | Annotated[Cifar100Settings, Tag("cifar100")]
    | Annotated[NpzSettings, Tag("npz")]
    | Annotated[ImageFolderSettings, Tag("imagefolder")]
    | Annotated[TabularSettings, Tag("tabular")]
    | Annotated[TeacherSettings, Tag("teacher")]
    | Annotated[TextSettings, Tag("text")]
    | Annotated[TextPairSettings, Tag("text_pair")]
    | Annotated[MemorySettings, Tag("memory")]
    | Annotated[CallableDataSettings, Tag("callable")],
    BY_NAME_OR_PATH,
    named("digits"),
]
