"""Data: the sources, their five splits, and batches of them."""

from __future__ import annotations

from growkit.data.batches import batches, num_batches
from growkit.data.records import SPLITS, Data, Split
from growkit.data.sources import load_data
from growkit.data.transforms import with_transforms
from growkit.data.user import data_from_user

__all__ = ["SPLITS", "Data", "Split", "batches", "data_from_user", "load_data", "num_batches", "with_transforms"]
