"""What a run would do: sizes, FLOPs and the growth plan, without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growkit.assembly import Assembly, assemble
from growkit.config import Config
from growkit.cost import count_params
from growkit.growth.depths import key_of
from growkit.report.console import human

__all__ = ["describe", "render"]


def describe(config: Config) -> dict[str, Any]:
    """The facts of a dry run, as JSON can hold them; see `render`."""
    parts = assemble(config)
    costs, plan, target = parts.controller.costs, parts.plan, _target(parts)
    depths = parts.controller.depths
    return {
        "data": {name: len(split) for name, split in parts.data.splits.items()},
        "reading": parts.data.reading or None,
        "control": config.control,
        "compute": parts.compute.to_json(),
        "steps": parts.clock.total_steps,
        "steps_per_epoch": parts.clock.steps_per_epoch,
        "seed": {"params": count_params(parts.model), "flops": costs.flops({})},
        "target": target,
        "budget_below_target": _exceeded(parts, target),
        "final": None if plan is None else _size_at(parts, plan.final_widths),
        "train_flops": parts.planned_flops,
        "flops_limit": config.train.flops,
        "sites": [
            {
                "name": site.name,
                "width": site.width,
                "target": parts.controller.targets[site.name],
                "by_copies": site.by_copies,
                "params_per_unit": site.params_per_unit,
                "flops_per_unit": site.flops_per_unit,
            }
            for site in parts.controller.tracked
        ],
        "places": [
            {
                "name": name,
                "kind": place.kind,
                "depth": depths.depths[name],
                "target": depths.targets[name],
                "params_per_block": place.params_added,
                "flops_per_block": place.flops_added,
            }
            for name, place in depths.places.items()
        ],
        "refused_places": [{"name": r.name, "reason": r.reason, "location": r.location} for r in depths.refusals],
        "refused": [
            {"name": r.name, "width": r.width, "reason": r.reason, "location": r.location}
            for r in parts.controller.refusals
        ],
        "plan": None if plan is None else [{"step": event.step, "widths": dict(event.widths)} for event in plan.events],
        "warnings": parts.warnings,
    }


def _target(parts: Assembly) -> dict[str, int] | None:
    """The size with everything at its target; None where blocks come at widths that nobody knows yet."""
    controller = parts.controller
    if controller.settings.mode == "both":
        return None
    return _size_at(parts, {state.name: state.target for state in controller.ground.states})


def _size_at(parts: Assembly, sizes: Mapping[str, int]) -> dict[str, int]:
    costs = parts.controller.costs
    return {"params": costs.params(sizes), "flops": costs.flops(sizes)}


def _exceeded(parts: Assembly, target: Mapping[str, int] | None) -> dict[str, int]:
    """The limits of the budget, by name, that growth meets before all is at its target."""
    budget = parts.controller.settings.budget
    limits = {"params": budget.params, "flops": budget.flops}
    return {key: limit for key, limit in limits.items() if limit is not None and target and target[key] > limit}


def render(facts: dict[str, Any]) -> str:
    """The facts as text."""
    at_most = "at most " if facts["flops_limit"] is not None and facts["plan"] is None else ""
    lines = [
        "data      " + ", ".join(f"{name} {size}" for name, size in facts["data"].items()),
        *([f"reading   {facts['reading']}"] if facts["reading"] else []),
        f"compute   {facts['compute']['device']}, {facts['compute']['precision']} ({facts['compute']['reason']})",
        f"training  {at_most}{facts['steps']} steps, {facts['steps_per_epoch']} per epoch"
        + (f", {human(facts['train_flops'])}FLOPs" if facts["train_flops"] is not None else ""),
    ]
    lines += [
        f"seed      {_size(facts['seed'])}",
        f"target    {_size(facts['target'])}{_stop(facts['budget_below_target'])}",
        f"final     {'depends on training' if facts['final'] is None else _size(facts['final'])}",
    ]
    lines += _places(facts)
    lines.append(f"sites     {len(facts['sites'])} may grow")
    lines += [
        f"  {s['name']:<28} {s['width']:>5} -> {s['target']:<5} "
        f"{s['params_per_unit']:>8,} params, {human(s['flops_per_unit'])}FLOPs per unit"
        + (", by whole copies" if s["by_copies"] else "")
        for s in facts["sites"]
    ]
    refused = [
        f"  {r['name']:<28} {r['width']:>5}    refused: {r['reason']}"
        + (f", at {r['location']}" if r["location"] else "")
        for r in facts["refused"]
    ]
    lines += dict.fromkeys(refused)  # a width made of several atoms is refused once for each
    if facts["control"] != "none":
        lines.append(f"plan      none: control {facts['control']}, for the training FLOPs of the growth plan")
    elif facts["plan"] is None:
        lines.append(
            "plan      depends on training"
            + (", and on the sites that new blocks bring" if facts["target"] is None else "")
        )
    else:
        lines.append(f"plan      {len(facts['plan'])} events")
        lines += [f"  step {event['step']:>7}   {_sizes(event['widths'])}" for event in facts["plan"]]
    return "\n".join(lines + [f"warning: {message}" for message in facts["warnings"]])


def _stop(exceeded: Mapping[str, int]) -> str:
    """Where growth ends before the target."""
    told = {"params": "{:,} parameters", "flops": "{}FLOPs per sample"}
    limits = [told[key].format(human(limit) if key == "flops" else limit) for key, limit in exceeded.items()]
    return f"; growth.budget stops growth before, at {' and '.join(limits)}" if limits else ""


def _places(facts: dict[str, Any]) -> list[str]:
    if not facts["places"] and not facts["refused_places"]:
        return []
    lines = [f"places    {len(facts['places'])} may become deeper"]
    lines += [
        f"  {p['name']:<28} {p['depth']:>5} -> {p['target']:<5} {p['params_per_block']:>8,} params, "
        f"{human(p['flops_per_block'])}FLOPs per block"
        for p in facts["places"]
    ]
    return lines + [
        f"  {r['name'] or 'the model':<28}          refused: it {r['reason']}"
        + (f", at {r['location']}" if r["location"] else "")
        for r in facts["refused_places"]
    ]


def _sizes(sizes: dict[str, int]) -> str:
    """Of sites and places at one time."""
    blocks = [size for name, size in sizes.items() if name.startswith(key_of(""))]
    width = sum(sizes.values()) - sum(blocks)
    return " and ".join(
        ([f"total width {width}"] if len(blocks) < len(sizes) else []) + ([f"{sum(blocks)} blocks"] if blocks else [])
    )


def _size(size: dict[str, int] | None) -> str:
    if size is None:
        return "not known in advance: blocks come at widths that training decides"
    return f"{size['params']:,} parameters, {human(size['flops'])}FLOPs per sample"
