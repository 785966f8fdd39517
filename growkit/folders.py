"""Where growkit reads and writes when nothing else is said, and whether a folder can be written."""

from __future__ import annotations

import os
from pathlib import Path

from growkit.errors import UserInputError

__all__ = ["DATA_VARIABLE", "cache_folder", "check_writable", "nearest_existing"]

DATA_VARIABLE = "GROWKIT_DATA"  # the environment variable that names the folder of published data sets


def cache_folder() -> Path:
    """The folder of what can be made again, in the user's own cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "growkit"


def nearest_existing(path: str | Path) -> Path:
    """`path`, or the first of its parents that is there.

    Raises:
        OSError, ValueError: the path is impossible, such as a name too long or one with a zero byte.
    """
    existing = Path(path).absolute()
    os.path.realpath(existing, strict=False)  # raises where exists() would only say no
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    return existing


def check_writable(root: str | Path, setting: str = "run.root") -> None:
    """Refuse a root in which no run folder could be made, before any work is done.

    Args:
        root: the folder.
        setting: that names it.

    Raises:
        UserInputError: `root` or its nearest existing parent is not a folder that can be written.
    """
    try:
        existing = nearest_existing(root)
    except (OSError, ValueError) as error:
        raise UserInputError(f"{setting} must be a folder that can be made, got {str(root)!r:.120}: {error}") from error
    if not existing.is_dir():
        raise UserInputError(f"{setting} must be a folder, got {root}: {existing} is a file; choose another {setting}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserInputError(f"{setting} must be writable, got {root}: {existing} is not; choose another {setting}")
