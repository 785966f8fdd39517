"""Convolutions that this processor's bf16 kernels cannot train: found by looking, before a run relies on them.

Where a kernel strides over an input so small that some of its entries meet padding alone, oneDNN's bf16 kernels for
CPUs leave the gradient of those entries unwritten: whatever lay in memory becomes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["idle_entries", "strided_over_padding"]


def strided_over_padding(run: Callable[[], Any]) -> list[str]:
    """The convolutions in what `run` computes that stride over an input with kernel entries left idle, in words."""
    with _Convolutions() as seen:
        run()
    return list(dict.fromkeys(seen.found))


def idle_entries(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    """The entries of a kernel along one axis that no output position lays on the input itself."""
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    reached = {
        entry
        for position in range(outputs)
        for entry in range(kernel)
        if 0 <= position * stride + entry * dilation - padding < size
    }
    return [entry for entry in range(kernel) if entry not in reached]


class _Convolutions(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket is torch.ops.aten.convolution:
            self._look(*args[:7])
        return func(*args, **(kwargs or {}))

    def _look(
        self, inputs: Any, weight: Any, _: Any, stride: Sequence[int], padding: Any, dilation: Any, transposed: bool
    ) -> None:
        rank = weight.dim() - 2
        sizes = zip(
            inputs.shape[2:], weight.shape[2:], *(_each(one, rank) for one in (stride, padding, dilation)), strict=True
        )
        if not transposed and max(stride) > 1 and any(idle_entries(*one) for one in sizes):
            shape = "x".join(map(str, weight.shape[2:]))
            self.found.append(f"{shape} with stride {max(stride)} over {'x'.join(map(str, inputs.shape[2:]))}")


def _each(values: Sequence[int], rank: int) -> Sequence[int]:
    return values if len(values) == rank else [values[0]] * rank
