"""Whether the winner of a run is confirmed, as RUN/confirm/confirm.json says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from trainable.core.counted import counted
from trainable.core.errors import InputError
from trainable.core.locks import is_locked
from tune.confirmation.plan import load_plan
from tune.confirmation.race import DEFAULT
from tune.confirmation.verdict import Verdict, lacking, what_would_tell
from tune.run.confirm_dir import ConfirmDir
from tune.run.results import Run
from tune.run.run_dir import confirm_command

VERSION = 2  # of confirm.json


def load_result(folder: ConfirmDir) -> dict[str, Any] | None:
    """Return the content of confirm.json; None if there is none yet.

    Raises:
        InputError: if it is damaged or of another version.
    """
    if not folder.result.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(folder.result.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, expected {VERSION}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder.result}: cannot be read ({error}); make it again with `voxtune confirm`") from None
    return content


def is_current(run: Run, content: Mapping[str, Any]) -> bool:
    """Return whether a confirmation is of the ranking as it is now."""
    return bool(run.ranking) and content["winner"] == run.best().number


def has_ended(run: Run, content: Mapping[str, Any]) -> bool:
    """Return whether a confirmation has ended, and was not extended by recipes or seeds since."""
    plan = load_plan(run.dir.confirm.plan)
    extended = plan is not None and (
        [arm.name for arm in plan.arms] != content["arms"] or list(plan.seeds) != content["seeds"]
    )
    return bool(content["ended"]) and not extended


def confirmed_choice(run: Run) -> tuple[str, int | None] | None:
    """Return the recipe that a confirmation chose: its name, and its trial if it is one's.

    None if there is no confirmation that has ended and could compare any, or it is of an earlier ranking.
    """
    content = load_result(run.dir.confirm)
    if content is None or not has_ended(run, content) or not is_current(run, content):
        return None
    if not content["validation"]["comparisons"]:  # the default failed, or there was no challenger
        return None
    return content["chosen"], content["chosen_trial"]


def confirmation_line(run: Run) -> str:
    """Return whether the winner of a run is confirmed, in a line, with the command that would tell if none has."""
    text, tells = confirmation_text(run)
    return text if tells or not text else f"{text}: `{confirm_command(run.folder)}`"


def confirmation_text(run: Run) -> tuple[str, bool]:
    """Return whether the winner of a run is confirmed, in a line, and whether nothing is left to do to know it.

    The line is "" while the sweep has no winner to confirm.
    """
    if not run.ranking or not run.best().finished:
        return "", False
    if is_locked(run.dir.confirm.path):
        return "the winner is being confirmed now", True
    content = load_result(run.dir.confirm)
    if content is None:
        return "the confirmation has not ended" if run.dir.confirm.plan.exists() else "winner not confirmed", False
    verdict = Verdict.from_json(content["validation"])
    if not is_current(run, content):
        winners = f"trial {content['winner']} was the winner and not trial {run.best().number}"
        return f"the confirmation is of an earlier ranking, when {winners}", False
    if not has_ended(run, content):
        return f"the confirmation has not ended; so far: {sentence(verdict)}", False
    of_winner = content["chosen_trial"] == content["winner"]
    if verdict.confirmed:
        return f"{'winner' if of_winner else 'another recipe than the winner is'} confirmed: {sentence(verdict)}", True
    if verdict.chosen == DEFAULT and of_winner:
        return f"the winner is the default recipe, and no other is shown to be better: {sentence(verdict)}", True
    return f"winner not confirmed: {unconfirmed_text(verdict, len(content['seeds']))}", True


def unconfirmed_text(verdict: Verdict, seeds: int) -> str:
    """Return why a challenger is not shown to be better, the command that would tell, and what is chosen meanwhile.

    seeds: per recipe, at most, of the confirmation.
    """
    text, chosen = sentence(verdict), f"{recipe_name(verdict.chosen)} is chosen"
    more = verdict.comparison.more_trainings if verdict.comparison else None
    wanted = judged_trainings(verdict) + (more or 0)
    if not more or wanted <= seeds:  # it left the race before its last training
        return f"{text}; {chosen}"
    return f"{text}: voxtune confirm RUN --seeds {wanted}; until then {chosen}"


def sentence(verdict: Verdict) -> str:
    """Return a verdict with its subject, without what was chosen."""
    comparison, name = verdict.comparison, recipe_name(verdict.winner)
    if comparison is None:
        return verdict.words
    if comparison.verdict != "not shown":
        return f"{name} is {verdict.words}"
    difference = f"{abs(comparison.difference):.3f} {'more' if comparison.difference >= 0 else 'less'}"
    scored = f"{name} scored {difference} than the default"
    if math.isnan(comparison.low):
        return f"{scored}, which shows nothing with {lacking(judged_trainings(verdict), verdict.unit)}"
    return (
        f"{scored}, but with {counted(judged_trainings(verdict), verdict.unit)} each the true difference may be "
        f"{comparison.dice_low:.3f} to {comparison.dice_high:.3f}; {what_would_tell(comparison, verdict.unit)}"
    )


def judged_trainings(verdict: Verdict) -> int:
    """Return the number of trainings of the winner that a verdict is by."""
    return next((arm.trainings for arm in verdict.arms if arm.name == verdict.winner), 0)


def recipe_name(arm: str) -> str:
    """Return what a recipe of a confirmation is called in a sentence: "the default", "trial 12" or its own name."""
    if arm == DEFAULT:
        return "the default"
    number = arm.removeprefix("trial_")
    return f"trial {int(number)}" if number != arm and number.isdecimal() else arm
