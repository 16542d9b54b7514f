"""The base of the library's results: frozen models that functions return and `--json` prints.

The result of each function is defined beside it.
"""

import math
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, SerializerFunctionWrapHandler, model_serializer

Moment = Annotated[datetime, PlainSerializer(datetime.isoformat, when_used="json")]  # +00:00 where pydantic writes Z


class Result(BaseModel):
    """The result of a function.

    `model_dump(mode="json")` is the object that the command prints with `--json`: strict JSON, in which a number that
    is NaN (not measured) or infinite is null. Objects that are only useful in Python, such as a `Run`, are not in it.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, serialize_by_alias=True)

    @model_serializer(mode="wrap", when_used="json")
    def _as_strict_json(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = _finite(dump(self))
        return dumped


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
