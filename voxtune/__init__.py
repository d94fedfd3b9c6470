"""voxtune from Python: read runs, launch sweeps, load models. docs/python.md has an example of each.

Importing it and reading runs need neither Ray nor torch. Wrong input raises `InputError`, whose text names the remedy.
Progress goes to the logger "voxtune" at level INFO, which Python does not show by default.
"""

from trainable.core.errors import InputError
from trainable.core.package_version import version
from tune.run.results import TrialResult
from voxtune.actions import launch, load_model
from voxtune.reader import RunReader, open

__all__ = ["InputError", "RunReader", "TrialResult", "launch", "load_model", "open"]
__version__ = version("voxtune")
