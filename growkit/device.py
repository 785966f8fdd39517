"""Where and in which precision to compute: decided by what the device can do, recorded, never by timing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from growkit.errors import UserInputError

__all__ = ["ComputePolicy", "choose_compute", "exact_arithmetic", "lacks_memory", "lay_channels_last"]


@dataclass(frozen=True)
class ComputePolicy:
    """The device and precision of a run.

    Attributes:
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16" (autocast; weights stay fp32).
        channels_last: whether 4-d weights and images lie channels-last in memory.
        reason: why, in words.
    """

    device: str
    precision: str
    channels_last: bool
    reason: str

    def autocast(self) -> AbstractContextManager[Any]:
        """A fresh autocast region; fp32 gets none."""
        if self.precision == "bf16":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` in place to the device and memory layout."""
        model.to(self.device)
        if self.channels_last:
            lay_channels_last(model)
        return model

    def to_json(self) -> dict[str, Any]:
        """The record kept in env.json."""
        return asdict(self)


@torch.no_grad()
def lay_channels_last(model: nn.Module) -> None:
    """Lay the 4-d parameters and buffers of `model` channels-last, in place; the others stay as they are.

    `model.to(memory_format=...)` would refuse a model that has a 3-d convolution.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _native_bf16(device: str) -> tuple[bool, str]:
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"{torch.cuda.get_device_name()} {'has' if native else 'has no'} native bf16"
    # torch.cpu's probes are private, and absent from some builds: no probe counts as no capability
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    if amx or avx:
        return True, "the CPU has " + ("AMX" if amx else "AVX-512") + " bf16 instructions"
    return False, "the CPU has no bf16 instructions"


def choose_compute(precision: str = "auto", device: str = "auto") -> ComputePolicy:
    """Decide device and precision from capabilities.

    Args:
        precision: "auto", "fp32" or "bf16" (train.precision).
        device: "auto", "cpu" or "cuda" (train.device).

    Raises:
        UserInputError: CUDA is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserInputError(
            "train.device must name a device this machine has, got 'cuda' but torch finds no CUDA device; "
            "use 'auto' or 'cpu'"
        )
    where = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if precision != "auto":
        return ComputePolicy(where, precision, precision == "bf16", f"train.precision asks for {precision}")
    native, reason = _native_bf16(where)
    return ComputePolicy(where, "bf16" if native else "fp32", native, reason)


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """True fp32 for checks: autocast off, no TF32 or bf16 in matrix products, convolutions and recurrent layers."""
    # operator by operator: torch's older switches (allow_tf32) cover several at once and cannot all be put back
    cuda, cudnn, onednn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    operators: list[Any] = [cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn]  # type: ignore[attr-defined]
    before = [operator.fp32_precision for operator in operators]
    try:
        for operator in operators:
            operator.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that no memory was left: torch's word for that on a CPU is a RuntimeError."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error) for text in ("not enough memory", "can't allocate memory"))
