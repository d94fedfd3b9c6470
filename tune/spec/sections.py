"""The sections of a sweep's YAML, other than `train:` and `space:`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator

from trainable.core.errors import InputError
from trainable.core.option_errors import UnexpectedValueError

Score = Literal["val_dice_mean", "val_dice_WT", "val_dice_TC", "val_dice_ET"]
Cost = Literal["gpu_seconds", "seconds"]
SCORES: tuple[Score, ...] = get_args(Score)
COSTS: tuple[Cost, ...] = get_args(Cost)
DURATION = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class Section(BaseModel):
    """A part of the YAML. Frozen; unknown names are refused; true is not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def parse_duration(value: Any) -> Any:
    """Return 12h, 90m, 45s, 1h30m or 2d as seconds; what is not text stays as it is.

    Raises:
        ValueError: for another text; the message says what was expected.
    """
    if not isinstance(value, str):
        return value
    if not (match := DURATION.fullmatch(value.replace(" ", ""))):
        raise ValueError("a duration such as 2d, 12h, 1h30m, 90m or 45s, or seconds")
    parts = zip(match.groups("0"), (86400, 3600, 60, 1), strict=True)
    return float(sum(int(part) * unit for part, unit in parts))


def read_duration(flag: str, text: str) -> float:
    """Return the seconds of a duration that was given with a flag.

    Raises:
        InputError: naming the flag, for another text or no time at all.
    """
    try:
        seconds = float(parse_duration(text) if not text.isdigit() else text)
    except ValueError as error:
        raise InputError(f"{flag} {text}: expected {error}") from None
    if not seconds:
        raise InputError(f"{flag} {text}: expected more than no time")
    return seconds


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(gt=0),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^ *(?=\d)(\d+ *d *)?(\d+ *h *)?(\d+ *m *)?(\d+ *s *)?$"},
            ]
        }
    ),
]


class Objective(Section):
    """What is searched for: the `metric` of `study:`."""

    metric: Annotated[
        str | list[str],
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": list(SCORES)},
                    {
                        "type": "array",
                        "prefixItems": [{"enum": list(SCORES)}, {"enum": list(COSTS)}],
                        "items": False,
                        "minItems": 1,
                    },
                ]
            }
        ),
    ] = Field(
        "val_dice_mean",
        description="Score of a trial, at its best validated epoch; or [score, cost], to minimise cost.",
    )

    rank_by: Literal["late", "best"] = Field(
        "late",
        description="Trials that trained to their end are ranked by the mean score of the last quarter of their "
        "validations, which chance moves less than a single one, or by their best one.",
    )

    @field_validator("metric", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Accept a score, or a list of a score and a cost."""
        score, *costs = value if isinstance(value, list) and value else [value]
        if score not in SCORES or len(costs) > 1 or any(cost not in COSTS for cost in costs):
            allowed = [", ".join(map(repr, names)) for names in (SCORES, COSTS)]
            expected = f"one of {allowed[0]}, or a list of one of them and one of {allowed[1]}"
            raise UnexpectedValueError(expected, (*SCORES, *COSTS))
        return value if costs else score

    @property
    def score(self) -> Score:
        """The metric that is maximised, compared by early stopping and used to choose the winner."""
        return cast(Score, self.metric if isinstance(self.metric, str) else self.metric[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The score, and the cost if there is one."""
        return (self.score,) if self.cost is None else (self.score, self.cost)

    @property
    def cost(self) -> Cost | None:
        """The metric that is minimised as well; None if there is none."""
        return None if isinstance(self.metric, str) else cast(Cost, self.metric[1])


class Budget(Section):
    """When a sweep ends: the limits in `study:`."""

    trials: int = Field(32, ge=1, description="Recipes to try.")
    time_budget: Duration | None = Field(None, description="Time after which a launch or resume stops.")
    gpu_hours: float | None = Field(None, gt=0, description="GPU hours, summed over trials, after which it stops.")
    target: float | None = Field(
        None, gt=0, le=1, description="Score of a finished trial, at its best epoch, at which the sweep stops."
    )
    enough: float | None = Field(
        None,
        gt=0,
        le=1,
        description="The sweep stops if another 8 trials are expected to raise the best score by less than this.",
    )


class EarlyStopping(Section):
    """When a trial that scores worse than the others is stopped."""

    type: Literal["asha", "median", "promote", "none"] = Field(
        "asha",
        description="asha and median compare trials at rungs as they arrive; promote pauses all of them at one rung, "
        "and trains the best ones on; none lets all trials finish.",
    )
    grace_period: int = Field(1, ge=1, description="Epoch of the first rung; of promote the earliest one of its rung.")
    reduction_factor: int = Field(
        3,
        ge=2,
        description="ASHA: 1 of reduction_factor trials passes a rung; the next rung is reduction_factor times later. "
        "promote: 1 of reduction_factor trials is trained on, from the rung at epochs / reduction_factor.",
    )
    value: Literal["best", "recent"] = Field(
        "best",
        description="What trials are compared by at a rung: their best score so far, or the mean of their last three.",
    )
    min_trials: int = Field(
        3,
        ge=1,
        description="asha, median: a rung stops a trial only if that many trials were there before it.",
    )
    margin: Annotated[
        float | Literal["auto"],
        WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "auto"}]}),
    ] = Field(
        0.0,
        description="asha, median: Dice by which a trial may lie below the others without being stopped; auto takes "
        "half the noise of the trials' scores from one validation to the next.",
    )
    audit: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the trials that would be stopped that goes on to the end, to measure how often a stop is "
        "wrong.",
    )

    @field_validator("margin", mode="plain")
    @classmethod
    def _dice_or_auto(cls, value: Any) -> Any:
        """Accept auto, or a Dice."""
        if value != "auto" and (type(value) not in (int, float) or not 0 <= value <= 1):
            raise UnexpectedValueError("a Dice from 0 to 1, or 'auto'", ["auto"])
        return value if value == "auto" else float(value)


class Searcher(Section):
    """How the next recipe is chosen."""

    type: Literal["bayes", "tpe", "random", "gp", "cmaes"] = Field(
        "tpe",
        description="bayes: a Gaussian process that also learns from stopped trials and weighs priors; the others are "
        "Optuna's samplers.",
    )
    startup_trials: int = Field(
        10, ge=0, description="Trials spread evenly over the space before the sampler learns from them."
    )
    wait_for_startup: bool = Field(
        False, description="Run no other trials until startup_trials have ended, even if slots are free."
    )
    prior_min_steps: int = Field(
        0,
        ge=0,
        description="Sweeps of trainings of fewer steps do without `start:` and `prior:`, as if not written; asha then "
        "has min_trials 1.",
    )


class Confirm(Section):
    """`study.confirm`: the confirmation of the winner that ends the sweep, see `voxtune confirm`."""

    top: int = Field(3, ge=1, description="Best trials that are compared with the default recipe.")
    seeds: int = Field(4, ge=1, description="Trainings of each recipe at most, with seeds that no trial has had.")
    folds: Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0, "not": {"const": 1}})] = Field(
        0, ge=0, description="Folds that the train and val cases are divided into anew; 0 = none."
    )
    epochs: int | None = Field(None, ge=1, description="Epochs of each training; by default those of the sweep.")

    @field_validator("folds")
    @classmethod
    def _none_or_several(cls, value: int) -> int:
        """Refuse one fold now, not at the end of the sweep."""
        if value == 1:
            raise UnexpectedValueError("0, or a whole number >= 2")
        return value


def processes_per_node(gpu_share: float) -> int:
    """Return how many processes of a trial are on each of its nodes: one for each GPU, one on a share or the CPU."""
    return max(1, int(gpu_share))


class Resources(Section):
    """GPUs and cores of a trial, what follows its errors and hangs, which checkpoints and processes are kept."""

    gpu: Annotated[
        int | float | Literal["auto"] | None,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "minimum": 0, "maximum": 1},
                    {"type": "integer", "minimum": 0},
                    {"const": "auto"},
                    {"type": "null"},
                ]
            }
        ),
    ] = Field(
        None,
        description="GPUs per trial, 0 for the CPU; N train it together; a fraction shares one; auto measures at "
        "launch how many share it; by default 1 if the cluster has one.",
    )
    cpu: int = Field(1, ge=1, description="CPU cores per trial, and its threads.")
    nodes: int = Field(1, ge=1, description="Nodes that train a trial together, with gpu and cpu on each of them.")
    max_failures: int = Field(2, ge=0, description="Restarts of a trial from its last checkpoint after errors.")
    fail_fast: bool = Field(False, description="End the sweep at the first trial that has failed after its restarts.")
    report_timeout: Duration | None = Field(
        3600.0, description="A trial that finishes no epoch for this long has hung: it is ended as failed."
    )
    keep_top: int = Field(5, ge=0, description="Early-stopped trials among the best keep_top keep their checkpoint.")
    reuse_processes: bool = Field(True, description="One process runs trial after trial.")

    @field_validator("gpu", mode="plain")
    @classmethod
    def _share_or_whole(cls, value: Any) -> Any:
        """Accept auto, a share of one GPU or a whole number, and no value as the default."""
        if value is None or value == "auto":
            return value
        if type(value) not in (int, float) or not 0 <= value < math.inf or (value > 1 and value != int(value)):
            raise UnexpectedValueError("a fraction up to 1, a whole number, or 'auto'", ["auto"])
        return value

    @property
    def gpu_share(self) -> float:
        """Number of GPUs per trial, or its share of one GPU; 0 while gpu is not given, which a launch replaces.

        Not defined while gpu is auto, which a launch replaces too.
        """
        assert self.gpu != "auto"
        return float(self.gpu or 0)

    def shared_on_nodes(self) -> str:
        """Return that trials on several nodes cannot share GPUs, if these are to; else ""."""
        if self.nodes == 1 or (self.gpu != "auto" and not 0 < (self.gpu or 0) < 1):
            return ""
        return (
            f"resources.nodes is {self.nodes}, but resources.gpu is {self.gpu}; expected a whole number of GPUs on "
            "each node, or 0 for one process per node on its CPU cores"
        )

    @property
    def on_nodes(self) -> str:
        """Words to append to gpu and cpu, as " on each of 2 nodes"; "" for one node."""
        return f" on each of {self.nodes} nodes" if self.nodes > 1 else ""

    @property
    def all_gpus(self) -> float:
        """Number of GPUs that a trial takes on all its nodes, or its share of one; defined as gpu_share."""
        return self.gpu_share * self.nodes
