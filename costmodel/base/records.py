"""Frozen dataclasses as records of files: ranges of their fields, strict validation, conversion to documents.

This module imports no pydantic. A record from trusted values is built with its constructor, which keeps the start of the
command line fast. `base.validation` checks records that come from files of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from .json_types import Json, JsonObject

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# `__pydantic_config__` of records that files of users hold: no unknown keys, no type conversion, no NaN.
STRICT: dict[str, object] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


class Limits:
    """Range of a field, written as `Annotated[float, Limits(ge=0.0, lt=1.0)]`.

    Pydantic reads it as a group of constraints. `annotated_types` has the same class, but takes several milliseconds to import.

    Attributes:
        gt, ge, lt, le: Bounds of a number; None for no bound.
        min_length: Least number of items of a list; None for no limit.
    """

    __is_annotated_types_grouped_metadata__: Literal[True] = True

    def __init__(
        self,
        *,
        gt: float | None = None,
        ge: float | None = None,
        lt: float | None = None,
        le: float | None = None,
        min_length: int | None = None,
    ):
        self.gt, self.ge, self.lt, self.le, self.min_length = gt, ge, lt, le, min_length

    def __iter__(self) -> Iterator[object]:
        """Yield the constraints that are set, as `annotated_types` has them."""
        import annotated_types as at  # slow to import, and only needed to validate

        if self.gt is not None:
            yield at.Gt(self.gt)
        if self.ge is not None:
            yield at.Ge(self.ge)
        if self.lt is not None:
            yield at.Lt(self.lt)
        if self.le is not None:
            yield at.Le(self.le)
        if self.min_length is not None:
            yield at.MinLen(self.min_length)


Positive = Annotated[float, Limits(gt=0.0)]
NotNegative = Annotated[float, Limits(ge=0.0)]
Share = Annotated[float, Limits(ge=0.0, le=1.0)]


def to_document(record: DataclassInstance) -> JsonObject:
    """Convert a record to a JSON document: a copy with the fields in their order, in which tuples are lists."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def _plain(value: Any) -> Json:
    if is_dataclass(value) and not isinstance(value, type):
        return to_document(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    plain: Json = value
    return plain
