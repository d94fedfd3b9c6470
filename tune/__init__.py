"""Sweeps on Ray."""

import os

import trainable  # noqa: F401 - sets what torch reads when it is imported, also in a trial's process

# Ray reads these when it is imported. Its C++ handler of SIGTERM would print a stack, and abort a slow end after 3 s.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# A cluster that is started here then listens on the loopback address only; an --address is not affected.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
