"""What a launch resolved, noted in study.yaml next to what was requested."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trainable.cases.grid import Spacing, three

DEFAULT_STUDY_NAME = "voxtune"  # of the first Optuna study in a run's journal


class RunRecord(BaseModel):
    """The section `record:` of RUN/study.yaml. Frozen; keys of other versions of voxtune are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    note: str | None = Field(None, description="What the sweep is for, as given by `launch --note`.")
    report: bool = Field(True, description="RUN/report.html is kept up to date; false since `--no_report`.")
    notify: bool = Field(False, description="`--notify` was given; its URL, which may be a secret, is not noted.")
    plan: str | None = Field(None, description="What `launch --hours` has chosen, in words.")
    storage: str | None = Field(None, description="URI or folder where Ray keeps checkpoints; null for RUN/ray.")
    attempts: list[str] = Field(
        [],
        description="Folders below the storage: of each launch and resume, and of each part of a sweep that promotes.",
    )
    cache_dir: str | None = Field(None, description="Folder of the preprocessed cases.")
    split: str | None = Field(None, description="Hash of split.json.")
    data: str | None = Field(None, description="Hash of the cases.")
    spacing: list[float] | None = Field(
        None, description="Voxel size in mm, along x, y and z in LPS, that cases are compared with and resampled to."
    )
    skipped_cases: list[str] = Field([], description="Bad cases that were left out.")
    seen_cases: dict[str, list[str]] = Field({}, description="Val and test cases that the pretrained weights saw.")
    commit: str | None = Field(None, description="git commit of voxtune's code.")
    format: int | None = Field(None, description="Format of the checkpoints.")
    versions: dict[str, str] = Field({}, description="Installed versions of voxtune, Python and packages.")
    name: str | None = Field(None, description="Name of the run on a storage that is a URI.")
    study: str = Field(DEFAULT_STUDY_NAME, description="Optuna study that counts; a changed space starts another one.")

    @property
    def voxel_size(self) -> Spacing | None:
        """`spacing` as prepare_data takes it; None in a run of an older version."""
        return None if self.spacing is None else three(self.spacing)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that were noted, as plain values; a field that was not noted is left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    def replace(self, **changes: Any) -> RunRecord:
        """Return a copy of the record with these changes.

        Raises:
            ValidationError: from pydantic, for a value of the wrong type.
        """
        return RunRecord.model_validate({**self.to_dict(), **changes})
