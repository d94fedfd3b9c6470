"""Confirms the winner of a sweep: trains the best recipes and the default again, with seeds that the sweep has not had.

The race (tune/confirmation/race.py) decides by validation scores which trainings are wanted next; the test cases are
scored when it has ended, so nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.counted import counted
from trainable.core.epoch_scale import scale_to_epochs
from trainable.core.errors import InputError
from trainable.core.locks import is_locked, lock_folder
from trainable.core.logger import logger
from trainable.data.prepare import Data
from trainable.data.split import load_split, save_split
from tune.confirmation.plan import Arm, ConfirmPlan, choose_arms, extend_plan, load_plan, save_plan, unused_seeds
from tune.confirmation.race import Race
from tune.confirmation.recipe_arms import read_recipe
from tune.confirmation.report import Confirmation, evaluate_confirmation, judge, tested_seeds, write_report
from tune.confirmation.scores import ConfirmScores, has_tested, replay_race
from tune.driver.cluster.connection import Cluster
from tune.driver.launch.node_check import check_nodes_for
from tune.driver.trainings import Outcome, Training, run_trainings
from tune.retrain import divide_into_folds, prepare_same_cases
from tune.run.confirm_dir import ConfirmDir
from tune.run.results import Run, read_run
from tune.run.run_dir import confirm_command

TOP, SEEDS = 3, 4  # by default: trials that are confirmed, trainings of each recipe


def confirm(
    run_dir: Path,
    *,
    top: int | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    epochs: int | None = None,
    budget: float | None = None,
    recipes: Sequence[Path] = (),
    take_best: bool = False,
    cluster: Cluster | None = None,
    address: str | None = None,
) -> Confirmation:
    """Confirm the winner of a sweep in RUN/confirm; print and write the verdict, return it.

    Called again, this goes on; a larger `top` or `seeds` and further recipes extend it.

    Args:
        run_dir: RUN.
        top: number of the best trials that compete with the default.
        seeds: number of trainings of each recipe, at most; per fold.
        folds: number of folds that the train and val cases are divided into anew; 0 for the sweep's split.
        epochs: of each training; the sweep's number by default.
        budget: seconds after which it stops, to go on later; None for no limit.
        recipes: files of further recipes, or names of shipped ones.
        take_best: choose the best challenger even if it is not shown to be better than the default.
        cluster: an entered Cluster, which is left open; None for a new Cluster(address).

    Raises:
        InputError: if the sweep runs or has no finished trial, a recipe cannot be used, the cases have changed, or the
            confirmation was begun with other folds, epochs or recipes; or for nodes on which trainings would fail.
        SystemExit: as run_trainings.
    """
    run = read_run(run_dir)
    if is_locked(run.folder):
        raise InputError(f"{run.folder}: its sweep runs now; wait for its end")
    folder = run.dir.confirm
    begun = load_plan(folder.plan)
    extra = [read_recipe(path, run.config.base_config()) for path in recipes]
    wanted = make_plan(run, begun, extra, top=top, seeds=seeds, folds=folds, epochs=epochs)
    with lock_folder(folder.path):
        begun = load_plan(folder.plan)
        plan = extend_plan(begun, wanted, tested=has_tested(folder))
        data = prepare_confirmation(run, plan, folder, begun=begun is not None)
        save_plan(plan, folder.plan)
        logger.info(plan_line(run, plan))
        trainings = ConfirmTrainings(run, plan, folder, data)
        outcomes = run_trainings(
            trainings.wanted,
            folder.trainings,
            run.config.resources,
            cluster=cluster,
            address=address,
            time_budget=budget,
            contents_file=run.dir.contents,
            check=partial(check_nodes_for, run),
            resume_command=confirm_command(run.folder, take_best=take_best, address=address),
        )
        trainings.note(outcomes)
        return conclude(trainings, take_best=take_best, address=address)


def conclude(trainings: ConfirmTrainings, *, take_best: bool, address: str | None) -> Confirmation:
    """Judge the scores of the trainings that have ended; print and write the verdict, return it."""
    run, plan, scores = trainings.run, trainings.plan, ConfirmScores(trainings.folder, trainings.plan)
    found = evaluate_confirmation(run, plan, scores, trainings.errors, take_best=take_best)
    write_report(run, found, scores, address=address)
    return found


def make_plan(
    run: Run,
    begun: ConfirmPlan | None,
    extra: Sequence[Arm],
    *,
    top: int | None,
    seeds: int | None,
    folds: int | None,
    epochs: int | None,
) -> ConfirmPlan:
    """Return what a call asks for; what it does not say is as begun, or as the sweep's YAML or the defaults have it.

    Raises: as choose_arms.
    """
    asked = run.config.confirm
    if begun is not None:
        top, seeds = top or begun.top, seeds or len(begun.seeds)
        folds, epochs = begun.folds if folds is None else folds, epochs or begun.epochs
    elif asked is not None:
        top, seeds = top or asked.top, seeds or asked.seeds
        folds, epochs = asked.folds if folds is None else folds, epochs or asked.epochs
    arms = choose_arms(run, top or TOP, extra)
    record = run.config.record
    return ConfirmPlan(
        arms=arms,
        seeds=unused_seeds(run, seeds or SEEDS),
        folds=folds or 0,
        epochs=epochs or run.config.fixed("epochs"),
        top=top or TOP,
        metric=run.config.objective.score,
        split=record.split or "",
        data=record.data or "",
        winner=run.best().number,
    )


def plan_line(run: Run, plan: ConfirmPlan) -> str:
    """Return what a confirmation compares, and how much it trains at most, in a line."""
    names, seeds = ", ".join(arm.name for arm in plan.arms), len(plan.seeds)
    times = counted(seeds, "seed") + f", {plan.folds} folds" * bool(plan.folds)
    most = len(plan.arms) * seeds * len(plan.fold_indices)
    return f"confirmation of {run.folder.name}: {names}; {times}; at most {most} trainings of {plan.epochs} epochs"


def prepare_confirmation(run: Run, plan: ConfirmPlan, folder: ConfirmDir, *, begun: bool) -> Data:
    """Prepare the cases of a run, write the splits of the folds, and return the cases with the run's split.

    begun: the splits of an earlier call must be the same; else they are of one that was killed before it had a plan.

    Raises:
        InputError: if the cases, or the file of labels or weights that the sweep had, are not as they were; or there
            are fewer patients than folds.
    """
    for option in ("labels", "pretrained"):
        run.require_file(option)
    run.split()
    data = prepare_same_cases(run, base_config(run))
    if plan.folds:
        splits = divide_into_folds(run, data, plan.folds)
        folder.splits.mkdir(parents=True, exist_ok=True)
        for fold, split in enumerate(splits):
            path = folder.fold_split(fold)
            if begun and path.exists() and load_split(path) != split:
                raise InputError(f"{path} is not the split of that fold any more; restore it, or delete it")
            save_split(split, path)
    return data


def base_config(run: Run) -> TrainConfig:
    """Return the options of the sweep's default recipe, on its cases and with its split."""
    return run.config.base_config(cache_dir=run.config.record.cache_dir, split_file=run.dir.split)


class ConfirmTrainings:
    """The trainings that a confirmation wants, by the scores of those that have an outcome.

    data: the prepared cases.
    """

    def __init__(self, run: Run, plan: ConfirmPlan, folder: ConfirmDir, data: Data) -> None:
        self.run, self.plan, self.folder, self.data = run, plan, folder, data
        self.keys: dict[str, tuple[str, int, int | None]] = {}  # arm, index of the seed and fold, but of tests
        self.ended: set[tuple[str, int, int | None]] = set()  # arm, seed and fold of trainings with a model
        self.errors: dict[tuple[str, int], str] = {}  # of trainings without a model, by arm and index of the seed
        # Only those with an outcome: one that has written its last epoch is still wanted until its process returns.
        self.scores = ConfirmScores(folder, plan, self.ended)
        self.decided: tuple[tuple[int, int], Race] | None = None  # by how many trainings, and what
        self.tested: dict[str, int] | None = None  # tested_seeds once the race has ended: it takes a second
        base = base_config(run).model_copy(update={"cache_dir": data.folder, "save_freq": plan.epochs + 1})
        self.configs = {arm.name: scale_to_epochs(arm.config(base), plan.epochs) for arm in plan.arms}

    def wanted(self, outcomes: Mapping[str, Outcome]) -> list[Training]:
        """Return the trainings that are wanted now: those of the race, then the test of the two that it compares."""
        state = self.race(outcomes)
        if not state.ended:
            return [item for arm, index in (*state.wanted, *state.ahead) for item in self.of_seed(arm, index)]
        if not self.data.split.test:
            return []
        if self.tested is None:
            self.tested = tested_seeds(state, judge(self.run, self.plan, self.scores, state, take_best=False))
        tested = [(arm, index) for arm, count in self.tested.items() for index in range(count)]
        return [item for arm, index in tested for item in self.of_seed(arm, index, test=True)]

    def of_seed(self, arm: str, index: int, *, test: bool = False) -> list[Training]:
        """Return an arm's trainings with a seed, one per fold; index: of the seed, from 0."""
        seed, trainings = self.plan.seeds[index], []
        for fold in self.plan.fold_indices:
            output = self.folder.training(arm, seed, fold)
            changes = {"seed": seed, "output_dir": output.path.resolve()}
            if fold is not None:
                changes |= {"split_file": self.folder.fold_split(fold), "val_cases": 0}
            config = self.configs[arm].model_copy(update=changes)
            name = training_name(arm, seed, fold) + " test" * test
            if not test:
                self.keys[name] = arm, index, fold
            trainings.append(Training(name, config, test))
        return trainings

    def note(self, outcomes: Mapping[str, Outcome]) -> None:
        """Note which trainings have a model, and why others have none; outcomes of tests are left out."""
        for name in outcomes.keys() & self.keys.keys():
            arm, index, fold = self.keys[name]
            if error := outcomes[name].error:
                self.errors[arm, index] = error
            else:
                self.ended.add((arm, self.plan.seeds[index], fold))

    def race(self, outcomes: Mapping[str, Outcome]) -> Race:
        """Return what the scores so far decide; a decision is made once per set of trainings, as it takes a second."""
        self.note(outcomes)
        known = len(self.ended), len(self.errors)
        if self.decided is None or self.decided[0] != known:
            self.decided = known, replay_race(self.scores, self.errors)
        return self.decided[1]


def training_name(arm: str, seed: int, fold: int | None) -> str:
    """Return how a training is called in the table and in messages."""
    return f"{arm} seed_{seed}{'' if fold is None else f' fold_{fold}'}"
