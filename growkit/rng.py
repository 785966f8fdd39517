"""Named random streams: each use of chance has its own, so that arms of an experiment can share some and not others.

Two runs with one seed share data order, augmentation and initial weights even where one of them grows and the other
does not: growth draws from its own stream.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["STREAMS", "Streams", "global_state", "isolated", "seed_cpu", "set_global_state"]

STREAMS = ("init", "order", "augmentation", "growth", "dropout")


class Streams:
    """The random streams of one run.

    Args:
        seed: the run's seed. A stream's own seed is the first 8 bytes of SHA-256 over "seed/name".

    Example:
        >>> a, b = Streams(0), Streams(0)
        >>> bool((torch.rand(3, generator=a.generator("order")) == torch.rand(3, generator=b.generator("order"))).all())
        True
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}
        self._lent: dict[str, GlobalState] = {}

    def seed_of(self, name: str) -> int:
        """The 63-bit seed of the stream `name`, one of STREAMS."""
        if name not in STREAMS:
            raise ValueError(f"a random stream must be one of {', '.join(STREAMS)}, got {name!r}")
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def generator(self, name: str) -> torch.Generator:
        """The CPU generator of the stream `name`; the same object at every call, so that it advances."""
        if name not in self._generators:
            self._generators[name] = torch.Generator().manual_seed(self.seed_of(name))
        return self._generators[name]

    def fork(self) -> Streams:
        """The same generators, with lent streams that go on from here on their own."""
        other = Streams(self.seed)
        other._generators, other._lent = self._generators, dict(self._lent)
        return other

    def rejoin(self, other: Streams) -> None:
        """Go on, in place, from where the lent streams of a fork have come to."""
        self._lent = dict(other._lent)

    @contextmanager
    def lent(self, name: str) -> Iterator[None]:
        """Let the global generators serve the stream `name` for a block, for what takes no generator: dropout.

        The next block goes on where this one ended; whatever drew from the global generators before or between the
        blocks finds them as it left them.
        """
        with isolated(self.seed_of(name)):
            if name in self._lent:
                set_global_state(self._lent[name])
            try:
                yield
            finally:
                self._lent[name] = global_state()


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Run a block on the global generators of torch, numpy and Python, and put their states back afterwards.

    Args:
        seed: seeds all of them if given.
    """
    before = global_state()
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        set_global_state(before)


def seed_cpu(seed: int) -> None:
    """Seed the global generators of torch on the CPU, numpy and Python, within `isolated`.

    For single samples: torch.manual_seed, which asks every kind of device, takes longer than many a transform.
    """
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@dataclass(frozen=True, eq=False)
class GlobalState:
    """The states of torch's, numpy's and Python's global generators; equal if all would go on alike."""

    cpu: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GlobalState):
            return NotImplemented
        torch_same = len(self.cuda) == len(other.cuda) and all(
            map(torch.equal, [self.cpu, *self.cuda], [other.cpu, *other.cuda])
        )
        (name, keys, *rest), (other_name, other_keys, *others) = self.numpy, other.numpy
        numpy_same = (name, rest) == (other_name, others) and np.array_equal(keys, other_keys)
        return torch_same and numpy_same and self.python == other.python


def global_state() -> GlobalState:
    """Take a picture of them."""
    cuda = [torch.cuda.get_rng_state(device) for device in _devices()]
    return GlobalState(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())


def set_global_state(state: GlobalState) -> None:
    """Put them back."""
    torch.set_rng_state(state.cpu)
    for device, one in enumerate(state.cuda):
        torch.cuda.set_rng_state(one, device)
    np.random.set_state(state.numpy)
    random.setstate(state.python)


def _devices() -> list[int]:
    """The CUDA devices in use; asking one for its state would start it."""
    started = torch.cuda.is_available() and torch.cuda.is_initialized()
    return list(range(torch.cuda.device_count())) if started else []
