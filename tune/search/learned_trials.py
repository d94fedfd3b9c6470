"""Which trials of a long sweep samplers learn from, so that a proposal takes no longer at 10,000 trials than at 500."""

from __future__ import annotations

from bisect import bisect_left, insort

from optuna.trial import FrozenTrial, TrialState

from tune.search.trial_progress import known_scores

BEST, RECENT = 250, 250  # ended trials of each kind; a sweep with fewer than RECENT learns from all

Standing = tuple[bool, float, float, float]


def standing(frozen: FrozenTrial) -> Standing:
    """Return what ended trials are ordered by: whether one trained to its end, its score, its last epoch and score."""
    complete = frozen.state == TrialState.COMPLETE
    epoch, score = max(known_scores(frozen).items(), default=(0, 0.0))
    return complete, frozen.values[0] if complete else 0.0, float(epoch), score


class LearnedTrials:
    """The ended and paused trials of a study, of which `chosen` returns those that samplers learn from.

    They are the BEST best and the RECENT trials of the highest numbers, so that proposals follow from what is in the
    journal. Trials that ran out of GPU memory say what does not fit, and few do: the RECENT newest of them count too.

    best: at least this many, since startup trials are counted among them; None to choose all.
    """

    def __init__(self, best: int | None) -> None:
        self.best = None if best is None else max(BEST, best)
        self.ended: dict[int, FrozenTrial] = {}  # by number
        self.by_standing: list[tuple[Standing, int]] = []
        self.numbers: list[int] = []
        self.out_of_memory: list[int] = []
        self._chosen: list[FrozenTrial] | None = None  # as long as no trial is added

    def add(self, frozen: FrozenTrial) -> None:
        """Add a trial that has ended, or that pauses and is shown as ended."""
        self._chosen = None
        self.ended[frozen.number] = frozen
        insort(self.by_standing, (standing(frozen), frozen.number))
        insort(self.numbers, frozen.number)
        if any(value > 0 for value in frozen.constraints.values()):
            insort(self.out_of_memory, frozen.number)

    def remove(self, number: int) -> None:
        """Remove a trial that was added."""
        self._chosen = None
        key = standing(self.ended.pop(number)), number
        for numbers, item in ((self.by_standing, key), (self.numbers, number), (self.out_of_memory, number)):
            place = bisect_left(numbers, item)
            if numbers[place : place + 1] == [item]:
                del numbers[place]

    def chosen(self) -> list[FrozenTrial]:
        """Return the trials to learn from, by number."""
        if self._chosen is None:
            numbers = {number for _, number in self.by_standing[-(self.best or 0) :]}
            if self.best is not None:
                numbers |= {*self.numbers[-RECENT:], *self.out_of_memory[-RECENT:]}
            self._chosen = [self.ended[number] for number in sorted(numbers)]
        return self._chosen
