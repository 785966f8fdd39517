"""The run folder: `root/name/STAMP`, made for one run and never written over."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from growkit.config import dump_config
from growkit.errors import UserInputError
from growkit.folders import check_writable
from growkit.growth.base import EpochRecord
from growkit.losses import is_cross_entropy
from growkit.metrics import metric_names
from growkit.report.files import write_atomically
from growkit.report.observer import Observer, RunFacts
from growkit.report.strict_json import to_json

__all__ = ["MetricsTable", "RunFolder"]


class RunFolder(Observer):
    """Creates the folder and keeps config.yaml, env.json and result.json in it.

    Args:
        root: folder of all runs.
        name: of this experiment.

    Raises:
        UserInputError: the folder cannot be made or written.
    """

    def __init__(self, root: str | Path, name: str):
        self.path = _make(Path(root) / name)

    def started(self, facts: RunFacts) -> None:
        self._write("config.yaml", dump_config(facts.config))
        self._write("env.json", to_json({**facts.environment, "data": facts.data}, indent=2) + "\n")
        self.problem = _point_latest(self.path)

    def finished(self, result: Mapping[str, Any]) -> None:
        self._write("result.json", to_json(result, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())


METRICS = {"train_metrics": "train_", "validate_metrics": "validate_", "depths": "depth/"}


class MetricsTable(Observer):
    """metrics.csv: a row per epoch.

    The columns are the fields of EpochRecord, its metrics one by one as `train_NAME` and `validate_NAME`, `depth/PLACE`
    for every place that may become deeper, then `width/SITE` for every site. Where a new block brings sites, the table
    is written anew with their columns, which are empty before.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None

    def started(self, facts: RunFacts) -> None:
        known = [field.name for field in fields(EpochRecord) if field.name not in METRICS]
        known += _metric_columns(facts) + [f"depth/{place}" for place in facts.depths]
        self._writer = csv.DictWriter(self._file, known + [f"width/{site}" for site in facts.widths])
        self._writer.writeheader()
        self._file.flush()

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        assert self._writer is not None
        row = asdict(record)
        for kind, part in METRICS.items():
            row |= {f"{part}{name}": value for name, value in row.pop(kind).items()}
        row |= {f"width/{site}": width for site, width in widths.items()}
        if new := [f"width/{site}" for site in widths if f"width/{site}" not in self._writer.fieldnames]:
            self._writer = self._widened(self._writer, new)
        self._writer.writerow(row)
        self._file.flush()

    def _widened(self, writer: csv.DictWriter[str], new: list[str]) -> csv.DictWriter[str]:
        """The same table with more columns."""
        self._file.close()
        rows = list(csv.DictReader(io.StringIO(self._path.read_text(encoding="utf-8"), newline="")))
        text = io.StringIO(newline="")
        wider = csv.DictWriter(text, [*writer.fieldnames, *new])
        wider.writeheader()
        wider.writerows(rows)
        write_atomically(self._path, text.getvalue().encode())
        self._file = self._path.open("a", newline="", encoding="utf-8")
        return csv.DictWriter(self._file, wider.fieldnames)

    def close(self) -> None:
        self._file.close()


def _metric_columns(facts: RunFacts) -> list[str]:
    train, task = facts.config.train, facts.data["task"]
    smoothing = {"train": train.label_smoothing, "validate": 0.0}
    return [
        f"{part}_{name}"
        for part in smoothing
        for name in metric_names(task, is_cross_entropy(train.loss, smoothing[part]))
    ]


def _make(parent: Path) -> Path:
    check_writable(parent)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        path = parent / (stamp if attempt == 0 else f"{stamp}-{attempt + 1}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise UserInputError(
                f"run.root must be a folder that can be written, got {parent}: {error.strerror}"
            ) from error
    raise UserInputError(f"no free name for a run folder in {parent}")


def _point_latest(path: Path) -> str | None:
    """Point `latest` at a run folder; says why where that cannot be done, the folder's own name being no less new."""
    link, temporary = path.parent / "latest", path.parent / f".latest-{path.name}"
    try:
        temporary.symlink_to(path.name)
        temporary.replace(link)
    except OSError as error:  # a file system without symbolic links, or a folder of that name
        temporary.unlink(missing_ok=True)
        return f"{link} does not point at this run: {error.strerror}"
    return None
