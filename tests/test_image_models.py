"""ResNet, MobileNet, DenseNet and ViT: published sizes, torchvision's own functions, what grows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import growkit
from growkit.config.models import (
    DensenetSettings,
    MobilenetSettings,
    ModelSettings,
    ResnetSettings,
    VggSettings,
    VitSettings,
    WrnSettings,
)
from growkit.errors import ModelError
from growkit.models import build_model
from growkit.rng import isolated
from growkit.surgery import Inputs, verify_sites

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)

# To the printed digits from He et al. 2016, table 6 (0.27 M and 0.85 M for ResNet-20 and -56); Howard et al. 2017,
# table 8 (4.2 M); Huang et al. 2017, table 2 (0.8 M); Dosovitskiy et al. 2021, table 1 (86 M for ViT-B); Zagoruyko and
# Komodakis 2016, table 5 (36.5 M); ImageNet ResNets and DenseNet-121 to the last digit from the pages of torchvision.
PUBLISHED = [
    (ResnetSettings(depth=20), CIFAR, 10, 269_722),
    (ResnetSettings(depth=56), CIFAR, 10, 853_018),
    (ResnetSettings(depth=18, stem="imagenet"), IMAGENET, 1000, 11_689_512),
    (ResnetSettings(depth=34, stem="imagenet"), IMAGENET, 1000, 21_797_672),
    (ResnetSettings(depth=50, stem="imagenet"), IMAGENET, 1000, 25_557_032),
    (ResnetSettings(depth=101, stem="imagenet"), IMAGENET, 1000, 44_549_160),
    (ResnetSettings(depth=152, stem="imagenet"), IMAGENET, 1000, 60_192_808),
    (MobilenetSettings(stem="imagenet"), IMAGENET, 1000, 4_231_976),
    (DensenetSettings(depth=100), CIFAR, 10, 769_162),
    (DensenetSettings(depth=121, stem="imagenet"), IMAGENET, 1000, 7_978_856),
    (VitSettings(size="base", patch=16), IMAGENET, 1000, 86_567_656),
    (VitSettings(size="tiny", patch=16), IMAGENET, 1000, 5_717_416),
    (WrnSettings(depth=28, width=10, norm="batchnorm"), CIFAR, 10, 36_479_194),
]


def build(settings: ModelSettings, shape: tuple[int, ...] = CIFAR, num_outputs: int = 10) -> nn.Module:
    with isolated(0):
        return build_model(settings, shape, num_outputs)


def test_vgg_has_the_convolutions_of_configuration_a():
    """Simonyan and Zisserman (2015), table 1, as torchvision builds it, with biases that the GradMax form has not."""
    torchvision = pytest.importorskip("torchvision")
    theirs = [one for one in torchvision.models.vgg11().features if isinstance(one, nn.Conv2d)]
    ours = build_model(VggSettings(), CIFAR, 10)
    found = [tuple(one.weight.shape) for one in ours.modules() if isinstance(one, nn.Conv2d)][
        :-1
    ]  # the last is the head
    assert found == [tuple(one.weight.shape) for one in theirs]
    assert sum(math.prod(shape) for shape in found) == 9_220_480 - 2_752  # torchvision's features, less their biases


@pytest.mark.parametrize(
    ("settings", "shape", "classes", "params"), PUBLISHED, ids=[f"{one[0].name}-{one[3]}" for one in PUBLISHED]
)
def test_models_have_their_published_size(settings: ModelSettings, shape: tuple[int, ...], classes: int, params: int):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # drawing weights does nothing there, and says so
        model = build_model(settings, shape, classes)
    assert sum(one.numel() for one in model.parameters()) == params


# --- the same functions as torchvision's


def in_order(theirs: nn.Module, ours: nn.Module) -> None:
    """Give ours the tensors of theirs, which stand in the same order."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert [one.shape for one in mine.values()] == [one.shape for one in other.values()]
    ours.load_state_dict(dict(zip(mine, other.values(), strict=True)))


NAMES = {  # torchvision's -> ours
    "conv_proj": "patches",
    "encoder.pos_embedding": "positions",
    "encoder.layers.encoder_layer_": "blocks.",
    "ln_": "norm",
    "encoder.ln": "norm",
    "self_attention.out_proj": "attention.out",
    "self_attention.": "attention.",
    "mlp.3": "mlp.2",
    "heads.head": "head",
}


def vision_transformer(theirs: nn.Module, ours: nn.Module) -> None:
    """Likewise by name; torch keeps queries, keys and values in one matrix."""
    taken: dict[str, Tensor] = {}
    for name, value in theirs.state_dict().items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if "in_proj_" in name:
            for part, each in zip(("query", "key", "value"), value.chunk(3), strict=True):
                taken[name.replace("in_proj_", f"{part}.")] = each
        else:
            taken[name] = value
    ours.load_state_dict(taken)


def torchvision_model(name: str, **settings: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = pytest.importorskip("torchvision").models
        if name == "vit":
            return models.VisionTransformer(num_classes=7, **settings)
        return models.get_model(name, weights=None, num_classes=7)

    return make


TINY_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}


@pytest.mark.parametrize(
    ("make", "settings", "copy"),
    [
        (torchvision_model("resnet18"), ResnetSettings(depth=18, stem="imagenet"), in_order),
        (torchvision_model("resnet50"), ResnetSettings(depth=50, stem="imagenet"), in_order),
        (torchvision_model("densenet121"), DensenetSettings(depth=121, stem="imagenet"), in_order),
        (torchvision_model("vit", **TINY_VIT), VitSettings(patch=8, depth=2), vision_transformer),
    ],
    ids=["resnet18", "resnet50", "densenet121", "vit"],
)
def test_models_compute_what_torchvisions_do(make: Callable, settings: ModelSettings, copy: Callable):
    with isolated(1):
        theirs = make().double()
        for parameter in theirs.parameters():  # its head and tokens start at 0
            parameter.data += 0.02 * torch.randn_like(parameter)
    ours = build(settings, (3, 32, 32), 7).double()
    copy(theirs, ours)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    for training in (False, True):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-9, atol=1e-9)


# --- shapes of their own


def test_a_resnet_pads_its_shortcuts_as_published():
    model = build(ResnetSettings(depth=20))
    x = torch.randn(2, 16, 8, 8)
    padded = model.blocks[3].shortcut(x)
    assert torch.equal(padded[:, 8:24], x[:, :, ::2, ::2]) and not padded[:, :8].any() and not padded[:, 24:].any()


def test_mobilenets_strides_lie_on_pointwise_convolutions():
    model = build(MobilenetSettings(width=0.1))
    assert {block.depthwise.stride for block in model.blocks} == {(1, 1)}
    assert [block.pointwise.stride[0] for block in model.blocks] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]


def test_a_vit_wants_whole_patches():
    with pytest.raises(ModelError, match="multiples of model.patch 5, got 32x32"):
        build(VitSettings(patch=5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResnetSettings(depth=21), "must be one of 20, 32, 44"),
        (lambda: ResnetSettings(depth=20, stem="imagenet"), "goes with stem: cifar"),
        (lambda: ResnetSettings(depth=18, shortcut="pad"), "shortcut: pad goes with"),
        (lambda: DensenetSettings(depth=99), "must be 121, 169, 201, or 6n"),
        (lambda: VitSettings(patch=0), "greater than or equal to 1"),
    ],
    ids=["depth", "stem", "shortcut", "densenet", "patch"],
)
def test_settings_that_fit_no_net_are_refused(make: Callable, message: str):
    with pytest.raises(ValidationError, match=message):
        make()


# --- narrow seeds

SEEDS = [
    (ResnetSettings(width=0.25), 10),
    (ResnetSettings(width=0.25, shortcut="conv"), 12),
    pytest.param(ResnetSettings(depth=50, block_width=0.5, width=0.25), 37, marks=pytest.mark.slow),
    (MobilenetSettings(width=0.1), 14),
    (DensenetSettings(depth=16, width=0.25), 15),
    (VitSettings(width=0.25, depth=2, patch=8), 9),
]


@pytest.mark.parametrize(("settings", "sites"), SEEDS, ids=str)
def test_every_width_of_a_seed_grows(settings: ModelSettings, sites: int):
    model = build(settings, (3, 16, 16))
    x = torch.randn(4, 3, 16, 16)
    verdict = verify_sites(model, list(growkit.find_sites(model, x)), Inputs((x,)))
    assert len(verdict.sites) == sites and not verdict.refusals


@pytest.mark.parametrize(("settings", "sites"), SEEDS, ids=str)
def test_a_seed_is_narrower_than_its_full_network(settings: ModelSettings, sites: int):
    full = settings.full()
    assert full is not None
    narrow, wide = build(settings, (3, 16, 16)), build(full, (3, 16, 16))
    names = dict(wide.named_parameters())
    assert names.keys() == dict(narrow.named_parameters()).keys()
    assert all(one.numel() <= names[name].numel() for name, one in narrow.named_parameters())
    assert sum(p.numel() for p in narrow.parameters()) < 0.7 * sum(p.numel() for p in wide.parameters())
