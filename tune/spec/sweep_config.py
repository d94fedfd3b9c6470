"""SweepConfig: what a sweep is asked to do, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, ValidationError, field_validator

from trainable.core.config import TrainConfig
from trainable.core.options import did_you_mean, make_config, to_dict, validation_messages
from tune.spec.space import KeyPath, Problem, Problems, Space
from tune.spec.space_reader import PERMISSIVE_DEFAULTS, read_space

DURATION = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
RESERVED_OPTIONS = {  # options of TrainConfig that `train:` may not hold, and why
    **dict.fromkeys(("output_dir", "resume", "test_only"), "launch sets it"),
    "seed": "write study.seed",
    "metric": "write study.metric",
}


class Section(BaseModel):
    """A part of the YAML. Frozen; unknown names are refused; true is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


SCORES = ("val_dice_mean", "val_dice_WT", "val_dice_TC", "val_dice_ET")
COSTS = ("gpu_seconds", "seconds")
MEDIAN_MIN_TRIALS = 3  # trials that a median needs
DEFAULT_STUDY_NAME = "voxtune"  # name of the first Optuna study in a run's journal


def parse_duration(value: Any) -> Any:
    """12h, 90m, 45s, 1h30m and 2d as seconds."""
    if not isinstance(value, str):
        return value
    if not (match := DURATION.fullmatch(value.replace(" ", ""))):
        raise ValueError("a duration such as 2d, 12h, 1h30m, 90m or 45s, or seconds")
    parts = zip(match.groups("0"), (86400, 3600, 60, 1), strict=True)
    return float(sum(int(part) * unit for part, unit in parts))


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]


class Objective(Section):
    """What is searched for: the `metric` of `study:`."""

    metric: str | list[str] = Field(
        "val_dice_mean", description="Score of a trial, at its best validated epoch; or [score, cost], its cost too."
    )

    @field_validator("metric", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """A score, or a score and a cost."""
        score, *costs = value if isinstance(value, list) and value else [value]
        if score not in SCORES or len(costs) > 1 or any(cost not in COSTS for cost in costs):
            allowed = [", ".join(map(repr, names)) for names in (SCORES, COSTS)]
            raise ValueError(f"one of {allowed[0]}, or a list of one of them and one of {allowed[1]}")
        return value if costs else score

    @property
    def score(self) -> str:
        """The metric that is maximised, that early stopping compares and the winner is chosen by."""
        return self.metric if isinstance(self.metric, str) else self.metric[0]

    @property
    def cost(self) -> str | None:
        """The metric that is minimised as well, if any."""
        return None if isinstance(self.metric, str) else self.metric[1]


class Budget(Section):
    """When a sweep ends: the limits in `study:`."""

    trials: int = Field(32, ge=1, description="Recipes to try.")
    time_budget: Duration | None = Field(None, description="Time after which a launch or resume stops.")
    gpu_hours: float | None = Field(None, gt=0, description="GPU hours, summed over trials, after which it stops.")
    target: float | None = Field(None, gt=0, le=1, description="Score of a finished trial at which the sweep stops.")


class EarlyStopping(Section):
    """When a trial that falls behind ends."""

    type: Literal["asha", "median", "none"] = Field(
        "asha", description="asha and median compare trials at rungs; none lets all run on."
    )
    grace_period: int = Field(1, ge=1, description="Epoch of the first rung.")
    reduction_factor: int = Field(
        3, ge=2, description="With asha one in so many trials passes a rung; the next is so much later."
    )

    @property
    def quantile(self) -> float:
        """Of the scores at a rung, below which a trial is stopped."""
        return 1 - 1 / self.reduction_factor if self.type == "asha" else 0.5

    @property
    def min_trials(self) -> int:
        """Trials at a rung, before which none is stopped there."""
        return MEDIAN_MIN_TRIALS if self.type == "median" else 1


class Searcher(Section):
    """How the next recipe is chosen."""

    type: Literal["tpe", "random", "gp", "cmaes"] = Field("tpe", description="Optuna's sampler.")
    startup_trials: int = Field(
        10, ge=0, description="Trials spread evenly over the space before the sampler learns from them."
    )
    wait_for_startup: bool = Field(
        False, description="Run no other trials until startup_trials have ended, however many slots are free."
    )


class Resources(Section):
    """What one trial may use, and what becomes of it after a fault."""

    gpu: int | float | Literal["auto"] = Field(
        0, description="GPUs of a trial, 0 for the CPU; a fraction shares one, auto measures at launch how many may."
    )
    cpu: int = Field(1, ge=1, description="CPU cores of a trial, and its threads.")
    max_failures: int = Field(2, ge=0, description="Restarts of a trial from its last checkpoint after errors.")
    fail_fast: bool = Field(False, description="End the sweep at the first trial that failed for good.")
    report_timeout: Duration | None = Field(
        3600.0, description="A trial that reports nothing for so long has hung, and is ended as failed."
    )
    keep_top: int = Field(5, ge=0, description="Of so many of the best trials the stopped ones keep their checkpoint.")
    reuse_processes: bool = Field(True, description="A process serves one trial after the other.")

    @field_validator("gpu", mode="plain")
    @classmethod
    def _share_or_whole(cls, value: Any) -> Any:
        if value == "auto":
            return value
        if type(value) not in (int, float) or not 0 <= value < math.inf or (value > 1 and value != int(value)):
            raise ValueError("a fraction up to 1, a whole number, or 'auto'")
        return value

    @property
    def gpu_share(self) -> float:
        """GPUs of a trial, or its share of one; a launch has measured it where auto was asked for."""
        assert self.gpu != "auto"
        return float(self.gpu)


class SweepConfig(Section):
    """A whole sweep, as load_sweep_config has checked it."""

    objective: Objective = Objective()
    budget: Budget = Budget()
    seed: int = Field(0, ge=0, le=2**53, description="Seed of the split, the searcher and the trials.")
    early_stopping: EarlyStopping = EarlyStopping()
    searcher: Searcher = Searcher()
    resources: Resources = Resources()
    train: dict[str, Any] = Field({}, description="Options of TrainConfig that all trials share, as plain values.")
    space: InstanceOf[Space] = Field(description="Options that are searched.")
    record: dict[str, Any] = Field({}, description="What a launch notes of itself: versions, commit, hashes.")

    @property
    def name(self) -> str:
        """Of the Optuna study in the run's journal; another one follows where the space has changed."""
        return str(self.record.get("study", DEFAULT_STUDY_NAME))

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs, before the last, at which trials are compared."""
        stopping, epochs = self.early_stopping, self.fixed("epochs")
        if stopping.type == "none":
            return ()
        if stopping.type == "median":
            return tuple(range(stopping.grace_period, epochs, self.fixed("val_freq")))
        rungs = [stopping.grace_period]
        while rungs[-1] < epochs:
            rungs.append(rungs[-1] * stopping.reduction_factor)
        return tuple(rungs[:-1])

    @property
    def unmodelled_options(self) -> list[str]:
        """The searched options that the searcher cannot model and draws at random."""
        conditional = {p.name for p in self.space.parameters if p.when}
        choices = {p.name for p in self.space.parameters if p.kind == "choice"}
        beyond = {"gp": conditional, "cmaes": conditional | choices}.get(self.searcher.type, set())
        return [p.name for p in self.space.parameters if p.name in beyond]

    def cost_of(self, progress: dict[str, Any]) -> float:
        """What a trial has cost by its progress in the journal: seconds, or seconds times GPUs."""
        seconds = float(progress["seconds"])
        return seconds if self.objective.cost == "seconds" else seconds * self.resources.gpu_share

    def fixed(self, name: str) -> Any:
        """The value of a training option that all trials share."""
        return self.space.constants[name]

    def with_train(self, train: dict[str, Any]) -> SweepConfig:
        """The study with other options that all trials share, as plain values."""
        return self.model_copy(update={"train": train, "space": Space(self.space.parameters, train)})

    def with_gpu(self, gpu: float) -> SweepConfig:
        """The study with so many GPUs a trial."""
        return self.model_copy(update={"resources": self.resources.model_copy(update={"gpu": gpu})})

    def with_record(self, **noted: Any) -> SweepConfig:
        """The study with more on record of its launch."""
        return self.model_copy(update={"record": {**self.record, **noted}})

    def base_config(self, **extra: Any) -> TrainConfig:
        """The default recipe, as far as it lies in the space: trial 0, and what all trials share."""
        return self.train_config(self.space.placeholder_values(), **extra)

    def train_config(self, values: dict[str, Any], **extra: Any) -> TrainConfig:
        """The recipe of a trial: what is fixed, overlaid by its values, overlaid by extra."""
        common = {**self.train, "metric": self.objective.score, "seed": self.seed}
        return make_config({**common, **values, **extra})


# The sections of the YAML, and the fields of each that has a model of its own.
SECTIONS = ("study", "early_stopping", "searcher", "resources", "train", "space", "record")
SECTION_FIELDS = {
    "study": {**Objective.model_fields, **Budget.model_fields, "seed": SweepConfig.model_fields["seed"]},
    "early_stopping": EarlyStopping.model_fields,
    "searcher": Searcher.model_fields,
    "resources": Resources.model_fields,
}


def make_sweep_config(values: dict[str, Any]) -> SweepConfig:
    """Check a mapping of the YAML's sections.

    Raises:
        Problems: all that is wrong with it.
    """
    given = {name: section for name, section in values.items() if section is not None}
    found: list[Problem] = []
    for name in [name for name in SECTIONS if not isinstance(given.get(name, {}), dict)]:
        found.append(((name,), f"{name} is {given.pop(name)!r}; expected `key: value` lines"))
    study = dict(given.pop("study", {}))
    if (mode := study.pop("mode", "max")) != "max":
        sentence = f"study.mode is {mode!r}; expected 'max'. Every score here is a Dice, which is maximised"
        found.append((("study", "mode"), sentence))
    given |= _fields_of_study(study)
    searched = given.get("space", {})
    if not searched:
        found.append((("space",), "space is empty; expected an option to search, such as lr"))
    fixed, wrong = _fixed(given.get("train", {}), searched)
    found += wrong
    space = Space((), fixed)
    try:
        space = read_space(searched, fixed)
    except Problems as error:
        found += error.found
    try:
        config = SweepConfig.model_validate({**given, "train": fixed, "space": space})
    except ValidationError as error:
        raise Problems(*found, *_section_errors(error)) from None
    if found := [*found, *conflicts(config)]:
        raise Problems(*found)
    return config


def _fields_of_study(study: dict[str, Any]) -> dict[str, Any]:
    """The fields of SweepConfig that the YAML has in one section, `study:`; unknown keys go to the objective."""
    study = dict(study)
    budget = {name: study.pop(name) for name in list(study) if name in Budget.model_fields}
    seed = {"seed": study.pop("seed")} if "seed" in study else {}
    return {"objective": study, "budget": budget, **seed}


def to_sections(config: SweepConfig) -> dict[str, Any]:
    """The YAML's sections as plain values; make_sweep_config reads them back."""
    values = config.model_dump(mode="json")
    study = {**values.pop("objective"), **values.pop("budget"), "seed": values.pop("seed")}
    return {"study": study, **values, "space": config.space.to_dict()}


def _fixed(raw: dict[str, Any], searched: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The options of `train:` as plain values, without those that are wrong, and what is wrong."""
    found: list[Problem] = [
        (("train", name), f"train.{name} is {raw[name]!r}; expected no {name} here, {RESERVED_OPTIONS[name]}")
        for name in raw.keys() & RESERVED_OPTIONS.keys()
    ]
    raw = {name: value for name, value in raw.items() if name not in RESERVED_OPTIONS}
    stand_in = {name: value for name, value in PERMISSIVE_DEFAULTS.items() if name in searched and name not in raw}
    try:
        config = TrainConfig.model_validate({**stand_in, **raw})
    except ValidationError as error:
        wrong = set()
        for path, sentence in validation_messages(error):
            key = str(path[0] if path else sentence.split()[0])
            wrong.add(key)
            prefix = "train." if sentence.startswith(key) else f"train.{key}: "
            found.append((("train", key), prefix + sentence))
        rest = {name: value for name, value in raw.items() if str(name) not in wrong}
        fixed, more = _fixed(rest, searched) if len(rest) < len(raw) else ({}, [])
        return fixed, found + more
    given = config.model_fields_set - stand_in.keys()
    return {name: value for name, value in to_dict(config).items() if name in given}, found


def _section_errors(error: ValidationError) -> Iterator[Problem]:
    """Each problem of the other sections."""
    for item in error.errors():
        path = _yaml_path(item["loc"])
        dotted = ".".join(map(str, path))
        fields: dict[str, Any] = SECTION_FIELDS.get(str(path[0]), {}) if len(path) > 1 else dict.fromkeys(SECTIONS)
        if item["type"] == "extra_forbidden":
            close = did_you_mean(str(path[-1]), list(fields))
            yield path, f"{dotted} is unknown{close}; expected one of {', '.join(fields)}"
        else:
            wanted = re.sub("^(Value error, |Input should be )", "", item["msg"])
            wanted = wanted.replace("greater than or equal to", "a number >=").replace("greater than", "a number >")
            close = did_you_mean(str(item["input"]), re.findall(r"'(\w+)'", wanted))
            meaning = fields[str(path[-1])].description if path[-1] in fields else ""
            yield path, f"{dotted} is {item['input']!r}; expected {wanted}{close}. {meaning}"


def _yaml_path(loc: KeyPath) -> KeyPath:
    """Where the YAML has a field of SweepConfig."""
    if loc[0] in ("objective", "budget"):
        return ("study", *loc[1:])
    return ("study", "seed") if loc[0] == "seed" else loc


def conflicts(config: SweepConfig) -> Iterator[Problem]:
    """Sections that do not go together."""
    stopping, val_freq, epochs = config.early_stopping, config.fixed("val_freq"), config.fixed("epochs")
    path, said = ("early_stopping", "grace_period"), f"early_stopping.grace_period is {stopping.grace_period}; expected"
    if stopping.type != "none" and stopping.grace_period % val_freq:
        yield path, f"{said} a multiple of train.val_freq ({val_freq}), for a rung compares validated epochs"
    if stopping.type != "none" and stopping.grace_period > epochs:
        yield path, f"{said} at most train.epochs ({epochs})"
    if config.budget.gpu_hours is not None and not config.resources.gpu:
        yield ("study", "gpu_hours"), "study.gpu_hours would never be spent, since resources.gpu is 0; use time_budget"
    if config.objective.cost == "gpu_seconds" and not config.resources.gpu:
        yield ("study", "metric"), "study.metric: gpu_seconds would always be 0, since resources.gpu is 0; use seconds"
    if config.fixed("device") == "cuda" and not config.resources.gpu:
        yield ("resources", "gpu"), "resources.gpu is 0, but train.device is cuda; expected a GPU, or a share of one"
    if config.searcher.type == "cmaes":
        yield from _cmaes_conflicts(config)


def _cmaes_conflicts(config: SweepConfig) -> Iterator[Problem]:
    """What CMA-ES cannot do."""
    path, said = ("searcher", "type"), "searcher.type is 'cmaes', which"
    if config.objective.cost:
        yield path, f"{said} has one objective; expected tpe, gp or random with study.metric {config.objective.metric}"
    if len(config.space.parameters) - len(config.unmodelled_options) < 2:
        yield path, f"{said} needs two searched numbers without `when`; expected tpe, gp or random for this space"
    if find_spec("cmaes") is None:
        yield path, f"{said} needs the package cmaes: pip install 'voxtune[cmaes]'"
