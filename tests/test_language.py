"""Language models: text as data, loss and scores by token, what grows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import growkit
from growkit.config import config_from_overrides
from growkit.config.data import TextPairSettings, TextSettings
from growkit.config.models import GptSettings, LstmSettings, ModelSettings, Seq2seqSettings
from growkit.config.train import AutoLossSettings
from growkit.data import SPLITS, data_from_user, load_data
from growkit.data.text import BEGIN, END, PADDING, docstrings
from growkit.device import choose_compute
from growkit.errors import DataError, ModelError
from growkit.evaluation import evaluate
from growkit.losses import build_loss
from growkit.models import build_model
from growkit.rng import isolated
from growkit.surgery import Inputs, verify_sites

WORDS = "the quick brown fox jumps over the lazy dog, "


def text_file(folder: Path, text: bytes = WORDS.encode() * 40) -> TextSettings:
    path = folder / "words.txt"
    path.write_bytes(text)
    return TextSettings(path=str(path), length=16)


# --- data


def test_targets_are_the_inputs_one_byte_on(tmp_path: Path):
    data = load_data(text_file(tmp_path))
    assert (data.task, data.num_outputs, data.input_shape) == ("language", 256, (16,))
    windows = {}
    for name in SPLITS:
        split = data.splits[name]
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        windows |= dict(zip(data.indices[name].tolist(), split.inputs, strict=True))
    read = torch.cat([windows[number] for number in sorted(windows)])
    assert bytes(read.tolist()) == (WORDS.encode() * 40)[: len(read)]


def test_docstrings_are_the_default():
    text = docstrings()
    assert len(text) == 256 * 1024 and b"Return" in text
    data = load_data(TextSettings(limit=100))
    assert data.input_shape == (128,) and len(data.fingerprint()["inputs_sha256"]) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"one\ntwo\nthr\xe9e\n" * 40, r"words.txt:3: a text must be UTF-8, but byte 11 is 0xe9.*iconv"),
        (b"too short", r"at least 10 windows of data.length 16 bytes, got 9 bytes"),
    ],
)
def test_a_wrong_text_is_explained(tmp_path: Path, text: bytes, message: str):
    with pytest.raises(DataError, match=message):
        load_data(text_file(tmp_path, text))


def test_a_missing_text_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none.txt: data.path must name a text file.*No such file"):
        load_data(TextSettings(path=str(tmp_path / "none.txt")))


def test_token_numbers_of_a_user_are_language():
    tokens = torch.arange(60 * 9).view(60, 9) % 11
    data = data_from_user((tokens[:, :-1], tokens[:, 1:]))
    assert (data.task, data.num_outputs) == ("language", 11)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(20, 5), torch.zeros(20, 5, dtype=torch.long), "where inputs are token numbers"),
        (torch.zeros(20, 4, dtype=torch.long), torch.zeros(20, 5, dtype=torch.long), "where inputs are token numbers"),
        (torch.full((20, 5), -1), torch.zeros(20, 5, dtype=torch.long), "must be >= 0, got -1"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(inputs: Tensor, targets: Tensor, message: str):
    with pytest.raises(DataError, match=message):
        data_from_user((inputs, targets))


# --- loss and scores


def test_the_loss_is_the_mean_over_tokens():
    outputs, targets = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    expected = torch.stack([cross_entropy(o, t) for o, t in zip(outputs, targets, strict=True)]).mean()
    torch.testing.assert_close(build_loss(AutoLossSettings(), "language")(outputs, targets), expected)


class Guess(nn.Module):
    """Says that each token comes again, with a certainty of its own."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * nn.functional.one_hot(tokens, 4).float()


def test_scores_of_language_are_by_token():
    tokens = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0, 0] * 30).view(60, 5)
    data = data_from_user((tokens[:, :-1], tokens[:, 1:]))
    found = evaluate(Guess(math.log(9.0)), data, "train", choose_compute("fp32", "cpu"), batch_size=7)
    assert found is not None
    again = (data.train.inputs == data.train.targets).double().mean().item()
    loss = -again * math.log(9 / 12) - (1 - again) * math.log(1 / 12)
    assert found.accuracy == pytest.approx(again) and found.samples == len(data.train)
    assert found.loss == pytest.approx(loss) and found.metrics["perplexity"] == pytest.approx(math.exp(loss))


def test_a_model_of_other_outputs_is_refused():
    tokens = torch.randint(0, 5, (40, 6))
    model = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(40, 5))
    with pytest.raises(ModelError, match=r"gives \[2, 5\] outputs for 2 inputs.*5 tokens; it must give \[2, 5, 5\]"):
        growkit.grow(model, (tokens[:, :-1], tokens[:, 1:]), observers=())


# --- models

SEEDS: list[tuple[ModelSettings, int]] = [
    (LstmSettings(hidden=16, layers=2, width=0.5), 3),
    (LstmSettings(hidden=16, embedding=12), 2),
    (LstmSettings(hidden=16, tied=True), 1),
    (GptSettings(size=16, depth=2, heads=2, tied=False, width=0.5), 9),
    (GptSettings(size=16, depth=2, heads=2, mlp_width=0.25), 8),
]


def build(settings: ModelSettings) -> nn.Module:
    with isolated(0):
        return build_model(settings, (12,), 20)


@pytest.mark.parametrize(("settings", "sites"), SEEDS, ids=str)
def test_every_width_of_a_language_model_grows(settings: ModelSettings, sites: int):
    model, tokens = build(settings), torch.randint(0, 20, (4, 12))
    verdict = verify_sites(model, list(growkit.find_sites(model, tokens)), Inputs((tokens,)))
    assert len(verdict.sites) == sites and not verdict.refusals


@pytest.mark.parametrize("settings", [settings for settings, _ in SEEDS], ids=str)
def test_no_position_sees_a_later_one(settings: ModelSettings):
    model, tokens = build(settings), torch.randint(0, 20, (3, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 20
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_gpt_has_the_published_size():
    with torch.device("meta"):
        model = build_model(GptSettings(size=768, depth=12, heads=12), (1024,), 50257)
    # 124 M, Radford et al. 2019 as released; their attention has biases, their head none
    assert sum(one.numel() for one in model.parameters()) == 124_439_808


@pytest.mark.parametrize("name", ["lstm", "gpt"])
def test_a_language_model_needs_sequences(name: str):
    settings = LstmSettings() if name == "lstm" else GptSettings()
    with pytest.raises(ModelError, match=rf"model '{name}' needs sequences of tokens \[T\].*\[3, 8, 8\].*'text'"):
        build_model(settings, (3, 8, 8), 10)


@pytest.mark.parametrize(
    "model",
    [
        {"name": "lstm", "hidden": 16, "width": 0.5},
        {"name": "gpt", "size": 16, "depth": 1, "heads": 2, "width": 0.5, "tied": False},
    ],
    ids=["lstm", "gpt"],
)
def test_a_language_model_grows_in_a_run_and_comes_back(tmp_path: Path, model: dict):
    settings = text_file(tmp_path)
    config = config_from_overrides(
        {
            "data": {"name": "text", "path": settings.path, "length": 16},
            "model": model,
            "train": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "adam", "lr": 1e-2}},
            "growth": {"when": {"name": "periodic", "start": 1, "events": 1}, "initializer": "zero", "target": 2.0},
            "run": {"root": str(tmp_path / "runs"), "tensorboard": False},
        }
    )
    done = growkit.run(config, observers=())
    assert len(done.events) == 1 and done.events[0].grown and done.events[0].change.worst < 1e-5
    record = json.loads((done.folder / "result.json").read_text())
    assert record["test"]["perplexity"] == pytest.approx(math.exp(record["test"]["loss"]))
    again, tokens = growkit.load(done.folder), torch.randint(0, 256, (2, 16))
    assert torch.equal(again(tokens), done.model(tokens))


# --- pairs of sequences


def pairs_file(folder: Path, lines: list[str], **settings: object) -> TextPairSettings:
    path = folder / "pairs.tsv"
    path.write_text("\n".join(lines) + "\n")
    return TextPairSettings(path=str(path), length=10, **settings)  # type: ignore[arg-type]


PAIRS = [f"{'abcdefg'[: 1 + k % 7]}\t{'ABCDEFG'[: 1 + k % 7]}" for k in range(60)]


def test_pairs_are_padded_and_shifted(tmp_path: Path):
    data = load_data(pairs_file(tmp_path, PAIRS))
    assert (data.task, data.num_outputs, data.input_shape) == ("pairs", 259, (2, 10))
    (source, so_far), target = data.train.inputs[0], data.train.targets[0]
    text = bytes(one for one in source.tolist() if one < 256)
    assert source.tolist() == [*text, END] + [PADDING] * (9 - len(text))
    assert so_far.tolist() == [BEGIN, *text.upper()] + [PADDING] * (9 - len(text))
    assert target.tolist() == [*text.upper(), END] + [-100] * (9 - len(text))


def test_names_and_docstrings_are_the_default():
    data = load_data(TextPairSettings())
    assert data.task == "pairs" and sum(len(split) for split in data.splits.values()) > 1900
    assert any("longer than data.length 64 were left out" in note for note in data.notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no tab", r"pairs.tsv:61: a line must be source, tab, target, got 0 tabs$"),
        ("one\t", r"pairs.tsv:61: .* got 1 tabs and an empty part"),
        ("one\tmuch too long", r"pairs.tsv:61: a sequence must have at most data.length 10 tokens, got 14.*skip_long"),
    ],
)
def test_a_wrong_pair_is_named_by_its_line(tmp_path: Path, line: str, message: str):
    with pytest.raises(DataError, match=message):
        load_data(pairs_file(tmp_path, [*PAIRS, line]))


def test_long_pairs_may_be_left_out(tmp_path: Path):
    data = load_data(pairs_file(tmp_path, [*PAIRS, "one\tmuch too long"], skip_long=True))
    (note,) = data.notes
    assert note.endswith("pairs.tsv: 1 pairs longer than data.length 10 were left out")


def test_padding_does_not_count():
    outputs, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    targets[0, 2:] = -100
    kept = targets != -100
    torch.testing.assert_close(
        build_loss(AutoLossSettings(), "pairs")(outputs, targets), cross_entropy(outputs[kept], targets[kept])
    )


SEQ2SEQ = Seq2seqSettings(size=16, depth=1, heads=2)


def seq2seq() -> nn.Module:
    with isolated(0):
        return build_model(SEQ2SEQ, (2, 12), 30)


def test_every_width_of_a_seq2seq_grows():
    model, tokens = seq2seq(), torch.randint(0, 29, (4, 2, 12))
    tokens[:, :, 8:] = 29
    verdict = verify_sites(model, list(growkit.find_sites(model, tokens)), Inputs((tokens,)))
    assert len(verdict.sites) == 13 and not verdict.refusals


def test_what_pads_a_source_is_not_seen_and_the_target_not_ahead():
    model, tokens = seq2seq().eval(), torch.randint(0, 29, (3, 2, 12))
    tokens[:, 0, 8:] = 29
    before = model(tokens)
    with torch.no_grad():
        model.source_positions[8:] += 1.0
    torch.testing.assert_close(model(tokens), before)
    tokens[:, 1, 7:] = 3
    torch.testing.assert_close(model(tokens)[:, :7], before[:, :7])
    tokens[:, 0, 2] = (tokens[:, 0, 2] + 1) % 29
    assert not torch.allclose(model(tokens)[:, :7], before[:, :7])


def test_a_seq2seq_needs_pairs():
    with pytest.raises(ModelError, match=r"'seq2seq' needs pairs of token sequences \[2, T\].*\[12\].*'text_pair'"):
        build_model(SEQ2SEQ, (12,), 30)


def test_a_seq2seq_learns_to_copy(tmp_path: Path):
    settings = pairs_file(tmp_path, PAIRS * 4)
    config = config_from_overrides(
        {
            "data": {"name": "text_pair", "path": settings.path, "length": 10},
            "model": {"name": "seq2seq", "size": 16, "depth": 1, "heads": 2, "width": 0.5},
            "train": {"epochs": 12, "batch_size": 16, "optimizer": {"name": "adam", "lr": 1e-2}},
            "growth": {"when": {"name": "periodic", "start": 3, "events": 1}, "initializer": "zero", "target": 2.0},
            "run": {"root": str(tmp_path / "runs"), "tensorboard": False},
        }
    )
    done = growkit.run(config, observers=())
    assert done.events[0].grown and done.events[0].change.worst < 1e-5
    assert done.result["test"]["accuracy"] > 0.9
