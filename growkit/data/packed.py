"""Decoded images on disk: one file for each state of a folder, checked by a hash before it is trusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from growkit.config.data import ImageFolderSettings
from growkit.errors import DataError
from growkit.folders import cache_folder

__all__ = ["Packed", "cache_file", "read_packed", "write_packed"]

VERSION = 2  # of how images are decoded


@dataclass(frozen=True, eq=False)
class Packed:
    """Decoded images.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        notes: what was left out, for the user.
    """

    images: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()


def cache_file(settings: ImageFolderSettings, parts: Sequence[tuple[str, Path, Sequence[str]]]) -> Path | None:
    """Where the images of these files, as they are now, are kept; None where the settings want no cache.

    A file that was changed has another size or another time of change, which nothing but the system can set. The name
    is of the folder with its settings, a dash, and the state of its files.

    Args:
        settings: of which those that change what is decoded count.
        parts: name, folder and files below it.
    """
    if settings.cache is False:
        return None
    how = {"version": VERSION, "size": settings.size, "mode": settings.mode, "skip_broken": settings.skip_broken}
    kind, state = hashlib.sha256(json.dumps(how, sort_keys=True).encode()), hashlib.sha256()
    for part, root, files in parts:
        kind.update(b"\0" + os.fsencode(f"{part}\0{root.resolve()}"))
        for name in files:
            found = os.stat(os.path.join(root, name))
            known = f"{part}/{name}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0"
            state.update(os.fsencode(known))
    folder = Path(settings.cache) if isinstance(settings.cache, str) else cache_folder() / "imagefolder"
    return folder / f"{kind.hexdigest()[:32]}-{state.hexdigest()[:32]}.safetensors"


def read_packed(path: Path | None) -> tuple[dict[str, Packed] | None, str | None]:
    """What lies there by part, None if there is nothing; and a note for the user where it is damaged."""
    from safetensors import SafetensorError, safe_open

    if path is None or not path.exists():
        return None, None
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            facts = json.loads((file.metadata() or {})["growkit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if _sha256(tensors) != facts["sha256"]:
            raise ValueError("its hash is another one")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        return None, f"{path}: the packed images were damaged ({error}), and are packed anew"
    notes = facts["notes"]
    return {
        part: Packed(tensors[f"{part}.images"], tensors[f"{part}.labels"], tuple(notes[part])) for part in notes
    }, None


def write_packed(path: Path | None, packed: Mapping[str, Packed]) -> None:
    """Keep images for the next time, under their name only when all is written, in place of those of earlier states.

    Raises:
        DataError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    if path is None:
        return
    tensors = {f"{part}.{name}": getattr(one, name) for part, one in packed.items() for name in ("images", "labels")}
    facts = {"sha256": _sha256(tensors), "notes": {part: one.notes for part, one in packed.items()}}
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, draft, metadata={"growkit": json.dumps(facts)})
        draft.replace(path)
        for earlier in path.parent.glob(f"{path.stem.partition('-')[0]}-*.safetensors"):
            if earlier != path:
                earlier.unlink(missing_ok=True)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise DataError(
            f"{path.parent}: the folder for packed images must be writable, got: {error.strerror}; set data.cache to "
            "another one, or to false"
        ) from error


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
