from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from growkit.device import ComputePolicy, choose_compute, exact_arithmetic
from growkit.environment import describe_environment
from growkit.errors import UserInputError

FP32 = ComputePolicy("cpu", "fp32", False, "test")
BF16 = ComputePolicy("cpu", "bf16", True, "test")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine of given capabilities: machine(cuda=None | "bf16" | "old", amx=..., avx=...)."""

    def make(cuda: str | None = None, amx: bool = False, avx: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: cuda == "bf16")
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)

    return make


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, ComputePolicy("cpu", "fp32", False, "the CPU has no bf16 instructions")),
        ({"avx": True}, ComputePolicy("cpu", "bf16", True, "the CPU has AVX-512 bf16 instructions")),
        ({"avx": True, "amx": True}, ComputePolicy("cpu", "bf16", True, "the CPU has AMX bf16 instructions")),
        ({"cuda": "bf16"}, ComputePolicy("cuda", "bf16", True, "Card has native bf16")),
        ({"cuda": "old", "amx": True}, ComputePolicy("cuda", "fp32", False, "Card has no native bf16")),
    ],
    ids=["plain CPU", "AVX-512", "AMX", "GPU", "old GPU"],
)
def test_auto_takes_what_the_machine_can(machine, capabilities, expected):
    machine(**capabilities)
    assert choose_compute() == expected


def test_cpu_is_taken_where_it_is_asked_for(machine):
    machine(cuda="bf16")
    assert choose_compute(device="cpu") == ComputePolicy("cpu", "fp32", False, "the CPU has no bf16 instructions")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_taken(machine, precision: str):
    machine()
    chosen = choose_compute(precision)
    assert chosen == ComputePolicy("cpu", precision, precision == "bf16", f"train.precision asks for {precision}")


def test_a_torch_build_without_the_probes_has_no_bf16(machine, monkeypatch: pytest.MonkeyPatch):
    machine()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert choose_compute().precision == "fp32"


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_cuda_without_cuda_is_refused(machine, precision: str):
    machine()
    with pytest.raises(UserInputError, match=r"train\.device must name .* got 'cuda' .*; use 'auto' or 'cpu'"):
        choose_compute(precision, "cuda")


def test_the_policy_is_a_json_record():
    record = BF16.to_json()
    assert json.loads(json.dumps(record)) == record
    assert ComputePolicy(**record) == BF16


def test_autocast_is_bf16_or_nothing():
    layer, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    with FP32.autocast():
        assert layer(inputs).dtype == torch.float32
    with BF16.autocast():
        assert layer(inputs).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


def test_placing_sets_the_memory_layout_in_place():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 2))
    weight, values = model[0].weight, model[0].weight.detach().clone()
    assert BF16.place(model) is model
    assert model[0].weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert torch.equal(weight, values)


def test_placing_for_fp32_keeps_the_layout():
    model = nn.Conv2d(3, 5, 3)
    assert FP32.place(model).weight.is_contiguous()


def test_exact_arithmetic_switches_autocast_off():
    layer, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    with BF16.autocast():
        with exact_arithmetic():
            assert torch.equal(layer(inputs), torch.nn.functional.linear(inputs, layer.weight, layer.bias))
            assert layer(inputs).dtype == torch.float32
        assert layer(inputs).dtype == torch.bfloat16


def precisions() -> list[str]:
    backends = torch.backends
    operators = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)  # type: ignore[attr-defined]
    return [operator.fp32_precision for operator in (*operators, backends.mkldnn.conv, backends.mkldnn.rnn)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_exact_arithmetic_switches_reduced_precision_off_and_back(matmul: str):
    torch.set_float32_matmul_precision(matmul)
    try:
        before = precisions()
        with pytest.raises(KeyError), exact_arithmetic():
            assert precisions() == ["ieee"] * 6
            raise KeyError
        assert precisions() == before
        assert torch.get_float32_matmul_precision() == matmul  # raises where torch finds its switches at odds
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_environment_is_a_json_record_of_what_results_depend_on():
    record = describe_environment()
    assert json.loads(json.dumps(record)) == record
    assert record["packages"]["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()


def test_the_environment_names_the_program_without_its_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/growkit", "run", "a.yaml"])
    assert describe_environment()["command"] == ["growkit", "run", "a.yaml"]


def test_the_environment_can_be_described_without_a_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", [])
    assert describe_environment()["command"] == []
