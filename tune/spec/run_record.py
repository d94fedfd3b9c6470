"""What a launch noted of itself in study.yaml, apart from what was asked of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RunRecord(BaseModel):
    """The section `record:` of RUN/study.yaml; frozen.

    storage: a URI or folder where Ray keeps checkpoints, None for RUN/ray. name: of the run on a storage that is a URI.
    attempts: the folder below the storage of each launch and resume. study: name of the Optuna study that counts, where
    it is not the first. split, data: hashes. format: of the checkpoints. commit: of voxtune's code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage: str | None = None
    name: str | None = None
    attempts: list[str] = []
    study: str | None = None
    cache_dir: str | None = None
    split: str | None = None
    data: str | None = None
    skipped_cases: list[str] = []
    commit: str | None = None
    format: int | None = None
    versions: dict[str, str] = {}
