"""`voxtune check SPACE --json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trainable.core.idle_options import idle_text
from tune.analysis.json_output.document import Document
from tune.search.asha import rung_epochs
from tune.search.sampler import first_recipes
from tune.spec.idle_parameters import idle_parameters
from tune.spec.sweep_config import SweepConfig


class ParameterItem(Document):
    """A searched option."""

    name: str = Field(description="Name of the option.")
    kind: str = Field(description="choice, uniform, loguniform, randint or quniform.")
    range: list[Any] = Field(description="As the YAML has it: the values of a choice, else low, high and perhaps step.")
    when: dict[str, list[Any]] = Field(description="It is searched only if each of these options has a value given.")


class CheckOutput(Document):
    """A YAML that is right. One that is wrong has no output: the messages are on standard error, the exit code is 2."""

    schema_: Literal["voxtune/check/1"] = Field("voxtune/check/1", alias="schema", description="Name and version.")
    space: list[ParameterItem] = Field(description="The searched options.")
    metric: str = Field(description="Score by which trials are compared.")
    trials: int = Field(description="study.trials.")
    epochs: int = Field(description="Epochs of a whole training.")
    searcher: str = Field(description="Who proposes recipes.")
    early_stopping: str = Field(description="asha, median, promote or none.")
    rungs: list[int] = Field(description="Epochs at which trials are compared; empty without early stopping.")
    first_trials: list[dict[str, Any]] = Field(description="Options of the first trials, as far as known before.")
    default_trial: str = Field(description="How trial 0 differs from the default recipe, in words.")
    drawn_at_random: list[str] = Field(description="Options that the searcher cannot model.")
    warning: str = Field(description='Options that cannot act, in words; else "".')


def check_output(config: SweepConfig, first: int) -> CheckOutput:
    """Return what a YAML asks for; first: how many trials are shown."""
    parameters = [
        ParameterItem(
            name=parameter.name,
            kind=parameter.kind.key,
            range=parameter.kind.to_list(),
            when={name: list(values) for name, values in parameter.when.items()},
        )
        for parameter in config.space.parameters
    ]
    return CheckOutput(
        space=parameters,
        metric=config.objective.metric,
        trials=config.budget.trials,
        epochs=config.fixed("epochs"),
        searcher=config.searcher.type,
        early_stopping=config.early_stopping.type,
        rungs=list(rung_epochs(config)),
        first_trials=list(first_recipes(config, first)),
        default_trial=config.space.describe_defaults(),
        drawn_at_random=config.unmodelled_options,
        warning=idle_text(idle_parameters(config.space)),
    )
