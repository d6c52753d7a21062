"""Strict JSON: no duplicate keys, no NaN, numbers of limited size, limited nesting."""

from __future__ import annotations

import json
import math

from .errors import bad
from .json_types import Json, JsonObject
from .limits import MAX_DIGITS, MAX_TEXT_LENGTH, MAX_VALUES, check_document


def load_json(
    text: str,
    where: str,
    what: str,
    *,
    finite: bool = True,
    max_text_length: int = MAX_TEXT_LENGTH,
    max_values: int = MAX_VALUES,
) -> Json:
    """Parse JSON.

    Args:
        text: The text, such as the content of a file.
        where: The file, for error messages.
        what: What it should be, for error messages.
        finite: Refuse `NaN` and `Infinity`, which are no JSON; else they become None.
        max_text_length: Of one text in it. [characters]
        max_values: Keys and values in it.

    Raises:
        InputError: The text is not JSON, repeats a key, or is beyond the limits of `base.limits`.
    """
    try:
        value: Json = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=float if finite else _finite_or_none,
            parse_constant=float if finite else lambda name: None,
        )
    except RecursionError:
        raise bad(where, "", f"{what} with little nesting", "very deep nesting") from None
    except ValueError as error:
        raise bad(where, "", f"{what} as JSON", error) from None
    check_document(value, where, max_text_length, max_values)
    return value


def load_json_object(
    text: str,
    where: str,
    what: str,
    *,
    finite: bool = True,
    max_text_length: int = MAX_TEXT_LENGTH,
    max_values: int = MAX_VALUES,
) -> JsonObject:
    """Parse JSON that must be an object; arguments and errors as for `load_json`."""
    value = load_json(text, where, what, finite=finite, max_text_length=max_text_length, max_values=max_values)
    if not isinstance(value, dict):
        raise bad(where, "", f"{what} as a JSON object", type(value).__name__)
    return value


# Characters that some readers take for line breaks, escaped so that a document stays on its line.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def json_line(value: object) -> str:
    """Render JSON on one line, for every reader's idea of a line, without the line break at the end."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_LINE_BREAKS)


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is given twice")
    return found


def _whole(digits: str) -> int:
    """Long numbers are cut, which leaves them too large: `check_document` refuses them and names the key."""
    return int(digits[:MAX_DIGITS])


def _finite_or_none(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
