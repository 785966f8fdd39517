"""Training goes on in a fresh process bit for bit: this file is also the program of that process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from growkit.optim import SAM, AdaBound, AMSBound

STEPS, SAVED, DECAY = 12, 5, 4  # the learning rate falls every DECAY steps, the state is saved between two falls

OPTIMIZERS: dict[str, Any] = {
    "AMSBound": lambda model: AMSBound(model.parameters(), lr=0.01, weight_decay=0.1),
    "SAM over AdaBound": lambda model: SAM(model.parameters(), AdaBound, rho=0.1, schedule="lr", model=model, lr=0.01),
    "SAM over SGD": lambda model: SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, momentum=0.9),
}


class Run:
    """A net, its optimizer and the schedule of its learning rate."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 3))
        self.optimizer = OPTIMIZERS[name](self.model)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, DECAY, 0.3)

    def train(self, first: int, last: int) -> None:
        for t in range(first, last):
            torch.manual_seed(t)
            x, y = torch.randn(8, 4), torch.randint(3, (8,))

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                self.model.zero_grad()
                loss = nn.functional.cross_entropy(self.model(x), y)
                loss.backward()
                return loss

            self.optimizer.step(closure)
            self.schedule.step()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def save(self, path: Path) -> None:
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_in_a_fresh_process_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, begun = Run(name), Run(name)
    whole.train(0, STEPS)
    begun.train(0, SAVED)
    begun.save(tmp_path / "begun.pt")
    subprocess.run([sys.executable, __file__, name, tmp_path / "begun.pt", tmp_path / "done.pt"], check=True)
    ended = Run(name)
    ended.load(tmp_path / "done.pt")
    assert all(map(torch.equal, whole.model.state_dict().values(), ended.model.state_dict().values()))
    assert str(whole.optimizer.state_dict()) == str(ended.optimizer.state_dict())


if __name__ == "__main__":
    run = Run(sys.argv[1])
    run.load(Path(sys.argv[2]))
    run.train(SAVED, STEPS)
    run.save(Path(sys.argv[3]))
