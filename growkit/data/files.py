"""Images that stay in their files: they stand where a tensor of images does, and are decoded when asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from growkit.config.data import ImageFolderSettings
from growkit.data.decoding import decode_image
from growkit.errors import DataError

__all__ = ["ImageFiles", "files_sha256", "num_workers"]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images [N, C, H, W], uint8, each in a file.

    As of a tensor: length, shape, dtype, device, `images[rows]`, which decodes, `index_select` and `to`, which do not.

    Attributes:
        root: the folder.
        names: of all its images, as bytes below `root`: one array, which every selection shares.
        rows: int64 [N] which of them these are.
        image_shape: (C, H, W) of each.
        settings: how they are decoded.
        device: where decoded images go.
    """

    root: Path
    names: np.ndarray
    rows: Tensor
    image_shape: tuple[int, ...]
    settings: ImageFolderSettings
    device: torch.device = torch.device("cpu")
    dtype = torch.uint8

    @classmethod
    def of(
        cls, root: Path, names: Sequence[str], image_shape: tuple[int, ...], settings: ImageFolderSettings
    ) -> ImageFiles:
        """All of `names` below `root`. One that cannot be decoded is an error from here on, whatever `skip_broken`."""
        encoded = np.array([os.fsencode(name) for name in names])
        strict = settings.model_copy(update={"skip_broken": False})
        return cls(root, encoded, torch.arange(len(names)), image_shape, strict)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.rows), *self.image_shape))

    def dim(self) -> int:
        """4."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Decode the images `chosen` [B] -> [B, C, H, W]."""
        rows = torch.arange(len(self))[chosen.cpu() if isinstance(chosen, Tensor) else chosen].tolist()
        if not rows:
            return torch.empty((0, *self.image_shape), dtype=torch.uint8, device=self.device)
        with ThreadPoolExecutor(num_workers(self.settings.workers) or 1) as threads:
            return torch.stack(list(threads.map(self.read, rows))).to(self.device)

    def index_select(self, dim: int, rows: Tensor) -> ImageFiles:
        """The images `rows`, still in their files; `dim` must be 0."""
        if dim != 0:
            raise ValueError(f"images in files are selected along dimension 0, got {dim}")
        return replace(self, rows=self.rows[rows])

    def to(self, device: torch.device | str) -> ImageFiles:
        """The same files, decoded for `device`."""
        return replace(self, device=torch.device(device))

    def read(self, row: int) -> Tensor:
        """One image [C, H, W], on the CPU.

        Raises:
            DataError: it cannot be decoded, or has another size than the others.
        """
        name = self.name(row)
        image = decode_image(self.root, self.settings, name)
        assert not isinstance(image, str), "settings say that a broken image is an error"
        if image.shape != self.image_shape:
            ours, theirs = (f"{shape[1]}x{shape[2]}" for shape in (self.image_shape, image.shape))
            raise DataError(
                f"{self.root / name}: all images must have one size, {ours}, got {theirs}; set data.size, which "
                "resizes and crops"
            )
        return torch.from_numpy(image)

    def name(self, row: int) -> str:
        """The path of an image below the root."""
        return os.fsdecode(self.names[int(self.rows[row])])


def files_sha256(parts: Iterable[ImageFiles]) -> str:
    """SHA-256 over names, sizes and times of change (mtime) of files in their order: no image is read.

    Raises:
        DataError: a file is gone.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        root = os.fsencode(part.root)
        for name in part.names[part.rows.numpy()].tolist():
            file = os.path.join(root, name)  # a Path for each of a million takes longer than asking for its state
            try:
                state = os.stat(file)
            except OSError as error:
                raise DataError(f"{os.fsdecode(file)}: an image must stay there, but {error.strerror}") from error
            digest.update(b"\0" + name + f"\0{state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


def num_workers(asked: int | None) -> int:
    """`data.workers`, where null means as many as there are processors."""
    return os.cpu_count() or 1 if asked is None else asked
