"""The field ``response_format`` of requests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from wasmetal.serve.strict import Body
from wasmetal.serve.tools.schema import Name


class JsonSchema(Body):
    """What an answer is to obey."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Ignored: answers always obey the schema."""


class ResponseFormat(Body):
    """Any text, any JSON object, or JSON that obeys a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type json_schema has a json_schema, and no other has")
        return self

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The schema that the answer is to obey; None: it is any text."""
        if self.json_schema:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None
