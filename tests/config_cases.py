"""What tests of settings share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from growkit.errors import ConfigError

Write = Callable[[str], Path]


def problems_of(action: Callable[..., Any], *arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        action(*arguments)
    assert all("\n" not in problem for problem in refused.value.problems)
    return refused.value.problems
