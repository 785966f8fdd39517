"""SAM in the traps of the field: what two passes share, exact restoring, precision.

What can be asked of the naive form is asked of it too, and must fail there.
"""

from __future__ import annotations

import copy
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from naive_optimizers import NaiveSAM, naive_sam, not_naive
from sam_cases import alone, batch, closure_of, net, sam, same, state_of, train
from torch import Tensor, nn

from growkit.optim import SAM


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- what the two passes share


@not_naive(sam, naive_sam)
def test_statistics_are_those_of_the_first_pass(make: Any):
    model, (x, y) = net(), batch()
    seen_once = copy.deepcopy(model)
    seen_once(x)
    make(model).step(closure_of(model, x, y))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, seen_once.get_buffer(name)), name


@not_naive(sam, naive_sam)
def test_both_passes_draw_the_same_numbers_and_the_streams_go_on(make: Any):
    model, drawn, masks = net(), [], []
    x, y = batch()

    def closure() -> Tensor:
        drawn.append((random.random(), np.random.rand()))
        return closure_of(model, x, y)()

    model[4].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    make(model).step(closure)
    assert torch.equal(*masks) and drawn[0] == drawn[1]
    closure()
    assert not torch.equal(masks[0], masks[2]) and drawn[0] != drawn[2]


@not_naive(sam, naive_sam)
def test_the_loss_is_that_at_the_weights_the_step_began_with(make: Any):
    model = net().eval()
    before = nn.functional.cross_entropy(model(batch()[0]), batch()[1])
    assert make(model, rho=0.5).step(closure_of(model, *batch())).item() == before.item()


@not_naive(sam, naive_sam)
def test_a_pass_under_one_outer_autocast_sees_the_moved_weights(make: Any):
    torch.set_default_dtype(torch.float32)
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    outputs: list[Tensor] = []

    def closure() -> Tensor:
        output = model(x)
        outputs.append(output.detach())
        output.float().square().sum().backward()
        return output.sum()

    with torch.autocast("cpu", torch.bfloat16):
        make(model, rho=2.0).step(closure)
    assert not torch.equal(*outputs)


def test_weight_decay_does_not_turn_the_ascent():
    moved = []
    for decay, penalty in ((0.0, 0.0), (10.0, 0.0), (0.0, 10.0)):
        model = net().eval()
        optimizer = sam(model, weight_decay=decay)
        closure_of(model, *batch())()
        (penalty / 2 * torch.stack([one.square().sum() for one in model.parameters()]).sum()).backward()
        optimizer.first_step()
        moved.append(state_of(model))
    assert same(moved[0], moved[1]) and not same(moved[0], moved[2])


@not_naive(sam, naive_sam)
@pytest.mark.filterwarnings("default")  # those of a compiler are not ours
def test_steps_inside_a_compiled_function_are_those_outside_and_make_no_new_graphs(make: Any):
    model, other, counters = net(), net(), torch._dynamo.utils.counters  # pyright: ignore[reportAttributeAccessIssue]
    inside, outside = make(model), sam(other)
    compiled = torch.compile(lambda x, y: inside.step(closure_of(model, x, y)), backend="eager")
    for t in range(6):
        if t == 3:
            counters.clear()
        torch.manual_seed(t)
        compiled(*batch(t))
        train(outside, other, 1, first=t)
    assert same(state_of(model), state_of(other)) and not counters["stats"]["unique_graphs"]


@pytest.mark.filterwarnings("default")  # those of a compiler are not ours
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_learning_rates_make_no_new_graphs_inside_a_compiled_function(momentum: float):
    model, counters = net(), torch._dynamo.utils.counters  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = sam(model, momentum=momentum)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: optimizer.step(closure_of(model, x, y)), backend="eager")
    for t in range(6):
        if t == 3:
            counters.clear()
        optimizer.param_groups[0]["lr"] = 0.1 * 0.9**t
        compiled(*batch(t))
    assert not counters["stats"]["unique_graphs"]


@pytest.mark.filterwarnings("default")  # those of a compiler are not ours
def test_what_moves_the_weights_inside_a_compiled_function_is_not_compiled():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(8, 4)
    optimizer, origins = sam(model), set[str]()

    def backend(graph: Any, inputs: Any) -> Any:
        origins.update(re.findall(r"(\w+)\.py", " ".join(node.stack_trace or "" for node in graph.graph.nodes)))
        return graph.forward

    def closure() -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    torch._dynamo.reset()
    compiled = torch.compile(lambda: optimizer.step(closure), backend=backend)
    for _ in range(4):
        compiled()
    assert "test_sam_traps" in origins and not origins & {"neighbourhood", "ascent", "displacement", "two_passes"}


# --- restoring


@not_naive(sam, naive_sam)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_exactly(make: Any, dtype: torch.dtype):
    model = nn.Linear(50, 50).to(dtype)
    before, storage = state_of(model), model.weight.data_ptr()
    optimizer = make(model, lr=0.0, momentum=0.0, rho=0.7)
    for _ in range(20):
        optimizer.step(lambda: model.weight.float().square().sum().backward() or model.weight.sum())
    assert same(before, state_of(model)) and model.weight.data_ptr() == storage


def test_weights_that_take_another_type_between_steps_come_back_exactly():
    weights = [nn.Parameter(torch.rand(3).to(dtype)) for dtype in (torch.float32, torch.float32, torch.float64)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = SAM(weights, torch.optim.SGD, lr=0.0)
    for dtype in (torch.float32, torch.float64):
        weights[1].grad = None
        weights[1].data = torch.rand(3).to(dtype)
        before = [one.detach().clone() for one in weights]
        for one in weights:
            one.grad = torch.ones_like(one)
        optimizer.first_step()
        optimizer.restore()
        assert all(map(torch.equal, before, weights))


class Partly(nn.Module):
    """Uses one layer in the first pass and another in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.c((self.a if self.calls % 2 else self.b)(x))


@not_naive(sam, naive_sam)
def test_gradients_that_only_one_pass_has_leave_nothing_moved(make: Any):
    torch.manual_seed(0)
    model, x = Partly(), torch.randn(4, 3)
    optimizer = make(model, rho=0.5, momentum=0.0)
    before = state_of(model)
    for _ in range(3):
        optimizer.step(lambda: model(x).square().sum().backward() or torch.zeros(()))
    after = state_of(model)
    assert torch.equal(before["a.weight"], after["a.weight"])  # no gradient in the second pass: the base leaves it
    assert not torch.equal(before["b.weight"], after["b.weight"])


@not_naive(sam, naive_sam)
def test_a_gradient_that_only_the_second_pass_has_meets_no_older_move(make: Any):
    model, used = nn.Linear(3, 3), [True, True, False, True]
    before = model.weight.detach().clone()
    optimizer = make(model, rho=0.5, lr=0.1, momentum=0.0)

    def closure() -> Tensor:
        model.bias.sum().backward()
        if used.pop(0):
            model.weight.sum().backward()
        return torch.zeros(())

    optimizer.step(closure)
    optimizer.step(closure)
    torch.testing.assert_close(model.weight.detach(), before - 0.2, rtol=0, atol=1e-12)


class SwappingSAM(NaiveSAM):
    """Puts back other tensors, not their values."""

    @torch.no_grad()
    def first_step(self, **settings: Any) -> None:
        self.kept = [(one, one.detach().clone()) for group in self.param_groups for one in group["params"]]
        super().first_step(**settings)

    def restore(self) -> None:
        for one, kept in self.kept:
            one.data = kept


@not_naive(SAM, SwappingSAM)
def test_views_of_the_weights_follow_them(make: Any):
    weight = nn.Parameter(torch.ones(4))
    view = weight.detach()[1:]
    optimizer, closure = alone(weight, lambda w: w.square().sum(), make, lr=0.1)
    optimizer.step(closure)
    assert torch.equal(view, weight[1:]) and not torch.equal(view, torch.ones(3))


@not_naive(sam, naive_sam)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_bases_are_fused_which_torch_makes_no_default(make: Any, base: Any):
    assert make(net(), base).base.param_groups[0]["fused"]


@not_naive(sam, naive_sam)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_first_gradient_that_is_not_finite_does_no_harm(make: Any, bad: float):
    model = net()
    optimizer = make(model)
    train(optimizer, model, 2)

    def closure() -> Tensor:
        loss = closure_of(model, *batch())()
        model[0].weight.grad[0, 0, 0, 0] = bad
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step(closure)
    train(optimizer, model, 1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_step_that_is_skipped_is_counted_said_and_leaves_all_state(norm: float):
    model = net()
    optimizer = sam(model, norm=norm)
    train(optimizer, model, 2)
    parameters, memory = [p.detach().clone() for p in model.parameters()], copy.deepcopy(optimizer.base.state_dict())

    def closure() -> Tensor:
        loss = closure_of(model, *batch())()
        model[0].weight.grad[0, 0, 0, 0] = math.nan
        return loss

    with pytest.warns(UserWarning, match="SAM skipped step 3: the gradient of its first pass is not finite"):
        optimizer.step(closure)
    assert optimizer.skipped == 1 and all(map(torch.equal, parameters, model.parameters()))
    assert str(memory) == str(optimizer.base.state_dict())


@not_naive(sam, naive_sam)
def test_an_exception_in_the_second_pass_leaves_the_weights(make: Any):
    model, calls = net(), []
    optimizer = make(model, rho=0.5)
    parameters = [p.detach().clone() for p in model.parameters()]

    def closure() -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure_of(model, *batch())()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(map(torch.equal, parameters, model.parameters())) and not optimizer.base.state
    train(optimizer, model, 1)


@not_naive(SAM, NaiveSAM)
def test_large_gradients_in_half_precision_still_move_the_weights(make: Any):
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer, _ = alone(weight, lambda w: w.sum(), make, rho=0.5, lr=0.1)
    weight.grad = torch.full((4,), 6e4, dtype=torch.float16)
    optimizer.first_step()
    assert weight.detach().float().norm().item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sparse_gradients_move_their_rows(adaptive: bool):
    model = nn.Embedding(5, 3, sparse=True)
    optimizer, before = sam(model, rho=0.5, momentum=0.0, adaptive=adaptive), model.weight.detach().clone()
    rows: list[Tensor] = []

    def closure() -> Tensor:
        rows.append((model.weight != before).any(1))
        loss = model(torch.tensor([1, 3])).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [row.tolist() for row in (*rows, (model.weight != before).any(1))] == [
        [False] * 5,
        [False, True, False, True, False],
        [False, True, False, True, False],
    ]


# --- precision, accumulation, clipping


def scaled_step(model: nn.Module, optimizer: SAM, scaler: torch.amp.GradScaler, blow: int | None = None) -> None:
    calls: list[int] = []
    x, y = batch()

    def closure() -> Tensor:
        calls.append(0)
        loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss * (math.inf if len(calls) == blow else 1.0)).backward()
        return loss

    optimizer.step(closure, scaler=scaler)
    scaler.update()


@not_naive(sam, naive_sam)
def test_a_scaled_step_is_the_plain_one(make: Any):
    model, other = net().eval(), net().eval()
    scaled_step(model, make(model), torch.amp.GradScaler("cpu", init_scale=1024.0))
    sam(other).step(closure_of(other, *batch()))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@not_naive(sam, naive_sam)
@pytest.mark.parametrize("pass_that_overflows", [1, 2])
def test_an_overflow_in_either_pass_steps_not_and_halves_the_scale_once(make: Any, pass_that_overflows: int):
    model, scaler = net().eval(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, before = make(model), state_of(model)
    scaled_step(model, optimizer, scaler, blow=pass_that_overflows)
    assert same(before, state_of(model)) and scaler.get_scale() == 512.0 and not optimizer.base.state


def accumulated(model: nn.Module, losses: Callable[[], list[Tensor]]) -> None:
    """One step on micro-batches, by a closure over all of them."""

    def closure() -> Tensor:
        found = losses()
        for loss in found:
            loss.backward()
        return torch.stack(found).sum()

    sam(model).step(closure)


def accumulated_once(model: nn.Module, losses: Callable[[], list[Tensor]]) -> None:
    """Naively: the second pass sees the last micro-batch alone."""
    optimizer = naive_sam(model)
    for loss in losses():
        loss.backward()
    optimizer.first_step()
    losses()[-1].backward()
    optimizer.second_step()


@not_naive(accumulated, accumulated_once)
def test_micro_batches_in_the_closure_are_the_whole_batch(make: Callable[[nn.Module, Callable], None]):
    model, other = net().eval(), net().eval()
    x, y = batch()
    sam(other).step(closure_of(other, x, y))
    parts = list(zip(x.split(2), y.split(2), strict=True))
    make(model, lambda: [nn.functional.cross_entropy(model(a), b) / 3 for a, b in parts])
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-13)


def clipped(model: nn.Module, closure: Callable[[], Tensor]) -> None:
    sam(model, clip=1e-3, momentum=0.0, lr=1.0).step(closure)


def clipped_before_the_move(model: nn.Module, closure: Callable[[], Tensor]) -> None:
    """Naively: the gradient that only gives the direction of the move."""
    optimizer = naive_sam(model, momentum=0.0, lr=1.0)
    closure()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.first_step()
    closure()
    optimizer.second_step()


@not_naive(clipped, clipped_before_the_move)
def test_only_the_final_gradient_is_clipped(make: Callable[[nn.Module, Callable], None]):
    model = net().eval()
    parameters = [p.detach().clone() for p in model.parameters()]
    make(model, closure_of(model, *batch()))
    gone = torch.cat([(a - b).flatten() for a, b in zip(parameters, model.parameters(), strict=True)]).norm()
    assert gone.item() == pytest.approx(1e-3, rel=1e-4)


def test_chunks_are_moved_by_their_own_gradients():
    model, other = net().eval(), net().eval()
    x, y = batch()
    sam(model, momentum=0.0, m=4).step(lambda part: closure_of(model, x[part], y[part])(), samples=6)
    total = [torch.zeros_like(p) for p in other.parameters()]
    for part, share in ((slice(0, 4), 4 / 6), (slice(4, 6), 2 / 6)):
        twin = copy.deepcopy(other)
        sam(twin, momentum=0.0, lr=1.0).step(closure_of(twin, x[part], y[part]))
        for gradient, old, new in zip(total, other.parameters(), twin.parameters(), strict=True):
            gradient += share * (old - new).detach()
    for mine, old, gradient in zip(model.parameters(), other.parameters(), total, strict=True):
        torch.testing.assert_close(mine, old - 0.1 * gradient, rtol=0, atol=1e-13)
