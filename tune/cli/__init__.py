"""The verbs of `voxtune`. Each imports what it needs when it runs: Ray and torch take seconds to import."""

from tune.cli import cases, export, models, schema, sweeps  # whose verbs they add to app
from tune.cli.command import app

__all__ = ["app", "cases", "export", "models", "schema", "sweeps"]
