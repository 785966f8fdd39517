"""Surgery: widening a live module, exactly and reversibly, and the proof that it kept the function."""

from growkit.surgery.deepening import deepen
from growkit.surgery.depth import DepthEdit, insert
from growkit.surgery.optimizer_state import Optimizers, align_state, forget_state
from growkit.surgery.records import (
    EDIT_VERSION,
    AttributeChange,
    DepthRecord,
    EditRecord,
    IndexMap,
    NewTensor,
    Record,
    TensorChange,
    edited_buffers,
    record_from_json,
)
from growkit.surgery.replay import replay
from growkit.surgery.search import Verdict, verify_sites
from growkit.surgery.transaction import Extension, Growth, grow
from growkit.surgery.undo import Edit
from growkit.surgery.values import lookup
from growkit.surgery.verify import (
    FunctionChange,
    Inputs,
    Observation,
    function_change,
    new_entries,
    observe,
    untouched,
)

__all__ = [
    "EDIT_VERSION",
    "AttributeChange",
    "DepthEdit",
    "DepthRecord",
    "Edit",
    "EditRecord",
    "Extension",
    "FunctionChange",
    "Growth",
    "IndexMap",
    "Inputs",
    "NewTensor",
    "Observation",
    "Optimizers",
    "Record",
    "TensorChange",
    "Verdict",
    "align_state",
    "deepen",
    "edited_buffers",
    "forget_state",
    "function_change",
    "grow",
    "insert",
    "lookup",
    "new_entries",
    "observe",
    "record_from_json",
    "replay",
    "untouched",
    "verify_sites",
]
