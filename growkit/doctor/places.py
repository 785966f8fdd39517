"""The folders that runs write to and read from."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from growkit.doctor.checks import Check
from growkit.errors import UserInputError
from growkit.folders import DATA_VARIABLE, cache_folder, check_writable, nearest_existing

__all__ = ["data_checks", "place_checks"]

SCARCE = 2**30  # bytes left below which a disk is named
GIB = 2**30

CIFAR = {
    "cifar10": ("cifar-10-batches-py", ("batches.meta", "test_batch", *(f"data_batch_{k}" for k in range(1, 6)))),
    "cifar100": ("cifar-100-python", ("meta", "test", "train")),
}


def place_checks(root: str) -> list[Check]:
    """The folder of runs, which must be writable, and the cache, which should."""
    cache = "export XDG_CACHE_HOME=FOLDER, or set data.cache to another one or to false"
    return [
        _writable("run root", Path(root), "choose another run.root", essential=True),
        _writable("cache", cache_folder(), cache, essential=False),
    ]


def _writable(name: str, folder: Path, remedy: str, *, essential: bool) -> Check:
    try:
        if essential:
            check_writable(folder)
        existing = nearest_existing(folder)
        with tempfile.TemporaryFile(dir=existing) as file:  # permissions alone do not know of full or read-only disks
            file.write(b"\0" * 4096)
        free = shutil.disk_usage(existing).free
    except UserInputError as error:
        return Check("places", name, "problem", str(error).rpartition("; ")[0], remedy, essential)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Check("places", name, "problem", f"{folder} cannot be written: {reason}", remedy, essential)
    found = f"{folder}{'' if existing == folder.absolute() else ' can be made'}, {free / GIB:.1f} GiB free"
    if free < SCARCE:
        return Check("places", name, "problem", found, f"free some space, or {remedy}")
    return Check("places", name, "ok", found, essential=essential)


def data_checks() -> list[Check]:
    """The published data sets below the folder that GROWKIT_DATA names."""
    root, set_it = os.environ.get(DATA_VARIABLE), f"export {DATA_VARIABLE}=FOLDER"
    if not root:
        found = f"{DATA_VARIABLE} is not set; data 'cifar10' and 'cifar100' then need data.root"
        return [Check("data", "data root", "missing", found, set_it)]
    if not Path(root).is_dir():
        return [Check("data", "data root", "problem", f"{DATA_VARIABLE} is {root}, which is no folder", set_it)]
    return [Check("data", "data root", "ok", f"{root} ({DATA_VARIABLE})"), *(_cifar(Path(root), one) for one in CIFAR)]


def _cifar(root: Path, name: str) -> Check:
    folder, files = CIFAR[name]
    lacking = [file for file in files if not (root / folder / file).is_file()]
    fetch = f"run with data.name={name} data.download=true, or put {folder} into {root}"
    if not (root / folder).is_dir():
        return Check("data", name, "missing", f"no {folder} in {root}", fetch)
    if lacking:
        found = f"{root / folder} lacks {', '.join(lacking)}"
        return Check("data", name, "problem", found, f"remove {root / folder}, then {fetch}")
    return Check("data", name, "ok", f"{root / folder}; its hashes are compared when it is read")
