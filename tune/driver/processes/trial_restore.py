"""The checkpoint from which a trial goes on: its newest one that is whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune as ray_tune

from trainable.core.errors import InputError
from trainable.training import checkpoint
from trainable.training.training_dir import BEST
from tune.spec.trial_spec import TrialSpec


@dataclass(frozen=True)
class Restored:
    """Where a trial goes on.

    file: the checkpoint; None to begin again. state: its content. path: of its folder below the run's storage; "" if
    that is not known, or there is none. damage: what is wrong with newer ones, in words; "" if it is the newest.
    """

    file: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    damage: str = ""

    @property
    def epoch(self) -> int:
        """The epoch after which the trial goes on."""
        return int(self.state.get("epoch", 0))


def restore_checkpoint(spec: TrialSpec, scratch: Path) -> Restored | None:
    """Copy the checkpoint to resume from into `scratch`: Ray's own after a worker's death, else one of the spec.

    A power cut may damage the newest one, whose files are not flushed to the disk. Of the others, and of what is intact
    in its folder, the one of the latest epoch is taken then; one without its best model is not whole.

    Returns:
        None if the trial has no checkpoint, so that it starts from the beginning.
    """
    own = ray_tune.get_checkpoint()
    sources = [("", own)] if own is not None else []
    sources += [(path, ray_tune.Checkpoint(folder)) for path, folder in spec["checkpoints"].items()]
    newest, damage = Restored(), list[str]()
    for path, source in sources:
        folder = scratch / f"restored_{len(damage)}"
        try:
            file, state, wrong = load_whole(Path(source.to_directory(str(folder))))
            if state["epoch"] > newest.epoch:
                newest = Restored(file, state, path)
        except InputError as error:
            wrong = str(error)
        except FileNotFoundError:
            wrong = f"{source.path} is gone"
        if not wrong:
            break
        damage.append(wrong.replace(str(folder), source.path))
    return Restored(newest.file, newest.state, newest.path, "; ".join(damage)) if sources else None


def load_whole(folder: Path) -> tuple[Path, dict[str, Any], str]:
    """Return the newest checkpoint in a folder that can be gone on from, its content, and what is wrong with a newer.

    Raises:
        InputError: if there is none.
    """
    file, best = checkpoint.find_checkpoint(folder), folder / BEST
    states, wrong = dict[Path, dict[str, Any]](), ""
    for path in dict.fromkeys((best, file)):
        try:
            states[path] = checkpoint.load_checkpoint(path)
        except InputError as error:
            wrong = str(error)
    if file in states and states[file]["best_epoch"] in (0, states.get(best, {}).get("epoch")):
        return file, states[file], ""
    if best not in states:
        raise InputError(wrong)
    return best, states[best], wrong or f"{best} is not the model of epoch {states[file]['best_epoch']}"
