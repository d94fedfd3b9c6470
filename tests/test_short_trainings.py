"""searcher.prior_min_steps: sweeps of short trainings do without `start:` and priors, and stop trials sooner."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from faults import faulty, small_sweep

from trainable.data.prepare import Data
from tune.driver.cluster.connection import Cluster
from tune.driver.sweep import launch, resume
from tune.run.verify import verify
from tune.spec.short_trainings import adapted_if_short, training_steps
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config


@pytest.mark.parametrize(
    ("overrides", "cases", "steps"),
    [
        ([], 875, 43_800),  # as brats.yaml says
        ([], 876, 43_800),
        (["train.patches_per_epoch=60", "train.epochs=24"], 7, 720),
        (["train.accumulation_steps=4", "space.accumulation_steps=null"], 876, 11_000),
    ],
)
def test_the_steps_of_a_training_are_those_of_the_default_recipe(overrides: list[str], cases: int, steps: int) -> None:
    assert training_steps(load_sweep_config("brats", overrides), cases) == steps


def left_out(config: SweepConfig) -> bool:
    return not config.space.has_prior and config.start == config.start_names == ()


def test_short_trainings_do_without_priors_and_stop_sooner_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = load_sweep_config("brats")
    assert adapted_if_short(config, 99) is config  # 5,000 steps
    assert not caplog.messages
    short = adapted_if_short(config, 98)
    assert left_out(short)
    assert short.space == config.space.without_priors()
    assert (config.early_stopping.min_trials, short.early_stopping.min_trials) == (3, 1)
    [said] = caplog.messages
    assert said.startswith("a training has 4,900 steps, and what `start:` and `prior:` say is of 5,000 or more")
    assert said.endswith("this sweep does without them, and has early_stopping.min_trials 1 in place of 3")
    begun = adapted_if_short(config, 98, begun=True)
    assert (begun.space, begun.early_stopping) == (short.space, config.early_stopping)
    for other in ("type=median", "min_trials=2"):
        kept = load_sweep_config("brats", [f"early_stopping.{other}"])
        assert adapted_if_short(kept, 98).early_stopping == kept.early_stopping
    assert adapted_if_short(short, 1) is short
    always = load_sweep_config("brats", ["searcher.prior_min_steps=0"])
    assert adapted_if_short(always, 1) is always


@pytest.mark.slow
def test_a_study_that_goes_on_keeps_the_rule_by_which_it_stops_trials(
    cluster: Cluster, phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    """As that of a version that did not lower min_trials; `verify` replays the rule."""
    options = {"space": {"lr": {"loguniform": [1e-3, 1e-1], "prior": {"at": 0.01, "confidence": "low"}}}}
    config = small_sweep(prepared, phantoms, study={"trials": 3}, early_stopping={"type": "asha"}, **options)
    run = launch(config, tmp_path / "run", cluster=cluster, fit=faulty({}))
    space = tmp_path / "space.yaml"
    written = yaml.safe_load(run.dir.config.read_text())
    space.write_text(yaml.safe_dump({name: section for name, section in written.items() if name != "record"}))
    more = ["study.trials=5", "searcher.prior_min_steps=5000"]
    run = resume(run.folder, space=str(space), overrides=more, cluster=cluster, fit=faulty({}))
    assert not run.config.space.has_prior
    assert run.config.early_stopping.min_trials == 3
    assert len(run.trials) == 5
    assert not any(verify(run).values())


def test_a_launch_of_short_trainings_writes_what_it_does_without(
    cluster: Cluster, phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    """Trainings of 3 epochs of 2 steps."""
    config = small_sweep(prepared, phantoms, study={"trials": 1}, searcher={"prior_min_steps": 7})
    space = load_sweep_config("quick").space
    config = config.model_copy(update={"space": space, "start": ({"lr": 0.01},), "start_names": ("mine",)})
    assert not left_out(adapted_if_short(config.with_train({**config.train, "epochs": 4}), len(prepared.split.train)))
    run = launch(config, tmp_path / "run", cluster=cluster, fit=faulty({}))
    assert left_out(load_sweep_config(run.dir.config))
