"""What summary.json and assess.json have in common: the base of their models, and the JSON Schema in docs/."""

import json

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of such a file. Immutable; unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def json_schema_text(model: type[Part], title: str) -> str:
    """The JSON Schema of a file that holds one `model`, as it is committed in docs/."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
