"""The verbs of `voxtune`. Each imports what it needs when it runs: Ray and torch take seconds to import."""

from tune.cli import (  # which add their verbs to app
    analyse,
    cases,
    doctor,
    export,
    look,
    models,
    plan,
    report,
    schema,
    suggest,
    sweeps,
)
from tune.cli.command import app

__all__ = [
    "analyse",
    "app",
    "cases",
    "doctor",
    "export",
    "look",
    "models",
    "plan",
    "report",
    "schema",
    "suggest",
    "sweeps",
]
