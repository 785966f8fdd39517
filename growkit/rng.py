"""Named random streams: each use of chance has its own, so that arms of an experiment can share some and not others.

Two runs with one seed share data order, augmentation and initial weights even where one of them grows and the other
does not: growth draws from its own stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["STREAMS", "Streams", "isolated"]

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
        self._lent: dict[str, tuple[Tensor, list[Tensor]]] = {}  # states of the global generators, CPU and CUDA

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

    @contextmanager
    def lent(self, name: str) -> Iterator[None]:
        """Let torch's global generators serve the stream `name` for a block, for what takes no generator: dropout.

        The next block goes on where this one ended; whatever drew from the global generators before or between the
        blocks finds them as it left them.
        """
        with isolated(self.seed_of(name)):
            if name in self._lent:
                cpu, cuda = self._lent[name]
                torch.set_rng_state(cpu)
                for device, state in enumerate(cuda):
                    torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._lent[name] = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in _devices()]


def _devices() -> list[int]:
    """The CUDA devices in use; asking one for its state would start it."""
    started = torch.cuda.is_available() and torch.cuda.is_initialized()
    return list(range(torch.cuda.device_count())) if started else []


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Run a block on torch's global generators, seeded if `seed` is given, and put their states back afterwards."""
    with torch.random.fork_rng(devices=_devices()):
        if seed is not None:
            torch.manual_seed(seed)
        yield
