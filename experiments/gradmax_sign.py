"""What the sign of GradMax's new units is worth, in plain torch: teachers, seeds and steps of mlp_teacher_student.yaml.

    python experiments/gradmax_sign.py

The new fan-out is +u or -u, u the top left singular vector of the gradient matrix: the gradient norm is the same. The
unit's fan-in then moves along -M^T u or M^T u, so that a ReLU fires on one half of the samples or on the other. All
students are trained side by side; the models of growkit give the first weights, its matrices nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from growkit.assembly import assemble
from growkit.config import load_config

RECIPE = Path(__file__).parent / "mlp_teacher_student.yaml"
SEEDS = 10
STEPS, EVERY, EVENTS, RATE = 1500, 200, 5, 0.1


def start(draws: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs [S, N, I], targets [S, N, O], fan-in [S, I, H] and fan-out [S, H, O], each seed `draws` times."""
    parts = [assemble(load_config(RECIPE, [f"seed={s}", f"data.teacher_seed={s}"]), writes=False) for s in range(SEEDS)]
    weights = [one.model.state_dict() for one in parts]

    def side_by_side(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).repeat_interleave(draws, 0)

    return (
        side_by_side([one.data.train.inputs.float() for one in parts]),
        side_by_side([one.data.train.targets.float() for one in parts]),
        side_by_side([one["hidden.0.linear.weight"].T for one in weights]),
        side_by_side([one["head.weight"].T for one in weights]),
    )


def gradients(x: Tensor, y: Tensor, fan_in: Tensor, fan_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of both weights and of the outputs, of the mean squared error."""
    before = x @ fan_in
    alive = (before >= 0).float()
    hidden = before * alive
    wrong = 2 * (hidden @ fan_out - y) / y[0].numel()
    return x.mT @ ((wrong @ fan_out.mT) * alive), hidden.mT @ wrong, wrong


def direction(rule: str, x: Tensor, wrong: Tensor, generator: torch.Generator) -> Tensor:
    """One fan-out [S, O] for each student."""
    matrix = wrong.mT @ x  # M, [S, O, I]
    drawn = torch.randn(len(x), wrong.shape[2], generator=generator)
    if rule == "gaussian":
        return drawn
    top = torch.linalg.svd(matrix.double()).U[:, :, 0].float()
    if rule == "random sign":
        return top * drawn[:, :1].sign()
    pushed = x @ (-(matrix.mT @ top[:, :, None]))  # the pre-activation after a step down the gradient, [S, N, 1]
    asked = wrong @ top[:, :, None]
    plus, minus = (pushed.relu() * asked).sum((1, 2)), ((-pushed).relu() * -asked).sum((1, 2))
    better = torch.where(plus < minus, 1.0, -1.0)[:, None]
    return top * better if rule == "better sign" else -top * better


def train(rule: str, draws: int) -> Tensor:
    """Final losses [seeds, draws]."""
    x, y, fan_in, fan_out = start(draws)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, STEPS):  # the loss that is reported is of the weights before the last step
        into, out, _ = gradients(x, y, fan_in, fan_out)
        fan_in, fan_out = fan_in - RATE * into, fan_out - RATE * out
        if step % EVERY == 0 and step <= EVERY * EVENTS:
            new = direction(rule, x, gradients(x, y, fan_in, fan_out)[2], generator)
            new = new / new.norm(dim=1, keepdim=True) * fan_out.norm(dim=2).mean(1, keepdim=True)
            fan_out = torch.cat([fan_out, new[:, None]], 1)
            fan_in = torch.cat([fan_in, torch.zeros_like(fan_in[:, :, :1])], 2)
    return ((x @ fan_in).relu() @ fan_out - y).square().mean((1, 2)).view(SEEDS, draws)


def main() -> None:
    """Print a row for each rule."""
    print("| new fan-out | draws a seed | train loss, mean ± deviation over seeds |\n|---|---|---|")
    for rule, draws in (("better sign", 1), ("worse sign", 1), ("random sign", 8), ("gaussian", 8)):
        losses = train(rule, draws)
        print(f"| {rule} | {draws} | {losses.mean():.4f} ± {losses.mean(1).std():.4f} |", flush=True)


if __name__ == "__main__":
    main()
