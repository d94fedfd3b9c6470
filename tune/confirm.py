"""Confirms the winner of a sweep: trains the best recipes and the default again, with seeds that the sweep has not had.

The race (tune/run/race.py) decides by validation scores which trainings are wanted next; the test cases are scored when
it has ended, so nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.locks import is_locked, lock_folder
from trainable.data.cache import scan_of
from trainable.data.patients import find_patients
from trainable.data.prepare import Data
from trainable.data.split import fold_splits, load_split, save_split
from tune.driver.cluster import Cluster
from tune.driver.trainings import Outcome, Training, run_trainings
from tune.retrain import prepare_same_cases, scale_to_epochs
from tune.run.confirm_dir import ConfirmDir
from tune.run.confirm_report import Confirmation, evaluate_confirmation, judge, tested_seeds, write_report
from tune.run.confirm_scores import ConfirmScores, column_of, replay_race
from tune.run.confirmation import Arm, ConfirmPlan, choose_arms, extend_plan, load_plan, save_plan, unused_seeds
from tune.run.race import Race
from tune.run.recipe_files import read_recipe
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
            confirmation was begun with other folds, epochs or recipes.
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
        plan = extend_plan(load_plan(folder.plan), wanted, tested=folder.result.exists())
        data = prepare_confirmation(run, plan, folder)
        save_plan(plan, folder.plan)
        trainings = ConfirmTrainings(run, plan, folder, data)
        outcomes = run_trainings(
            trainings.wanted,
            folder.trainings,
            run.config.resources,
            cluster=cluster,
            address=address,
            time_budget=budget,
            contents_file=run.dir.contents,
            resume_command=confirm_command(run.folder),
        )
        trainings.race(outcomes)
        found = evaluate_confirmation(run, plan, trainings.scores, trainings.errors, take_best=take_best)
        write_report(run, found, trainings.scores)
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
        metric=run.config.objective.score,
        split=record.split or "",
        data=record.data or "",
        winner=run.best().number,
    )


def prepare_confirmation(run: Run, plan: ConfirmPlan, folder: ConfirmDir) -> Data:
    """Prepare the cases of a run, write the splits of the folds, and return the cases with the run's split.

    Raises:
        InputError: if the cases, or the file of labels or weights that the sweep had, are not as they were; or there
            are fewer patients than folds.
    """
    for option in ("labels", "pretrained"):
        run.require_file(option)
    run.split()
    data = prepare_same_cases(run, base_config(run))
    if plan.folds:
        scans = {name: scan_of(content) for name, content in data.contents.items()}
        table = run.config.fixed("patients")
        patients = find_patients(data.split.names, scans, None if table is None else Path(table)).of_case
        folder.splits.mkdir(parents=True, exist_ok=True)
        for fold, split in enumerate(fold_splits(data.split, plan.folds, run.config.seed, patients)):
            path = folder.fold_split(fold)
            if path.exists() and load_split(path) != split:
                raise InputError(f"{path} is not the split of that fold any more; restore it, or delete it")
            save_split(split, path)
    return data


def base_config(run: Run) -> TrainConfig:
    """Return the options of the sweep's default recipe, on its cases and with its split."""
    return run.config.base_config(cache_dir=run.config.record.cache_dir, split_file=run.dir.split)


class ConfirmTrainings:
    """The trainings that a confirmation wants, by the scores of those that have ended.

    data: the prepared cases.
    """

    def __init__(self, run: Run, plan: ConfirmPlan, folder: ConfirmDir, data: Data) -> None:
        self.run, self.plan, self.folder, self.data = run, plan, folder, data
        self.scores = ConfirmScores(folder, plan)
        self.keys: dict[str, tuple[str, int] | None] = {}  # arm and index of the seed, of each training but tests
        self.errors: dict[tuple[str, int], str] = {}  # of trainings without a model, by arm and index of the seed
        self.decided: tuple[tuple[int, ...], Race] | None = None  # by how many trainings, and what
        base = base_config(run).model_copy(update={"cache_dir": data.folder, "save_freq": plan.epochs + 1})
        self.configs = {arm.name: scale_to_epochs(arm.config(base), plan.epochs) for arm in plan.arms}

    def wanted(self, outcomes: Mapping[str, Outcome]) -> list[Training]:
        """Return the trainings that are wanted now: those of the race, then the test of the two that it compares."""
        state = self.race(outcomes)
        if not state.ended:
            return [item for arm, index in (*state.wanted, *state.ahead) for item in self.of_seed(arm, index)]
        if not self.data.split.test:
            return []
        val = judge(self.run, self.plan, self.scores, state, take_best=False)
        tested = [(arm, index) for arm, count in tested_seeds(state, val).items() for index in range(count)]
        return [item for arm, index in tested for item in self.of_seed(arm, index, test=True)]

    def of_seed(self, arm: str, index: int, *, test: bool = False) -> list[Training]:
        """Return an arm's trainings with a seed, one per fold; index: of the seed, from 0."""
        seed, trainings = self.plan.seeds[index], []
        for fold in self.plan.fold_indices:
            output = self.folder.training(arm, seed, fold)
            changes = {"seed": seed, "output_dir": output.path.resolve()}
            if fold is not None:
                changes |= {"split_file": self.folder.fold_split(fold), "val_cases": 0}
            name = training_name(arm, seed, fold)
            config = self.configs[arm].model_copy(update=changes)
            name = f"{name} test" if test else name
            self.keys[name] = None if test else (arm, index)
            trainings.append(Training(name, config, test))
        return trainings

    def race(self, outcomes: Mapping[str, Outcome]) -> Race:
        """Return what the scores so far decide; a decision is made once per set of trainings, as it takes a second."""
        errors = {self.keys[name]: outcome.error for name, outcome in outcomes.items() if outcome.error}
        self.errors |= {key: error for key, error in errors.items() if key is not None}
        scores = self.scores.of_arms(column_of(self.plan.metric))
        known = (*(len(seeds) for seeds in scores.values()), len(self.errors))
        if self.decided is None or self.decided[0] != known:
            self.decided = known, replay_race(self.scores, self.errors)
        return self.decided[1]


def training_name(arm: str, seed: int, fold: int | None) -> str:
    """Return how a training is called in the table and in messages."""
    return f"{arm} seed_{seed}{'' if fold is None else f' fold_{fold}'}"
