"""What every source must fulfil, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from growkit.errors import DataError

__all__ = ["check_classes", "check_finite"]


def check_classes(where: str, name: str, labels: Tensor, others: Mapping[str, Tensor]) -> None:
    """Refuse labels that are not 0 .. K-1, each present, and labels of other splits that training never saw.

    Args:
        where: the file or source, for the message.
        name: what the training labels are called there.
        labels: [N] int64.
        others: labels of splits that the source brings itself.

    Raises:
        DataError: naming the labels that are wrong.
    """
    found = labels.unique()
    if not torch.equal(found, torch.arange(len(found))):
        raise DataError(
            f"{where}: {name} must be 0 .. K-1 with every class present, got {len(found)} classes between "
            f"{int(found[0])} and {int(found[-1])}; `numpy.unique(labels, return_inverse=True)[1]` renumbers them"
        )
    for other, theirs in others.items():
        if len(theirs) and not 0 <= int(theirs.min()) <= int(theirs.max()) < len(found):
            raise DataError(
                f"{where}: {other} must be among the {len(found)} classes of {name}, got labels between "
                f"{int(theirs.min())} and {int(theirs.max())}"
            )


def check_finite(where: str, values: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: saying how many there are.
    """
    wrong = int((~torch.isfinite(values)).sum())
    if wrong:
        raise DataError(f"{where} must be finite, got {wrong} of {values.numel()} NaN or infinite; fill or drop them")
