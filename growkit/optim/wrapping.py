"""An optimizer around another one, with which it shares parameter groups and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from growkit.errors import UserInputError
from growkit.optim.base import base_of
from growkit.optim.checks import check_mapping, check_state

__all__ = ["Wrapping"]

BETWEEN = "{} cannot be {} between its two passes, while the weights are moved; call second_step() or restore() first"


class Wrapping(torch.optim.Optimizer):
    """What belongs to an optimizer apart from its step: groups, state, saving, copies.

    Args:
        params: in any form that optimizers take.
        base: an optimizer class or an instance.
        own: settings that this optimizer keeps in the groups beside those of the base.
        model: the module that is trained, if it is known.
        settings: of the base class.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer] | torch.optim.Optimizer,
        own: Mapping[str, Any],
        model: nn.Module | None,
        settings: Mapping[str, Any],
    ):
        name = type(self).__name__
        if isinstance(base, Wrapping) or (isinstance(base, type) and issubclass(base, Wrapping)):
            kind = base if isinstance(base, type) else type(base)
            raise UserInputError(f"{name}: base must be an optimizer that is not SAM itself, got {kind.__name__}")
        if not (model is None or isinstance(model, nn.Module)):
            raise UserInputError(f"{name}: model must be the module that is trained, got {model!r}")
        self.model = model
        self.steps = self.skipped = 0
        self._own = dict(own)
        self._known: list[dict[str, Any]] = []  # the groups when all were complete
        self.base = base_of(name, base, params, settings, (*own, "base_lr"), model)
        held = {id(one) for group in self.base.param_groups for one in group["params"]}
        if model is not None and held.isdisjoint(map(id, model.parameters())):
            raise UserInputError(
                f"{name}: model must have parameters that the optimizer holds, got {type(model).__name__} with none of "
                f"them; give the module that is trained"
            )
        if getattr(self.base, "_wrapped", False):  # by another, whose settings stand in the groups
            for group in self.base.param_groups:
                group.update(own)
        self.base._wrapped = True  # type: ignore[attr-defined]
        super().__init__(self.base.param_groups, {**self.base.defaults, **own})

    @property
    def displaced(self) -> bool:
        """Whether the weights are away from where they belong, between two passes."""
        return False

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings out of their ranges, before a group is added."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the base."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Torch's constructor begins with a list of its own."""

    @property
    def state(self) -> Any:
        """That of the base; nothing else is kept from step to step."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Torch's constructor begins with a state of its own."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; what it does not set is as in the constructor.

        Raises:
            UserInputError: a setting is out of its range, or between the two passes.
        """
        self.check_in_place("given a group")
        self.check_group({**self._own, **param_group})
        self.complete_groups()
        if all(param_group is not group for group in self.base.param_groups):
            self.base.add_param_group(param_group)
        self.complete_groups()

    def complete_groups(self) -> None:
        """Complete the groups that the base was given beside this optimizer.

        Those that came into the place of others, from a state of the base alone, go on with the settings of these.
        """
        groups = self.base.param_groups
        if self._known and groups[-1] is self._known[-1]:
            return
        held = {*map(id, groups)}
        replaced = self._known if held.isdisjoint(map(id, self._known)) else []
        for group, known in zip_longest(groups, replaced[: len(groups)], fillvalue={}):
            self.check_group({**self._own, **known, **group})
            self._complete(group, known)
        self._known = [*groups]

    def _complete(self, group: dict[str, Any], known: Mapping[str, Any]) -> None:
        for key, value in {**self._own, "base_lr": float(group.get("lr", 0.0))}.items():
            group.setdefault(key, known.get(key, value))

    def call_hooks(self, hooks: Mapping[int, Callable[..., Any]]) -> None:
        """Call what was registered for steps, where a step is not one call.

        Raises:
            UserInputError: a hook would change the arguments of the call.
        """
        for hook in hooks.values():
            if hook(self, (self,), {}) is not None:
                raise UserInputError(
                    f"{type(self).__name__}: a hook of steps in two calls cannot change their arguments, for there are "
                    f"none; it must return None"
                )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The base's state and groups, with the settings of this optimizer in them, and the counts.

        Raises:
            UserInputError: between the two passes, when the weights are not where they belong.
        """
        self.check_in_place("saved")
        self.complete_groups()
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        saved: dict[str, Any] = {**self.base.state_dict(), "sam": {"steps": self.steps, "skipped": self.skipped}}
        for hook in self._optimizer_state_dict_post_hooks.values():
            saved = saved if (changed := hook(self, saved)) is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            UserInputError: it is no state of this kind or does not fit, or between the two passes.
        """
        self.check_in_place("loaded")
        name = type(self).__name__
        check_mapping(name, state_dict)
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = state_dict if (changed := hook(self, state_dict)) is None else changed
        if "sam" not in state_dict:
            raise UserInputError(
                f"{name}: a state must come from SAM.state_dict(); load a base's own, as torch.distributed.checkpoint "
                f"gives it, into .base"
            )
        if not _has_own_format(self.base, state_dict):
            check_state(name, self.base, state_dict)
        counts = state_dict["sam"]
        if not isinstance(counts, Mapping) or not all(type(counts.get(one)) is int for one in ("steps", "skipped")):
            raise UserInputError(f"{name}: a state must have its counts, steps and skipped, got {counts!r}")
        for group in state_dict.get("param_groups", ()):
            self.check_group({**self._own, **group})
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "sam"})
        self.steps, self.skipped = counts["steps"], counts["skipped"]
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def check_in_place(self, what: str) -> None:
        """Refuse what must not happen while weights are moved."""
        if self.displaced:
            raise UserInputError(BETWEEN.format(type(self).__name__, what))

    def with_gradients(self) -> list[Any]:
        """The parameters that have one."""
        return [one for group in self.base.param_groups for one in group["params"] if one.grad is not None]

    def gradients(self) -> list[torch.Tensor]:
        """Those of the parameters that have one."""
        groups = self.base.param_groups
        return [gradient for group in groups for one in group["params"] if (gradient := one.grad) is not None]

    def __getstate__(self) -> dict[str, Any]:
        self.check_in_place("copied")
        return {key: value for key, value in self.__dict__.items() if key != "step"}  # a scheduler's wrapper

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base._wrapped = True  # type: ignore[attr-defined]  # which torch leaves out of copies


def _has_own_format(base: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> bool:
    """Whether a base has states of another form than torch's, as one around a further optimizer may."""
    return type(base).state_dict is not torch.optim.Optimizer.state_dict and "param_groups" not in state_dict
