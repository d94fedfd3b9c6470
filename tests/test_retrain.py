"""A longer retraining keeps the shape of the winner's lr schedule; one that was begun keeps its split."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainable.cases import Split, save_split
from trainable.config import InputError, TrainConfig
from trainable.optimizers import Schedule
from tune.retrain import retrain, stretched


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
def test_a_schedule_stretched_fourfold_is_the_same_at_each_fourth_epoch(options):
    short = TrainConfig(epochs=12, **options)
    long = stretched(short, 48)
    assert long.epochs == 48
    first = 2 if options["scheduler"] == "cosine" else 0  # a warm-up has more and smaller steps
    assert lrs(long)[4 * first :: 4] == pytest.approx(lrs(short)[first:])


def test_plateau_waits_longer_and_the_same_horizon_changes_nothing():
    recipe = TrainConfig(epochs=10, plateau_patience=2, step_size=3, exponential_gamma=0.9)
    assert stretched(recipe, 40).plateau_patience == 8
    assert stretched(recipe, 10) == recipe


@pytest.mark.parametrize(("with_val", "begun"), [(True, "without"), (False, "with")])
def test_a_retraining_is_not_gone_on_with_on_another_split(tmp_path: Path, monkeypatch, with_val: bool, begun: str):
    run = SimpleNamespace(best=lambda: SimpleNamespace(number=0), recipe=lambda _: TrainConfig())
    monkeypatch.setattr("tune.retrain.read_run", lambda _: run)
    split = Split(("a", "b"), ("c",), ("d",))
    save_split(split, tmp_path / "split.json")
    output = tmp_path / "retrain" / "x"
    output.mkdir(parents=True)
    save_split(split if with_val else Split(("a", "b", "c"), (), ("d",)), output / "split.json")
    before = (output / "split.json").read_bytes()
    with pytest.raises(InputError, match=f"{output} was begun {begun} the validation cases .*: take another --name"):
        retrain(tmp_path, name="x", with_val=with_val)
    assert (output / "split.json").read_bytes() == before
    assert list(output.iterdir()) == [output / "split.json"]
