"""What a user could pick instead of voxtune, in the simulator: Ray, Optuna, NePS, Syne Tune."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from search_quality.bench import ETA, Bench, Recipe
from search_quality.simulator import Arm, Training
from tune.spec.kinds import Choice, LogUniform, QUniform, RandInt, Uniform, all_values
from tune.spec.space import Parameter


class Ray(Arm):
    """As Ray's users have it: OptunaSearch and ASHAScheduler with voxtune's rungs; get_best_result() names the best.

    OptunaSearch reports a stopped trial as COMPLETE with its last score; get_best_result takes the best last score.
    """

    def __init__(self, bench: Bench, seed: int, *, random: bool = False, asha: bool = True) -> None:
        self.epochs, self.count, space = bench.epochs, 0, bench.space
        how: dict[str, Any] = {"sampler": optuna.samplers.RandomSampler(seed=seed)} if random else {"seed": seed}
        self.search = OptunaSearch(lambda trial: space.suggest(trial), metric="score", mode="max", **how)
        stopping = bench.was.early_stopping
        self.scheduler = (
            AsyncHyperBandScheduler(
                "epoch",
                "score",
                "max",
                max_t=bench.epochs,
                grace_period=stopping.grace_period,
                reduction_factor=stopping.reduction_factor,
            )
            if asha
            else None
        )
        self.trials: dict[int, Any] = {}

    def ask(self) -> tuple[int, Recipe, int] | None:
        number, self.count = self.count, self.count + 1
        self.trials[number] = SimpleNamespace(trial_id=str(number))
        if self.scheduler:
            self.scheduler.on_trial_add(None, self.trials[number])
        return number, self.search.suggest(str(number)), self.epochs

    def report(self, training: Training, epoch: int, score: float) -> str:
        trial, result = self.trials[training.number], {"epoch": epoch, "score": score, "training_iteration": epoch}
        said = ""
        if self.scheduler and training.ended:
            self.scheduler.on_trial_complete(None, trial, result)
        elif self.scheduler:
            said = "stopped" if self.scheduler.on_trial_result(None, trial, result) == "STOP" else ""
        if said or training.ended:
            self.search.on_trial_complete(trial.trial_id, result)
        else:
            self.search.on_trial_result(trial.trial_id, result)
        return said

    def named(self, trainings: dict[int, Training]) -> int:
        return max(trainings.values(), key=lambda training: training.scores[-1]).number


class PlainOptuna(Arm):
    """As Optuna's users have it: the default sampler and the default pruner, the best COMPLETE trial by last score."""

    def __init__(self, bench: Bench, seed: int, *, pruner: bool = True) -> None:
        chosen = optuna.pruners.MedianPruner() if pruner else optuna.pruners.NopPruner()
        sampler = optuna.samplers.TPESampler(seed=seed)
        self.study = optuna.create_study(direction="maximize", sampler=sampler, pruner=chosen)
        self.bench = bench
        self.trials: dict[int, optuna.Trial] = {}

    def ask(self) -> tuple[int, Recipe, int] | None:
        trial = self.study.ask()
        self.trials[trial.number] = trial
        return trial.number, self.bench.space.suggest(trial), self.bench.epochs

    def report(self, training: Training, epoch: int, score: float) -> str:
        trial = self.trials[training.number]
        trial.report(score, epoch)
        said = "stopped" if not training.ended and trial.should_prune() else ""
        if training.ended:
            self.study.tell(trial, score)
        elif said:
            self.study.tell(trial, state=TrialState.PRUNED)
        return said

    def named(self, trainings: dict[int, Training]) -> int:
        return max(trainings.values(), key=lambda training: (training.whole, training.scores[-1])).number


class Flat(Arm):
    """For tools without conditions: each option is always drawn; what is not active has no effect."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def active(self, drawn: dict[str, Any]) -> Recipe:
        """Return the values of the active options, of drawn ones: a choice as its index, a step as its number."""
        space, found = self.bench.space, Recipe()
        constants = space.constants
        for parameter in space.parameters:
            if parameter.active(constants | found):
                value, kind = drawn[parameter.name], parameter.kind
                found[parameter.name] = all_values(kind)[int(value)] if isinstance(kind, Choice | QUniform) else value
        return found


class PriorBand(Flat):
    """NePS' PriorBand as it comes (on Hyperband), with the beliefs that NePS can express: one value per option.

    fell_back: number of proposals at which its weights were NaN, as both densities underflow; it then drew by its prior
    and at random.
    """

    fell_back = 0

    def __init__(self, bench: Bench, seed: int) -> None:
        import neps

        super().__init__(bench)
        np.random.seed(seed)  # NePS draws from the global generators  # noqa: NPY002
        torch.manual_seed(seed)
        space: dict[str, Any] = {"epoch": neps.IntegerFidelity(1, bench.epochs // bench.every)}
        for parameter in bench.space.parameters:
            space[parameter.name] = self.domain(neps, parameter, bench.beliefs.get(parameter.name))
        made = type("Made", (neps.PipelineSpace,), space)()
        self.search = neps.AskAndTell(optimizer=neps.algorithms.priorband(made, eta=ETA))
        self.numbers: dict[str, int] = {}
        self.asked: dict[int, Any] = {}

    @staticmethod
    def domain(neps: Any, parameter: Parameter, belief: Any) -> Any:
        """Return an option's range in NePS' terms."""
        sure: dict[str, Any] = {}
        if isinstance(belief, list):
            sure = {"prior": int(np.argmax(belief)), "prior_confidence": "medium"}
        elif belief is not None:
            sure = {"prior": belief[0], "prior_confidence": "high" if belief[1] == "medium" else "medium"}
        kind = parameter.kind
        if isinstance(kind, Choice):
            return neps.Categorical(list(range(len(kind.values))), **sure)
        if isinstance(kind, QUniform):
            return neps.Integer(0, kind.count - 1)
        if isinstance(kind, RandInt):
            return neps.Integer(kind.low, kind.high)
        assert isinstance(kind, Uniform)
        return neps.Float(kind.low, kind.high, log=isinstance(kind, LogUniform), **sure)

    def ask(self) -> tuple[int, Recipe, int] | None:
        try:
            trial = self.search.ask()
        except (AssertionError, ValueError):
            trial = self.without_incumbent()
        before = trial.metadata.previous_trial_id
        number = self.numbers[before] if before else len(set(self.numbers.values()))
        self.numbers[trial.metadata.id] = number
        self.asked[number] = trial
        config = dict(trial.config)
        return number, self.active(config), min(self.bench.epochs, int(config["epoch"]) * self.bench.every)

    def without_incumbent(self) -> Any:
        """Ask with equal weights."""
        import neps.optimizers.priorband as module

        type(self).fell_back += 1
        kept = module.Prior.pdf_configs
        module.Prior.pdf_configs = lambda self, configs, *, frm: torch.ones(len(configs))
        try:
            return self.search.ask()
        finally:
            module.Prior.pdf_configs = kept

    def report(self, training: Training, epoch: int, score: float) -> str:
        if not training.ended and epoch < training.until:
            return ""
        self.search.tell(self.asked[training.number], 1 - training.best)
        return "" if training.ended else "paused"

    def named(self, trainings: dict[int, Training]) -> int:
        return max(trainings.values(), key=lambda training: training.best).number


class Cqr(Flat):
    """Syne Tune's conformal quantile regression (CQR), every training to its end."""

    def __init__(self, bench: Bench, seed: int) -> None:
        from syne_tune import config_space
        from syne_tune.optimizer.baselines import CQR

        super().__init__(bench)
        np.random.seed(seed)  # noqa: NPY002
        space = {}
        for parameter in bench.space.parameters:
            kind = parameter.kind
            if isinstance(kind, Choice):
                space[parameter.name] = config_space.choice(list(range(len(kind.values))))
            elif isinstance(kind, QUniform):
                space[parameter.name] = config_space.randint(0, kind.count - 1)
            else:
                space[parameter.name] = getattr(config_space, kind.key)(kind.low, kind.high)
        self.search = CQR(space, metric="score", do_minimize=False, random_seed=seed)
        self.trials: list[Any] = []

    def ask(self) -> tuple[int, Recipe, int] | None:
        from syne_tune.backend.trial_status import Trial

        config = self.search.suggest().config
        self.trials.append(Trial(len(self.trials), config, datetime.datetime.now()))
        self.search.on_trial_add(self.trials[-1])
        return len(self.trials) - 1, self.active(config), self.bench.epochs

    def report(self, training: Training, epoch: int, score: float) -> str:
        if training.ended:
            self.search.on_trial_complete(self.trials[training.number], {"score": training.best, "epoch": epoch})
        return ""

    def named(self, trainings: dict[int, Training]) -> int:
        return max(trainings.values(), key=lambda training: (training.whole, training.best)).number
