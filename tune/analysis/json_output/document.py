"""What all JSON outputs share: checked models whose text has no NaN."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """An object of an output, with the fields that its schema documents and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null", serialize_by_alias=True)

    def json_text(self) -> str:
        """Return it as JSON; a number that is not finite is null."""
        return self.model_dump_json(indent=2)
