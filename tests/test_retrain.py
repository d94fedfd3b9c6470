"""A longer retraining keeps the shape of the winner's lr schedule; it has a folder of its own below RUN/retrain."""

from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from trainable.core.config import TrainConfig
from trainable.core.epoch_scale import scale_to_epochs
from trainable.core.errors import InputError
from trainable.training.schedules import Schedule
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import TrainingLog
from tune.followed_plateau import reductions, without_plateau
from tune.retrain import check_folder_name, training_config
from tune.run.results import Run, TrialResult
from tune.run.run_dir import RunDir
from tune.spec.sweep_config import make_sweep_config


def lrs(config: TrainConfig, scores: list[float | None] | None = None) -> list[float]:
    """The learning rate of each epoch. scores: what is validated after each; None for nothing."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule, rates = Schedule(optimizer, config), []
    for epoch in range(config.epochs):
        rates.append(schedule.lr)
        optimizer.step()
        schedule.step(scores[epoch] if scores else None)
    return rates


@pytest.mark.parametrize(
    "options",
    [
        {"scheduler": "step", "step_size": 4},
        {"scheduler": "exponential", "exponential_gamma": 0.8},
        {"scheduler": "cosine", "warmup_epochs": 2},
        {"scheduler": "multistep", "milestones": (3, 5, 5, 9)},
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


def test_a_recipe_from_a_file_reads_the_cases_as_the_sweep_did(tmp_path: Path) -> None:
    train = {"background": -1, "resample": True, "labels": "2023", "allow_split_patients": True}
    config = make_sweep_config({"train": train, "space": {"lr": {"loguniform": [1e-5, 1e-2]}}})
    recipe = TrainConfig(background="auto", labels="2021")
    output = TrainingDir(tmp_path / "retrain" / "a")
    used = training_config(Run(RunDir(tmp_path), config, []), recipe, output, go_on=False)
    assert {name: getattr(used, name) for name in train} == {**train, "background": -1.0}


def trial_with_plateau(tmp_path: Path, recipe: TrainConfig, rates: list[float], every: int) -> tuple[Run, TrialResult]:
    """A run with a trial that has reported each `every`th epoch, with these learning rates."""
    log = TrainingLog(tmp_path / "trials" / "0000")
    for epoch, lr in enumerate(rates, 1):
        if epoch % every == 0:
            log.write({"epoch": epoch, "lr": lr})
    trial = TrialResult(0, TrialState.COMPLETE, "epochs", 0.5, 1, recipe.epochs, {}, {}, 1.0, None, "")
    config = make_sweep_config({"space": {"lr": {"loguniform": [1e-5, 1e-2]}}})
    return Run(RunDir(tmp_path), config, [trial]), trial


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("stretch", [1, 3])
def test_retraining_a_plateau_recipe_has_the_lr_that_its_trial_had_stretched(tmp_path, capsys, every, stretch):
    recipe = TrainConfig(
        epochs=24, scheduler="plateau", lr=1e-2, plateau_patience=1, plateau_factor=0.3, min_lr=2e-5, val_freq=every
    )
    scores: list[float | None] = [
        None if (epoch + 1) % every else score
        for epoch, score in enumerate([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.3, 0.5, *[0.4] * 16])
    ]
    had = lrs(recipe, scores)
    assert len(set(had)) > 3
    run, trial = trial_with_plateau(tmp_path, recipe, had, every)
    for with_val in (True, False):
        found = without_plateau(run, trial, recipe, with_val=with_val)
        rates = lrs(scale_to_epochs(found, 24 * stretch))  # nothing is validated
        assert rates == pytest.approx([lr for lr in had for _ in range(stretch)])
    assert had[-1] == pytest.approx(2e-5) or every == 2
    assert "lr follows that of trial 0, where it fell by the factor 0.3 after epochs" in capsys.readouterr().out


def test_a_plateau_recipe_whose_trial_is_unknown_is_refused_with_what_to_write(tmp_path: Path):
    recipe = TrainConfig(scheduler="plateau")
    run, trial = trial_with_plateau(tmp_path, recipe, [], 1)
    assert without_plateau(run, None, recipe, with_val=False) == recipe
    with pytest.raises(InputError, match="write `scheduler: multistep`"):
        without_plateau(run, None, recipe, with_val=True)
    with pytest.raises(InputError, match=r"0000/metrics\.csv is missing"):
        without_plateau(run, trial, recipe, with_val=True)


def test_reductions_are_counted_where_several_lie_between_two_reports():
    assert reductions([(2, 1.0), (4, 0.5), (6, 0.5), (8, 0.125), (10, 0.1)], 0.5) == (2, 6, 6, 8)
    assert reductions([(1, 1.0), (2, 1.0)], 0.5) == ()


@pytest.mark.parametrize("name", ["..", ".", "", " ", "a/b", "/tmp/x", "../x", ".hidden", "x" * 201, "a\nb", "a\0"])
def test_a_name_that_makes_no_folder_below_retrain_is_refused(name: str):
    with pytest.raises(InputError, match="--name .*expected the name of a folder in /run/retrain"):
        check_folder_name(name, Path("/run/retrain"))


@pytest.mark.parametrize("name", ["a", "winner 2", "trial_0007_300_epochs", "größer", "x.y", "x" * 200])
def test_a_name_that_makes_a_folder_is_taken(name: str):
    check_folder_name(name, Path("/run/retrain"))
