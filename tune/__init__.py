"""Sweeps on Ray."""

import os

# Ray reads it when it is imported. Its handler of SIGTERM in C++ would print a stack, and abort a slow end after 3 s.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
