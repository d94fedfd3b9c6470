"""The verbs of `voxtune`. Each imports what it needs when it runs: Ray and torch take seconds to import."""

from tune.cli import analyse, cases, export, look, models, report, schema, suggest, sweeps  # add their verbs to app
from tune.cli.command import app

__all__ = ["analyse", "app", "cases", "export", "look", "models", "report", "schema", "suggest", "sweeps"]
