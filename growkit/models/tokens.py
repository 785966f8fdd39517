"""What the models of token sequences share."""

from __future__ import annotations

from growkit.errors import ModelError

__all__ = ["check_tokens"]


def check_tokens(model: str, input_shape: tuple[int, ...]) -> int:
    """The length of token sequences [T].

    Raises:
        ModelError: the inputs have another shape.
    """
    if len(input_shape) != 1:
        raise ModelError(
            f"model {model!r} needs sequences of tokens [T], the data have inputs of shape {list(input_shape)}; "
            "data 'text' gives such"
        )
    return input_shape[0]
