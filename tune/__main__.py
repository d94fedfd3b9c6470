"""Entry point of `voxtune` and `python -m tune`."""

import gc
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from signal import Signals
from types import FrameType
from typing import NoReturn

from trainable.core.signals import handle_end_signals


def main() -> None:
    """Run a verb.

    Exit code 2 for wrong input, an OSError or a full GPU, 128 + its number after a signal (130 after Ctrl-C), or the
    verb's own.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # A locale of ASCII: Ray reads the names of files as UTF-8.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    handle_end_signals(stop)
    gc.disable()  # all that is imported stays: looking for garbage in it takes a sixth of the time
    from trainable.core.errors import InputError  # here, since a signal may come while these are imported
    from trainable.core.logger import init_logger
    from tune.cli import app

    gc.freeze()
    gc.enable()
    init_logger()
    try:
        sys.argv[1:] = read_words(sys.argv[1:])
        app()
    except (InputError, OSError) as error:
        end_with_error(error)
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # not imported for this: many verbs do without it
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        from trainable.core.gpu_memory import full_gpu

        end_with_error(full_gpu(error))


def end_with_error(error: object) -> NoReturn:
    """Print an error that the user must correct, and end with exit code 2."""
    with suppress(OSError):  # of a terminal that was closed
        print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def read_words(words: Sequence[str]) -> list[str]:
    """Return the words of the command line, with ~ for the home folder also behind `--flag=`, where no shell reads it.

    Raises:
        InputError: a word is not UTF-8, or it is empty: a path that is empty would be the current folder.
    """
    from trainable.core.errors import InputError
    from trainable.core.files import user_path

    expanded = []
    for before, word in pairwise(["", *words]):
        if not word or re.fullmatch(r"--\w+=", word):
            name = word.rstrip("=") or (before if before.startswith("--") else "an argument")
            raise InputError(f"{name} is empty, perhaps by a variable that is not set; . is the current folder")
        user_path(word)  # refuses what is not UTF-8
        path = re.sub(r"^--\w+=", "", word)
        expanded.append(word.removesuffix(path) + str(user_path(path)) if path.startswith("~") else word)
    return expanded


def stop(number: int, _: FrameType | None) -> None:
    """End this process with exit code 128 + number, and print that what was finished is kept.

    A running sweep (see tune/driver/scheduling/sweep_stopper.py) and `voxtune train` handle these signals themselves.
    """
    with suppress(OSError):
        print(f"\nstopped by {Signals(number).name}; what was finished is kept", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
