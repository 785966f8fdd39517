"""Surgery: widening a live module, exactly and reversibly, and the proof that it kept the function."""

from growkit.surgery.records import EDIT_VERSION, AttributeChange, EditRecord, TensorChange
from growkit.surgery.tensors import align_state
from growkit.surgery.transaction import Edit, Extension, Growth, grow, lookup, replay
from growkit.surgery.verify import (
    FunctionChange,
    Inputs,
    Observation,
    function_change,
    new_entries,
    observe,
    unsafe_sites,
    untouched,
)

__all__ = [
    "EDIT_VERSION",
    "AttributeChange",
    "Edit",
    "EditRecord",
    "Extension",
    "FunctionChange",
    "Growth",
    "Inputs",
    "Observation",
    "TensorChange",
    "align_state",
    "function_change",
    "grow",
    "lookup",
    "new_entries",
    "observe",
    "replay",
    "unsafe_sites",
    "untouched",
]
