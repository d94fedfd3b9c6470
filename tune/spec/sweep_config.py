"""SweepConfig: the checked configuration of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, InstanceOf, ValidationError, field_serializer, field_validator

from trainable.core.config import TrainConfig
from trainable.core.option_errors import UnexpectedValueError, did_you_mean, expectation
from trainable.core.options import make_config, option_names, permissive_values, to_dict, validation_messages
from tune.spec.kinds import Choice
from tune.spec.run_record import RunRecord
from tune.spec.sections import (
    Budget,
    Confirm,
    EarlyStopping,
    Objective,
    Resources,
    Searcher,
    Section,
    processes_per_node,
)
from tune.spec.space import ConfigErrors, KeyPath, Problem, Space
from tune.spec.space_reader import read_space
from tune.spec.start_recipes import read_start
from tune.spec.step_division import undivided_step

STUDY_FIELDS = ("seed", "protect_default", "confirm")  # fields of SweepConfig that the YAML has in `study:`
RULE_OF_OLDER_RUNS = {"value": "best", "min_trials": 1, "margin": 0.0}  # of `early_stopping:`
RESERVED_OPTIONS = {  # options of TrainConfig that `train:` may not contain, and why
    **dict.fromkeys(option_names(set_by="launch"), "launch sets it"),
    **{name: f"write study.{name}" for name in option_names(set_by="study")},
}


class SweepConfig(Section):
    """The configuration of a sweep: the sections of its YAML.

    `study:` there is objective, budget and STUDY_FIELDS here. `start:` there is start, with the values of all searched
    options that are drawn in a recipe, and start_names, "" for a recipe without a name.
    """

    objective: Objective = Objective()
    budget: Budget = Budget()
    seed: int = Field(0, ge=0, le=2**53, description="Seed of the split, the searcher and the trials.")
    confirm: Confirm | None = Field(None, description="Ends the sweep with a confirmation of its winner.")
    protect_default: bool = Field(True, description="Early stopping never stops the trial of the default recipe.")
    early_stopping: EarlyStopping = EarlyStopping()
    searcher: Searcher = Searcher()
    resources: Resources = Resources()
    train: dict[str, Any] = Field({}, description="Options of TrainConfig that all trials share, as plain values.")
    space: InstanceOf[Space] = Field(description="Options that are searched.")
    start: tuple[dict[str, Any], ...] = Field(
        (), description="Recipes that are tried after the default one: searched options, or the name or file of one."
    )
    start_names: tuple[str, ...] = ()
    record: RunRecord = Field(RunRecord(), description="What a launch resolved: versions, commit, hashes.")

    @field_validator("confirm", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        """Refuse what is neither a mapping nor left out."""
        if value is None or isinstance(value, dict | Confirm):
            return value
        raise UnexpectedValueError("keys of a confirmation, such as {top: 3, seeds: 4}, or {} for the defaults", [])

    @field_serializer("record")
    def _noted_only(self, record: RunRecord) -> dict[str, Any]:
        return record.to_dict()

    @property
    def unmodelled_options(self) -> list[str]:
        """The searched options that the searcher cannot model and draws at random."""
        conditional = {p.name for p in self.space.parameters if p.when or p.varies}
        choices = {p.name for p in self.space.parameters if isinstance(p.kind, Choice)}
        unmodelled = {"gp": conditional, "cmaes": conditional | choices}.get(self.searcher.type, set())
        return [p.name for p in self.space.parameters if p.name in unmodelled]

    @property
    def given_recipes(self) -> list[tuple[str, dict[str, Any]]]:
        """The recipes that are tried before any is drawn, each once: what it is, and its searched options."""
        names = [f"start recipe {name or index}" for index, name in enumerate(self.start_names, 1)]
        known: list[tuple[str, dict[str, Any]]] = [("the default recipe", self.space.default_values())]
        for name, values in zip(names, self.start, strict=True):
            if all(values != others for _, others in known):
                known.append((name, values))
        return known

    def cost_of(self, seconds: float, gpu_seconds: float) -> float:
        """Return what a trial has cost: the seconds that it ran if that is the cost metric, else its GPU seconds."""
        return seconds if self.objective.cost == "seconds" else gpu_seconds

    def trials_left(self, own: int, tried: Iterable[dict[str, Any]]) -> int:
        """Return how many trials are still to be started: of study.trials, and of the recipes of a finite space.

        Args:
            own: number of trials that were not imported.
            tried: the searched options of each trial, imported ones in this space included.
        """
        left = max(0, self.budget.trials - own)
        untried = self.space.untried(self.budget.trials, tried)
        return left if untried is None else min(left, len(untried))

    def fixed(self, name: str) -> Any:
        """Return the value of a training option that all trials share.

        Raises:
            KeyError: if the option is searched.
        """
        return self.space.constants[name]

    def with_train(self, train: dict[str, Any]) -> SweepConfig:
        """Return a copy whose section `train:` is these options, given as plain values; they are not checked."""
        return self.model_copy(update={"train": train, "space": Space(self.space.parameters, train)})

    def with_gpu(self, gpu: float) -> SweepConfig:
        """Return a copy with this number of GPUs per trial."""
        return self.model_copy(update={"resources": self.resources.model_copy(update={"gpu": gpu})})

    def with_record(self, **changes: Any) -> SweepConfig:
        """Return a copy whose record has these changes."""
        return self.model_copy(update={"record": self.record.replace(**changes)})

    def base_config(self, **extra: Any) -> TrainConfig:
        """Return the recipe of trial 0, of Space.default_values(), overlaid by extra. Raises as train_config does."""
        return self.train_config(self.space.default_values(), **extra)

    def train_config(self, values: dict[str, Any], **extra: Any) -> TrainConfig:
        """Return the recipe of a trial: `train:`, metric and seed of the sweep, overlaid by values, then by extra.

        Args:
            values: the trial's searched options.
            extra: further options, such as the trial's own seed.

        Raises:
            InputError: TrainConfig refuses an option.
        """
        shared = {**self.train, "metric": self.objective.score, "seed": self.seed}
        return make_config({**shared, **values, **extra})


# The sections of the YAML, and the fields of each that has a model.
SECTIONS = ("study", "early_stopping", "searcher", "resources", "train", "start", "space", "record")
SECTION_FIELDS = {
    "study": {
        **Objective.model_fields,
        **Budget.model_fields,
        **{name: SweepConfig.model_fields[name] for name in STUDY_FIELDS},
    },
    "early_stopping": EarlyStopping.model_fields,
    "searcher": Searcher.model_fields,
    "resources": Resources.model_fields,
    "record": RunRecord.model_fields,
}


def make_sweep_config(values: dict[str, Any], folder: Path | None = None) -> SweepConfig:
    """Return the config of a mapping of the YAML's sections; a section that is missing or None has its defaults.

    folder: where files that `start:` names are looked for first; None for the current folder only.

    Raises:
        ConfigErrors: all that is wrong with the sections, an empty `space:` included.
    """
    given = {name: section for name, section in values.items() if section is not None}
    problems: list[Problem] = []
    for name in [name for name in given if name not in SECTIONS]:
        close = did_you_mean(str(name), list(SECTIONS))
        problems.append(((name,), f"{name} is unknown{close}; expected one of {', '.join(SECTIONS)}"))
        del given[name]
    for name in [name for name in SECTIONS if name != "start" and not isinstance(given.get(name, {}), dict)]:
        problems.append(((name,), f"{name} is {given.pop(name)!r}; expected `key: value` lines"))
    study = dict(given.pop("study", {}))
    if (mode := study.pop("mode", "max")) != "max":
        message = f"study.mode is {mode!r}; expected 'max'. Every score here is a Dice, which is maximised"
        problems.append((("study", "mode"), message))
    if given.get("record"):  # a run that was begun before there were these options goes on as it began
        study = {"protect_default": False, "rank_by": "best", **study}
        given["early_stopping"] = {**RULE_OF_OLDER_RUNS, **given.get("early_stopping", {})}
    given |= _fields_of_study(study)
    searched = given.get("space", {})
    if not searched:
        problems.append((("space",), "space is empty; expected an option to search, such as lr"))
    fixed, train_problems = _read_train(given.get("train", {}), searched)
    problems += train_problems
    space, raw_start = Space((), fixed), given.pop("start", [])
    try:
        space = read_space(searched, fixed)
        start, start_problems = read_start(raw_start, space, folder)
        given |= {"start": tuple(v for _, v in start), "start_names": tuple(name for name, _ in start)}
        problems += start_problems
    except ConfigErrors as error:
        problems += error.problems
    try:
        config = SweepConfig.model_validate({**given, "train": fixed, "space": space})
    except ValidationError as error:
        raise ConfigErrors(*problems, *_section_errors(error)) from None
    if problems := [*problems, *conflicts(config)]:
        raise ConfigErrors(*problems)
    return config


def _fields_of_study(study: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of SweepConfig that the YAML has in one section, `study:`; unknown keys go to the objective."""
    budget = {name: value for name, value in study.items() if name in Budget.model_fields}
    own = {name: study[name] for name in STUDY_FIELDS if name in study}
    objective = {name: value for name, value in study.items() if name not in budget.keys() | own.keys()}
    return {"objective": objective, "budget": budget, **own}


def to_sections(config: SweepConfig) -> dict[str, Any]:
    """Return the YAML's sections as plain values; make_sweep_config reads them back."""
    values = config.model_dump(mode="json")
    objective, budget, own = values.pop("objective"), values.pop("budget"), {n: values.pop(n) for n in STUDY_FIELDS}
    # In the order of earlier versions.
    study = {**objective, "trials": budget.pop("trials"), "seed": own.pop("seed"), **budget, **own}
    if study["confirm"] is None:
        del study["confirm"]
    names, recipes = values.pop("start_names"), values.pop("start")
    start = [{"name": name, **recipe} if name else recipe for name, recipe in zip(names, recipes, strict=True)]
    return {"study": study, **values, **({"start": start} if start else {}), "space": config.space.to_dict()}


def _read_train(raw: dict[str, Any], searched: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the options of `train:` as plain values, without those that are wrong, and what is wrong.

    searched: the section `space:`, whose options are not at their defaults when the others are checked.
    """
    problems: list[Problem] = [
        (("train", name), f"train.{name} is {raw[name]!r}; expected no {name} here, {RESERVED_OPTIONS[name]}")
        for name in raw.keys() & RESERVED_OPTIONS.keys()
    ]
    raw = {name: value for name, value in raw.items() if name not in RESERVED_OPTIONS}
    stand_in = {name: value for name, value in permissive_values().items() if name in searched and name not in raw}
    try:
        config = TrainConfig.model_validate({**stand_in, **raw})
    except ValidationError as error:
        wrong = set()
        for path, sentence in validation_messages(error):
            key = str(path[0] if path else sentence.split()[0])
            wrong.add(key)
            prefix = "train." if sentence.startswith(key) else f"train.{key}: "
            problems.append((("train", key), prefix + sentence))
        rest = {name: value for name, value in raw.items() if str(name) not in wrong}
        fixed, more = _read_train(rest, searched) if len(rest) < len(raw) else ({}, [])
        return fixed, problems + more
    given = config.model_fields_set - stand_in.keys()
    return {name: value for name, value in to_dict(config).items() if name in given}, problems


def _section_errors(error: ValidationError) -> Iterator[Problem]:
    """Yield what pydantic has found in the sections other than `train:` and `space:`."""
    for item in error.errors():
        path = _yaml_path(item["loc"])
        if item["type"] == "invalid_key":  # one that is no text, as YAML reads `on:` or `3:`
            path = (*path[:-1], str(item["input"]))
        dotted = ".".join(map(str, path))
        fields: dict[str, Any] = SECTION_FIELDS.get(str(path[0]), {}) if len(path) > 1 else dict.fromkeys(SECTIONS)
        name = str(path[1]) if len(path) > 1 else ""  # of the field, also of a part of it, as (record, attempts, 0)
        if path[:2] == ("study", "confirm") and len(path) > 2:
            fields, name = Confirm.model_fields, str(path[2])
        if item["type"] in ("extra_forbidden", "invalid_key"):
            close = did_you_mean(str(path[-1]), list(fields))
            yield path, f"{dotted} is unknown{close}; expected one of {', '.join(fields)}"
        else:
            field = fields[name]
            yield path, f"{dotted} is {item['input']!r}; expected {expectation(item, field)}. {field.description}"


def _yaml_path(loc: KeyPath) -> KeyPath:
    """Return the path in the YAML of a field of SweepConfig."""
    if loc[0] in ("objective", "budget"):
        return ("study", *loc[1:])
    return ("study", *loc) if loc[0] in STUDY_FIELDS else loc


def undivided_steps(config: SweepConfig) -> str:
    """Return why a trial's GPUs cannot divide the steps of its recipes among them, and what to do; "" if they can."""
    processes = 1 if config.resources.gpu == "auto" else processes_per_node(config.resources.gpu_share)
    return undivided_step(config.space, processes, config.resources.nodes)


def conflicts(config: SweepConfig) -> Iterator[Problem]:
    """Yield a problem per pair of settings that do not go together."""
    stopping, val_freq, epochs = config.early_stopping, config.fixed("val_freq"), config.fixed("epochs")
    path = ("early_stopping", "grace_period")
    message = f"early_stopping.grace_period is {stopping.grace_period}; expected"
    if stopping.type in ("asha", "median") and stopping.grace_period % val_freq:
        yield path, f"{message} a multiple of train.val_freq ({val_freq}), for a rung compares validated epochs"
    if stopping.type != "none" and stopping.grace_period > epochs:
        yield path, f"{message} at most train.epochs ({epochs})"
    if config.budget.gpu_hours is not None and config.resources.gpu == 0:
        yield ("study", "gpu_hours"), "study.gpu_hours would never be spent, since resources.gpu is 0; use time_budget"
    if config.objective.cost == "gpu_seconds" and config.resources.gpu == 0:
        yield ("study", "metric"), "study.metric: gpu_seconds would always be 0, since resources.gpu is 0; use seconds"
    if message := config.resources.shared_on_nodes():
        yield ("resources", "nodes"), message
    if config.fixed("device") == "cuda" and config.resources.gpu == 0:
        yield ("resources", "gpu"), "resources.gpu is 0, but train.device is cuda; expected a GPU, or a share of one"
    if not config.record.attempts and (undivided := undivided_steps(config)):  # a run that was begun can be read
        yield ("resources", "gpu"), undivided
    if config.searcher.type == "bayes" and config.objective.cost:
        message = "searcher.type is 'bayes', which has one objective; expected tpe, gp or random with study.metric"
        yield ("searcher", "type"), f"{message} {config.objective.metric}"
    if config.searcher.type == "cmaes":
        yield from _cmaes_conflicts(config)


def _cmaes_conflicts(config: SweepConfig) -> Iterator[Problem]:
    """Yield a problem per thing that CMA-ES cannot do and the config requests."""
    path, message = ("searcher", "type"), "searcher.type is 'cmaes', which"
    if config.objective.cost:
        metric = config.objective.metric
        yield path, f"{message} has one objective; expected tpe, gp or random with study.metric {metric}"
    if len(config.space.parameters) - len(config.unmodelled_options) < 2:
        needs = "needs two searched numbers without `when`, of one range each"
        yield path, f"{message} {needs}; expected tpe, gp or random for this space"
    if find_spec("cmaes") is None:
        yield path, f"{message} needs the package cmaes: pip install 'voxtune[cmaes]'"
