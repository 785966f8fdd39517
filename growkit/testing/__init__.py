"""Contracts for plug-in authors: what every initializer, trigger, selector and allocator must do, as plain checks.

Each check takes the plug-in, raises AssertionError with a reason where it breaks the contract, and needs no pytest:

    @pytest.mark.parametrize("check", growkit.testing.INITIALIZER_CONTRACT)
    def test_contract(check):
        check(MyInitializer())
"""

from __future__ import annotations

from growkit.testing.cases import GROWTH_CASES, GrowthCase, growth_case
from growkit.testing.initializers import INITIALIZER_CONTRACT
from growkit.testing.policies import (
    ALLOCATOR_CONTRACT,
    SELECTOR_CONTRACT,
    TRIGGER_CONTRACT,
    history_at,
    prospects_of,
    site_states,
)

__all__ = [
    "ALLOCATOR_CONTRACT",
    "GROWTH_CASES",
    "INITIALIZER_CONTRACT",
    "SELECTOR_CONTRACT",
    "TRIGGER_CONTRACT",
    "GrowthCase",
    "growth_case",
    "history_at",
    "prospects_of",
    "site_states",
]
