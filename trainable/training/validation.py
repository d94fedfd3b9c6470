"""The validation of an epoch: scores of some of the validation cases, and pictures of the first."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from trainable.core.brats import Labels
from trainable.data.cache import CachedCase, require_same
from trainable.data.prepare import Data
from trainable.data.split import evenly_spaced
from trainable.evaluation.metrics import Scores
from trainable.evaluation.pictures import draw_case
from trainable.evaluation.validate import validate
from trainable.training.epoch_result import Pictures
from trainable.training.state import TrainingState
from trainable.training.step_progress import ProgressReporter

NUM_PICTURES = 2  # validation cases that each validation draws


def validate_epoch(
    training: TrainingState, data: Data, check: Callable[[], object], progress: ProgressReporter
) -> tuple[dict[str, Scores], Pictures]:
    """Validate on `val_cases` validation cases, evenly spread, or on all of them if that option is 0.

    check is called after each case is predicted; what it raises ends the validation. progress is told of each.

    Returns:
        The scores of these cases, and pictures of the first NUM_PICTURES of them, both by name.

    Raises:
        CacheError: if a case is missing in the cache, or is not what it was when the training began.
    """
    names = evenly_spaced(data.split.val, training.config.val_cases)
    pictures: Pictures = {}
    done = count(1)

    def on_case(case: CachedCase, prediction: Labels) -> None:
        check()
        progress.case(training.epoch, next(done), len(names))
        require_same({case.name: case.content}, data.contents)
        if len(pictures) < NUM_PICTURES:
            pictures[case.name] = draw_case(case.image, case.label, prediction)

    progress.case(training.epoch, 0, len(names))
    cases = validate(training.validated_network, training.config, data.folder, names, on_case=on_case)
    return cases, pictures
