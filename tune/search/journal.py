"""The run's Optuna study on disk, the one source of truth on its trials. Only the driver writes to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from trainable.training.epoch_result import EndReason
from tune.search.asha import RungDecision
from tune.search.journal_file import JOURNAL, AtomicJournalBackend, mend_journal
from tune.search.journal_reader import load_trials
from tune.search.optuna_compat import set_intermediate_value, study_id, trial_id
from tune.search.sampler import make_sampler, next_untried, say_if_misled
from tune.search.sampler_storage import SamplerStorage
from tune.search.trial_progress import (
    BestEpoch,
    Progress,
    error_summary,
    gone_back,
    paused_at,
    stopped_at,
    with_decision,
)
from tune.spec.run_record import DEFAULT_STUDY_NAME
from tune.spec.space import encode_values
from tune.spec.sweep_config import SweepConfig
from tune.spec.trial_spec import Report

INFEASIBLE_SCORE = 0.0  # reported to Optuna for an infeasible trial: the Dice if nothing is right
OOM_CONSTRAINT = "gpu_memory"  # the constraint that a trial out of memory violates

optuna.logging.set_verbosity(optuna.logging.ERROR)  # `voxtune check` names the options that are drawn at random
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def read_trials(run_dir: Path, study_name: str = DEFAULT_STUDY_NAME) -> list[FrozenTrial]:
    """Return the trials of a study in a run's journal, also while a sweep writes to it.

    Trials that are enqueued but not handed out yet are left out. A journal without this study has no trials.

    Raises:
        InputError: the journal is missing or damaged.
    """
    path = run_dir / JOURNAL
    if not path.exists():
        raise InputError(f"{path} is missing; restore it, it holds the sweep's trials")
    try:
        trials = load_trials(path, study_name)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore the file, it holds the sweep's trials") from None
    return [frozen for frozen in trials if frozen.state != TrialState.WAITING]


class Journal:
    """Proposes trials, records what they report, and reports to Optuna how they ended.

    The methods on a running trial take the number of one that ask or reattach has handed out, until tell returns its
    final state; for another number they raise KeyError.

    study: Optuna's, in RUN/journal.log.
    """

    def __init__(self, run_dir: Path, config: SweepConfig, *, reset: bool = False) -> None:
        """Open or create the study that `config.record` names. The caller holds the run's lock.

        Half a line at the end of the journal, which a crash has left, is cut off with a warning.

        Args:
            run_dir: the folder of the run, which must exist.
            reset: first delete a study of this name, which a failed launch has left.

        Raises:
            InputError: a line of the journal is damaged.
        """
        self.config = config
        path = run_dir / JOURNAL
        mend_journal(path)
        # Samplers of a space that can be counted see all trials, to try none again.
        best = config.searcher.startup_trials if config.space.recipes is None else None
        self.storage, name = SamplerStorage(AtomicJournalBackend(path), best), config.record.study
        if reset and name in optuna.get_all_study_names(self.storage):
            optuna.delete_study(study_name=name, storage=self.storage)
        self.study = optuna.create_study(
            study_name=name,
            storage=self.storage,
            directions=["maximize", "minimize"] if config.objective.cost else ["maximize"],
            load_if_exists=True,
        )
        if self.study.metric_names != (names := list(config.objective.names)):
            self.study.set_metric_names(names)
        self.search_space = IntersectionSearchSpace(include_pruned=True)
        self.search_space.calculate(self.study)  # of all trials, of which samplers may see some only
        self._running, self._misled = dict[int, Trial](), False  # whether it is said that the prior misleads

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def trials(self) -> list[FrozenTrial]:
        """Return every trial that was handed out or imported: all but those that are enqueued only."""
        return [frozen for frozen in self.study.get_trials(deepcopy=False) if frozen.state != TrialState.WAITING]

    def own_trials(self) -> list[FrozenTrial]:
        """Return those of trials() that were not imported from another run."""
        return [frozen for frozen in self.trials() if "source" not in frozen.user_attrs]

    def enqueue_first(self, params: Sequence[dict[str, Any]]) -> None:
        """Have ask return these params first, one trial per item; options that an item leaves out are sampled.

        Does nothing if the study has a trial that was not imported, or enqueued ones.
        """
        if len(self.study.get_trials(deepcopy=False)) == len(self.trials()) and not self.own_trials():
            for params_of_trial in params:
                self.study.enqueue_trial(params_of_trial, skip_if_exists=True)

    def import_trial(self, frozen: FrozenTrial, params: dict[str, Any] | None, extra: dict[str, Any]) -> None:
        """Add a trial of another study.

        Args:
            frozen: the trial, whose state, score and user attributes are kept. Its number is the next of this study.
            params: its params in this study; None if it is outside this study's space. It then takes a number all the
                same, and is reported to Optuna as FAIL, which samplers ignore.
            extra: user attributes that replace or join the trial's.
        """
        state = frozen.state if params is not None else TrialState.FAIL
        attrs = {**frozen.user_attrs, **extra}
        values: list[float] | None = None
        constraints: dict[str, float] | None = None
        if state == TrialState.COMPLETE:
            values = self._values(frozen.values[0], Progress.from_attrs(attrs))
            constraints = self._constraints(infeasible=bool(frozen.constraints.get(OOM_CONSTRAINT)))
        self.study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=params or {},
                distributions=self.config.space.distributions(params) if params is not None else {},
                user_attrs=attrs,
                constraints=constraints,
                intermediate_values=frozen.intermediate_values,
            )
        )

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return a new trial: its number and the values of its searched options, without inactive ones.

        The sampler is seeded from the study's seed and the trial's number, so that a proposal depends on what is known
        and not on when the sweep was interrupted. It sees paused trials as stopped ones, and of many some only.
        """
        with self.storage.sampling():
            trials, number = self.trials(), self.storage.handed_out(study_id(self.study))
            self._enqueue_untried(number)
            self.study.sampler = make_sampler(self.config, number, self.search_space, trials)
            self._misled = say_if_misled(self.study.sampler, said=self._misled)
            return self._propose(self.study.ask())

    def _enqueue_untried(self, number: int) -> None:
        """Have trial `number`, the next, try a recipe that none has, if the sweep's trials exhaust the space.

        Does nothing if trials are enqueued already.
        """
        if self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            return
        if values := next_untried(self.config, number, self.tried(self.trials())):
            self.study.enqueue_trial(encode_values(values))

    def tried(self, trials: Iterable[FrozenTrial]) -> Iterator[dict[str, Any]]:
        """Yield the searched options of those of these trials that are in this study's space."""
        return (self.config.space.decode_params(t.params) for t in trials if "outside" not in t.user_attrs)

    def reattach(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the trials that an interrupted sweep left running, each as ask returns a new one.

        A running trial whose end is in the journal is reported to Optuna as ended, and not returned. A paused one is
        not returned either, see paused.
        """
        interrupted, trials = [], self.trials()
        for frozen in trials:
            if frozen.state != TrialState.RUNNING:
                continue
            if self.config.space.lacks_a_value(frozen.params):  # a kill came while it was drawn
                self.study.sampler = make_sampler(self.config, frozen.number, self.search_space, trials)
            number, values = self._propose(Trial(self.study, trial_id(frozen)))
            if self.stopped(number) or self.progress(number).end_reason or "hung" in frozen.user_attrs:
                self.tell(number)
            elif paused_at(frozen.user_attrs) is None:
                interrupted.append((number, values))
        return interrupted

    def paused(self) -> dict[int, int]:
        """Return the epoch at which each trial pauses that does, by number."""
        found = {number: paused_at(self.attrs(number)) for number in self._running}
        return {number: epoch for number, epoch in found.items() if epoch is not None}

    @property
    def running(self) -> set[int]:
        """The numbers of the trials that were handed out and have not ended, paused ones included."""
        return set(self._running)

    def _propose(self, trial: Trial) -> tuple[int, dict[str, Any]]:
        self._running[trial.number] = trial
        return trial.number, self.config.space.suggest(trial)

    def attrs(self, number: int) -> dict[str, Any]:
        """Return the user attributes that the journal has of a running trial."""
        return self._running[number].user_attrs

    def values(self, number: int) -> dict[str, Any]:
        """Return the searched options of a running trial."""
        return self.config.space.decode_params(self._running[number].params)

    def progress(self, number: int) -> Progress:
        """Return how far a running trial has come."""
        return Progress.from_attrs(self.attrs(number))

    def stopped(self, number: int) -> bool:
        """Return whether early stopping has decided to stop a running trial."""
        return stopped_at(self.attrs(number)) is not None

    def record(self, number: int, report: Report, checkpoint: str | None = None) -> None:
        """Record a report of a running trial.

        Of a report whose epoch is in the journal already (a restored trial repeats it), or that has none, only the
        seconds count, and an end because memory ran out. With `went_back` the trial goes on after that epoch: the
        later ones are recorded again, while the decisions at their rungs stay.

        Args:
            number: of the trial.
            report: as the trial has sent it.
            checkpoint: path of its checkpoint below the run's storage; None if it has none: the one before stays.
        """
        trial, before, epoch = self._running[number], self.progress(number), int(report["epoch"])
        progress = before.with_time(report.get("time_this_iter_s", 0.0), self.config)
        if "went_back" in report and epoch < before.epoch:
            progress = gone_back(progress, report, checkpoint, self.config)
        if report["end_reason"] == EndReason.OUT_OF_MEMORY:
            progress = replace(progress, end_reason=EndReason.OUT_OF_MEMORY)
        if epoch > before.epoch:
            progress = replace(
                progress,
                epoch=epoch,
                end_reason=EndReason(report["end_reason"]),
                device=report.get("device"),
                data=report.get("data"),
                checkpoint=checkpoint or before.checkpoint,
                case_scores=before.case_scores + ("case_scores" in report),
            )
            score = self.config.objective.score
            if score in report and self.config.objective.cost:  # with two objectives Optuna takes none of these
                progress = progress.with_recent(epoch, float(report[score]), self.config)
            elif score in report:
                set_intermediate_value(self.study, trial, epoch, float(report[score]))
            if score in report and report["best_epoch"] == epoch:
                scores = cast(Mapping[str, float], report)
                dice = {region: scores[f"val_dice_{region}"] for region in REGIONS}
                progress = replace(progress, best=BestEpoch(epoch, report["best_score"], dice))
        if progress != before:  # written last and in one entry: a report that a kill cut off is recorded again
            trial.set_user_attr("progress", progress.to_attrs())

    def record_rung(self, number: int, epoch: int, decided: RungDecision) -> None:
        """Record a decision of early stopping on a trial at the rung of an epoch, before it is acted on."""
        self._running[number].set_user_attr("rungs", with_decision(self.attrs(number), epoch, decided))

    def record_waiting(self, number: int, *, waits: bool) -> None:
        """Record whether a trial waits for resources, or for a free slot; written only when that changes."""
        if self.attrs(number).get("waits", False) != waits:
            self._running[number].set_user_attr("waits", waits)

    def record_hung(self, number: int, text: str) -> None:
        """Record that a trial hung, before its process is ended: it has failed, unless its end is in the journal.

        text: what record_error records of the trial, in place of the error of the ended process.
        """
        self._running[number].set_user_attr("hung", text)

    def record_error(self, number: int, text: str) -> None:
        """Record the error_summary of a traceback, 500 characters at most; the trial's error.txt has the whole text.

        Of a trial that hung, the text of record_hung is recorded.
        """
        text = self.attrs(number).get("hung", text)
        self._running[number].set_user_attr("error", error_summary(text)[:500])

    def finalize_ended(self) -> None:
        """Report to Optuna the trials whose end only the journal has, as the sweep ended before `tell`; others stay."""
        for number in list(self._running):
            self.tell(number)

    def tell(self, number: int, *, failed: bool = False) -> TrialState | None:
        """Report the final state of a running trial, as it follows from the journal, to Optuna.

        COMPLETE with its best score if it ended by itself; with INFEASIBLE_SCORE if it ran out of memory or has no
        validated epoch. PRUNED if early stopping, or gradients or logits that are not finite, stopped it. FAIL if it
        hung, or `failed` says that an error ended it, before such an end.

        Returns:
            The state; None if the trial was only interrupted: nothing is reported, and it is still running.
        """
        trial, progress = self._running[number], self.progress(number)
        infeasible = progress.end_reason == EndReason.OUT_OF_MEMORY
        score = INFEASIBLE_SCORE if infeasible or progress.best is None else progress.best.score
        if self.stopped(number) or progress.end_reason == EndReason.NON_FINITE:
            state = TrialState.PRUNED
        elif progress.end_reason:
            state = TrialState.COMPLETE
            for name, constraint in self._constraints(infeasible=infeasible).items():
                trial.set_constraint(name, constraint)
        elif failed or "hung" in self.attrs(number):
            state = TrialState.FAIL
        else:
            return None
        self.study.tell(trial, self._values(score, progress) if state == TrialState.COMPLETE else None, state=state)
        del self._running[number]
        return state

    def _constraints(self, *, infeasible: bool) -> dict[str, float]:
        """Return the memory constraint to report to Optuna; GPSampler needs it of every trial if any trial has it."""
        return {OOM_CONSTRAINT: float(infeasible)} if infeasible or self.config.searcher.type == "gp" else {}

    def _values(self, score: float, progress: Progress) -> list[float]:
        """Return the objectives to report to Optuna: the score, and the cost if one is configured."""
        if self.config.objective.cost is None:
            return [score]
        return [score, self.config.cost_of(progress.seconds, progress.all_gpu_seconds(self.config))]
