"""A longer retraining keeps the shape of the winner's lr schedule."""

import pytest
import torch

from trainable.core.config import TrainConfig
from trainable.training.schedules import Schedule
from tune.retrain import scale_to_epochs


def lrs(config: TrainConfig) -> list[float]:
    """The learning rate of each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule, rates = Schedule(optimizer, config), []
    for _ in range(config.epochs):
        rates.append(schedule.lr)
        optimizer.step()
        schedule.step(None)
    return rates


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "step", "step_size": 4},
        {"scheduler": "exponential", "exponential_gamma": 0.8},
        {"scheduler": "cosine", "warmup_epochs": 2},
    ],
)
def test_a_schedule_scaled_fourfold_is_the_same_at_each_fourth_epoch(options):
    short = TrainConfig(epochs=12, **options)
    long = scale_to_epochs(short, 48)
    assert long.epochs == 48
    first = 2 if options["scheduler"] == "cosine" else 0  # a warm-up has more and smaller steps
    assert lrs(long)[4 * first :: 4] == pytest.approx(lrs(short)[first:])


def test_plateau_waits_longer_and_the_same_horizon_changes_nothing():
    recipe = TrainConfig(epochs=10, plateau_patience=2, step_size=3, exponential_gamma=0.9)
    assert scale_to_epochs(recipe, 40).plateau_patience == 8
    assert scale_to_epochs(recipe, 10) == recipe
