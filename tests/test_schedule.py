from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from growkit.config.train import ConstantSettings, CosineSettings, ScheduleSettings, StepSettings
from growkit.schedule import rate_factor


def rates(settings: ScheduleSettings, total: int, steps_per_epoch: int = 10) -> list[float]:
    return [rate_factor(settings, step, step / total, steps_per_epoch) for step in range(total)]


def torch_rates(make, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = make(optimizer), []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("total", [1, 7, 40])
def test_cosine_is_torchs_over_the_whole_run(total: int, final: float):
    expected = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, total, eta_min=final), total)
    assert rates(CosineSettings(final=final), total) == pytest.approx(expected, abs=1e-12)


def test_cosine_by_hand():
    assert rates(CosineSettings(), 4) == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])


def test_step_falls_at_each_share_of_the_run():
    total = 100
    expected = torch_rates(lambda optimizer: MultiStepLR(optimizer, [30, 60, 80], gamma=0.1), total)
    assert rates(StepSettings(), total) == pytest.approx(expected)


def test_a_milestone_between_two_steps_holds_from_the_next_one():
    assert rates(StepSettings(milestones=(0.5,), factor=0.2), 5) == [1, 1, 1, 0.2, 0.2]


def test_constant_stays():
    assert rates(ConstantSettings(), 9) == [1.0] * 9


def test_warmup_rises_in_equal_steps_to_the_full_rate():
    expected = torch_rates(lambda optimizer: LinearLR(optimizer, 0.25, 1.0, total_iters=3), 6)
    assert rates(ConstantSettings(warmup_epochs=0.4), 6) == pytest.approx(expected)
    assert rates(ConstantSettings(warmup_epochs=0.4), 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_warmup_of_a_broken_number_of_steps_never_overshoots():
    assert rates(ConstantSettings(warmup_epochs=0.25), 5) == pytest.approx([0.4, 0.8, 1, 1, 1])


def test_warmup_scales_the_schedule_and_does_not_shift_it():
    plain, warm = rates(CosineSettings(), 20), rates(CosineSettings(warmup_epochs=0.5), 20)
    assert [w / p for w, p in zip(warm, plain, strict=True)] == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 16)
