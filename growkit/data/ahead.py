"""Samples that other processes read ahead, one by one, in an order that is fixed beforehand.

What comes out depends on nothing but the rows and their seeds: not on the number of processes, nor on the batches.
Processes and not threads, since transforms draw from global random generators, which threads share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growkit.data.files import ImageFiles
from growkit.errors import DataError, TrainingError
from growkit.rng import isolated

__all__ = ["PerSample", "ahead", "read_ahead"]

CHUNK = 32  # samples that a process reads at a time, so that several share a batch and little shared memory is held


class PerSample(Protocol):
    """A random transform of single images."""

    def apply(self, image: Tensor, seed: int) -> Tensor:
        """The image [C, H, W] transformed, by chance that follows from `seed` alone; it seeds the global generators."""
        ...


def read_ahead(
    images: Tensor | ImageFiles,
    batches: Sequence[Tensor],
    *,
    workers: int,
    transform: PerSample | None = None,
    seeds: Tensor | None = None,
) -> Generator[Tensor, None, None]:
    """Batches of single images, on the CPU.

    Args:
        images: uint8 [N, C, H, W].
        batches: the rows of each batch.
        workers: processes that read about two batches ahead; 0 reads here, when a batch is asked for.
        transform: of each image.
        seeds: int64 [N] what each image's transform draws by.

    Raises:
        DataError: an image cannot be read or transformed.
        TrainingError: a process ended.
    """
    if isinstance(images, Tensor):
        images = images.cpu()
    sizes = [math.ceil(len(rows) / CHUNK) for rows in batches]
    chunks = ahead(
        _Samples(images, transform),
        _keys(batches, seeds),
        workers=min(workers, sum(sizes)),
        depth=2 * max(sizes, default=0),
    )
    with closing(chunks):
        for size in sizes:
            yield torch.cat(list(islice(chunks, size)))


def _keys(batches: Sequence[Tensor], seeds: Tensor | None) -> Iterator[list[tuple[int, int]]]:
    for batch in batches:
        for rows in batch.split(CHUNK):
            drawn = torch.zeros_like(rows) if seeds is None else seeds[rows]
            yield list(zip(rows.tolist(), drawn.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class _Samples:
    images: Tensor | ImageFiles
    transform: PerSample | None

    def __call__(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        with nullcontext() if self.transform is None else isolated():
            return torch.stack([self._one(row, seed) for row, seed in keys])

    def _one(self, row: int, seed: int) -> Tensor:
        # cloned: a transform may write to its image
        image = self.images[row].clone() if isinstance(self.images, Tensor) else self.images.read(row)
        return image if self.transform is None else self.transform.apply(image, seed)


def ahead(work: Callable[[Any], Any], chunks: Iterable[Any], workers: int, depth: int) -> Generator[Any, None, None]:
    """`work` of each chunk, in order, done by other processes; they end when the generator is closed.

    Args:
        work: of one chunk.
        chunks: may be made lazily.
        workers: processes; 0 works here.
        depth: chunks that are begun before they are asked for, at least two for each process.

    Raises:
        DataError: raised by `work`.
        TrainingError: a process ended.
    """
    if workers == 0:
        for chunk in chunks:
            with _one_thread():
                done = work(chunk)
            yield done
        return
    loader: DataLoader[Any] = DataLoader(
        _Tasks(work),
        batch_sampler=chunks,  # type: ignore[arg-type] - handed to the dataset as they are
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(depth / workers)),
        generator=torch.Generator(),  # else it draws from the global one, which dropout has
    )
    results = iter(loader)
    try:
        while True:
            try:
                done = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                raise TrainingError(
                    f"a process that reads data ended: {error}; lower data.workers, 0 has none"
                ) from error
            if isinstance(done, _Refused):
                raise DataError(done.message)
            yield done
    finally:
        del results  # ends the processes


class _Tasks(Dataset[Any]):
    """Chunks as a DataLoader asks for them: a chunk is a batch to it."""

    def __init__(self, work: Callable[[Any], Any]):
        self._work = work

    def __getitems__(self, chunk: Any) -> Any:
        try:
            return self._work(chunk)
        except DataError as error:
            return _Refused(str(error))  # torch would wrap what is raised in a traceback


@dataclass(frozen=True)
class _Refused:
    message: str


def _unchanged(result: Any) -> Any:
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """As torch's processes have: sums over many threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
