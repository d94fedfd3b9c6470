"""Do the verdicts of `voxtune confirm` hold? Simulated confirmations whose truth is known.

    python benchmarks/confirm_calibration.py [--repeats 1000] [--only 0 5] [--processes 2]

The score of recipe a, training s and case c is mean_a + case_c + (recipe x case)_ac + training_as + residual_asc, each
part normal; "noise" are the deviations of training, recipe x case and residual. Prints how often a race ends with
"better" if no recipe differs; how often, in a quarter of the repeats, if one challenger is better by one and by two
deviations of a training (0.02 if that is 0); how often the 95 % interval of two recipes with all trainings contains the
truth; and how many trainings the races took.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainable.evaluation.comparison import compare_predictions, compare_recipes
from tune.confirmation.race import DEFAULT, ArmScores, Race, race

COLUMNS = (
    "challengers", "seeds", "cases", "noise", "better, no difference", "better, 1 sd", "better, 2 sd", "coverage",
    "trainings, 0 / 1 / 2 sd",
)  # fmt: skip
DRAWS = 2_000  # of each bootstrap; `voxtune confirm` takes 10,000


@dataclass(frozen=True)
class Setting:
    """A confirmation, and how much its scores vary; deviations in Dice.

    Attributes:
        challengers: recipes that race against the default.
        seeds: the most trainings per recipe.
        cases: validation cases.
        folds: that the cases are divided into; 1 for a split.
        training_sd: between trainings of one recipe.
        recipe_sd: of what is special to a recipe and a case.
        residual_sd: of what is special to a training and a case.
        case_sd: between cases, shared by all recipes.
        worst_sd: training_sd of the challengers, if it is another one.
        heavy: recipe_sd is of Student's t with 4 degrees of freedom: some cases differ very much.
    """

    challengers: int
    seeds: int
    cases: int
    folds: int = 1
    training_sd: float = 0.02
    recipe_sd: float = 0.03
    residual_sd: float = 0.03
    case_sd: float = 0.15
    worst_sd: float | None = None
    heavy: bool = False

    def scores(self, effect: float, rng: np.random.Generator) -> dict[str, ArmScores]:
        """Draw the scores of all trainings; the first challenger is better by `effect`."""
        case = rng.normal(0.6, self.case_sd, self.cases)
        arms = {}
        for number, name in enumerate((DEFAULT, *self.names)):
            tails = rng.standard_t(4, self.cases) / np.sqrt(2) if self.heavy else rng.normal(0, 1, self.cases)
            mean = case + self.recipe_sd * tails + (effect if number == 1 else 0)
            sd = self.worst_sd if number and self.worst_sd is not None else self.training_sd
            arms[name] = [self._training(mean, sd, rng) for _ in range(self.seeds)]
        return arms

    def _training(self, mean: NDArray[np.float64], sd: float, rng: np.random.Generator) -> list[NDArray[np.float64]]:
        """Draw the scores of one training per fold."""
        parts = np.array_split(mean, self.folds)
        return [part + rng.normal(0, sd) + rng.normal(0, self.residual_sd, len(part)) for part in parts]

    @property
    def names(self) -> tuple[str, ...]:
        """The challengers."""
        return tuple(f"challenger {number}" for number in range(1, self.challengers + 1))


SETTINGS = (
    Setting(1, 4, 4),
    Setting(1, 4, 20),
    Setting(1, 4, 100),
    Setting(2, 4, 20),
    Setting(3, 4, 4),
    Setting(3, 4, 20),
    Setting(3, 4, 100),
    Setting(1, 8, 4),
    Setting(3, 8, 20),
    Setting(1, 2, 4),
    Setting(1, 2, 20),
    Setting(1, 3, 20),
    Setting(2, 1, 20, folds=5),
    Setting(2, 1, 100, folds=5),
    Setting(2, 2, 20, folds=5),
    Setting(2, 2, 100, folds=5),
    Setting(3, 4, 20, worst_sd=0.04),
    Setting(1, 4, 20, recipe_sd=0.06, heavy=True, training_sd=0.01),
    Setting(1, 4, 20, training_sd=0.0),
)


class Races(NamedTuple):
    """What came of many races: the share that ended with "better", the trainings per race."""

    better: float
    trainings: float


def play(truth: dict[str, ArmScores], setting: Setting, draws: int = DRAWS) -> tuple[Race, int]:
    """Run a race to its end, training what it wants; return how many trainings it took (folds counted as one)."""
    scores: dict[str, list[list[NDArray[np.float64]]]] = {name: [] for name in truth}
    while not (result := race(scores, setting.names, setting.seeds, draws=draws)).ended:
        for name, index in result.wanted:
            scores[name].append(list(truth[name][index]))
    return result, sum(len(arm) for arm in scores.values())


def run_races(setting: Setting, effect: float, repeats: int, draws: int = DRAWS) -> Races:
    """Run races with the first challenger better by `effect`; a race that says "better" ends as clear."""
    better = trainings = 0
    for repeat in range(repeats):
        result, count = play(setting.scores(effect, np.random.default_rng(repeat)), setting, draws)
        better += result.ended == "the verdict is clear"
        trainings += count
    return Races(better / repeats, trainings / repeats)


def coverage(setting: Setting, repeats: int, draws: int = DRAWS) -> float:
    """Return how often the 95 % interval of two equal recipes contains 0, with all trainings."""
    held = 0
    for repeat in range(repeats):
        arms = setting.scores(0.0, np.random.default_rng([repeat, 1]))
        folds = ([np.stack(fold) for fold in zip(*arms[name], strict=True)] for name in (setting.names[0], DEFAULT))
        result = compare_recipes(*folds, draws=draws, seed=repeat)
        held += result.low <= 0 <= result.high
    return held / repeats


def coverage_of_predictions(cases: int, repeats: int, draws: int = DRAWS) -> float:
    """Return how often the 95 % interval of two models that are equally good contains 0."""
    held = 0
    for repeat in range(repeats):
        differences = np.random.default_rng([repeat, 2]).normal(0, 0.05, cases)
        result = compare_predictions(differences, np.zeros(cases), draws=draws, seed=repeat)
        held += result.low <= 0 <= result.high
    return held / repeats


def measure(setting: Setting, repeats: int) -> list[str]:
    """Return a setting's row of the table."""
    size = setting.training_sd or 0.02
    null = run_races(setting, 0.0, repeats)
    one, two = (run_races(setting, effect * size, repeats // 4) for effect in (1, 2))
    whole = (setting.challengers + 1) * setting.seeds
    noise = f"{setting.training_sd:g} / {setting.recipe_sd:g} / {setting.residual_sd:g}"
    noise += f", challengers' {setting.worst_sd:g}" if setting.worst_sd is not None else ""
    noise += ", heavy tails" if setting.heavy else ""
    return [
        str(setting.challengers),
        str(setting.seeds),
        f"{setting.cases} in {setting.folds} folds" if setting.folds > 1 else str(setting.cases),
        noise,
        f"{null.better:.1%}",
        f"{one.better:.0%}",
        f"{two.better:.0%}",
        f"{coverage(setting, 2 * repeats):.1%}",
        f"{null.trainings:.1f} / {one.trainings:.1f} / {two.trainings:.1f} of {whole}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--only", type=int, nargs="+", help="rows of the table, from 0")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    settings = [SETTINGS[index] for index in arguments.only] if arguments.only else SETTINGS
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for row in pool.map(measure, settings, [arguments.repeats] * len(settings)):
            print("| " + " | ".join(row) + " |", flush=True)
    covers = (f"{cases} cases {coverage_of_predictions(cases, arguments.repeats):.1%}" for cases in (4, 20, 100))
    print(f"two models on the same cases, coverage: {', '.join(covers)}")


if __name__ == "__main__":
    main()
