"""The validation of an epoch: scores of some of the validation cases, and pictures of the first."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, zip_longest

from trainable.core.brats import Labels
from trainable.core.ranks import gather, rank, world_size
from trainable.data.cache import CachedCase, require_same
from trainable.data.prepare import Data
from trainable.data.split import evenly_spaced
from trainable.evaluation.inference import NonFiniteLogitsError
from trainable.evaluation.metrics import Scores
from trainable.evaluation.pictures import draw_case
from trainable.evaluation.validate import validate
from trainable.training.agreed_end import AgreedEnd
from trainable.training.epoch_result import Pictures
from trainable.training.state import TrainingState
from trainable.training.step_progress import ProgressReporter

NUM_PICTURES = 2  # validation cases that each validation draws


def validate_epoch(
    training: TrainingState,
    data: Data,
    check: Callable[[], object],
    progress: ProgressReporter,
    end: AgreedEnd | None = None,
) -> tuple[dict[str, Scores], Pictures]:
    """Validate on `val_cases` validation cases, evenly spread, or on all of them if that option is 0.

    Of several processes each predicts some of the cases, and gets the scores of all. check is called after each case is
    predicted; what it raises ends the validation. progress is told of each. end: by which several processes end the
    validation together, with KeyboardInterrupt.

    Returns:
        The scores of these cases, and pictures of the first NUM_PICTURES of them, both by name.

    Raises:
        CacheError: if a case is missing in the cache, or is not what it was when the training began.
        NonFiniteLogitsError: if a case's logits are not finite; the message starts with the case's name.
    """
    end = end or AgreedEnd()
    names = evenly_spaced(data.split.val, training.config.val_cases)
    own = names[rank() :: world_size()]
    pictured = set(names[:NUM_PICTURES])
    pictures: Pictures = {}
    done = count(1)

    def on_case(case: CachedCase, prediction: Labels) -> None:
        check()
        progress.case(training.epoch, next(done), len(own))
        require_same({case.name: case.content}, data.contents)
        if case.name in pictured:
            pictures[case.name] = draw_case(case.image, case.label, prediction)
        if end.requested:
            raise _EndRequestedError

    progress.case(training.epoch, 0, len(own))
    cases: dict[str, Scores] = {}
    error = ""
    try:
        cases = validate(training.validated_network, training.config, data.folder, own, on_case=on_case)
    except NonFiniteLogitsError as raised:
        error = str(raised)
    except _EndRequestedError:
        pass
    parts = gather((cases, pictures, error, end.requested))
    end.end_if(any(requested for *_, requested in parts))
    for _, _, error, _ in parts:
        if error:
            raise NonFiniteLogitsError(error)
    rounds = zip_longest(*(part.items() for part, *_ in parts))  # in the order of `names`
    merged = dict(item for cases_of_round in rounds for item in cases_of_round if item is not None)
    return merged, {name: picture for _, part, *_ in parts for name, picture in part.items()}


class _EndRequestedError(Exception):
    """This process is asked to end; it tells the others once it has left its cases."""
