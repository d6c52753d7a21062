"""What a file of a user may hold. A file beyond these limits is refused with one message, before it costs time or memory.

The limits are far above what real files have: the largest plan with a policy table has about 10,000 values.
"""

from __future__ import annotations

import math

from .errors import bad

MAX_DOCUMENT_BYTES = 4 * 2**20  # profiles, configs, plans, curves
MAX_DATA_BYTES = 2**30  # traces, prompts, measurements
MAX_HEADER_BYTES = 64 * 2**20  # of a weight file: 100,000 tensors have 20 MiB
MAX_HEADER_VALUES = 2_000_000  # of such a header, or of an index of weight files
MAX_TENSOR_BYTES = 2**60
MAX_DEPTH = 32  # mappings and lists inside each other
MAX_VALUES = 200_000  # keys and values of one document
MAX_TEXT_LENGTH = 65_536  # characters of one text of a document
MAX_INTEGER = 2**63 - 1
MAX_DIGITS = 40  # characters of one number

# Quantities of a workload and of a machine. Beyond them sums overflow, or a search would not end.
MAX_TOKENS = 2**40
MAX_SEQUENCES = 2**30
MAX_GPUS = 2**20


def check_document(value: object, where: str, max_text_length: int = MAX_TEXT_LENGTH, max_values: int = MAX_VALUES) -> None:
    """Check that a parsed JSON or YAML document can be processed and written again.

    Args:
        value: The document.
        where: The file, for error messages.
        max_text_length: Of one text. [characters]
        max_values: Keys and values in all.

    Raises:
        InputError: It is nested too deeply, has too many values, a key that is no text, a whole number beyond 64 bits, a number
            that is not finite, a text that is too long, or half of a surrogate pair.
    """
    open_values: list[tuple[str, object, int]] = [("", value, 0)]
    seen = 0
    while open_values:
        key, found, depth = open_values.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise bad(where, key, f"at most {MAX_DEPTH} levels of nesting", "more")
        if seen > max_values:
            raise bad(where, "", f"at most {max_values:,} values", "more")
        if isinstance(found, dict):
            for name in found:
                if not isinstance(name, str):
                    raise bad(where, key, "keys that are texts", f"{name!r} ({type(name).__name__})")
                _check_text(name, where, key or "a key", max_text_length)
            open_values += [(f"{key}.{name}" if key else name, item, depth + 1) for name, item in reversed(found.items())]
        elif isinstance(found, list):
            open_values += [(f"{key}.{i}" if key else str(i), item, depth + 1) for i, item in reversed(list(enumerate(found)))]
        elif isinstance(found, str):
            _check_text(found, where, key, max_text_length)
        elif isinstance(found, int) and abs(found) > MAX_INTEGER:
            raise bad(where, key, "a whole number of at most 64 bits", "a larger one")
        elif isinstance(found, float) and not math.isfinite(found):
            raise bad(where, key, "a finite number", found)


def _check_text(text: str, where: str, key: str, longest: int) -> None:
    if len(text) > longest:
        raise bad(where, key[:80], f"a text of at most {longest:,} characters", f"{len(text):,}")
    if "\0" in text or not is_unicode(text):
        raise bad(where, key, "Unicode text without NUL and without unpaired surrogates", repr(text[:80]))


def is_unicode(text: str) -> bool:
    """True unless the text has half of a surrogate pair, which no UTF-8 file can hold."""
    return not any("\ud800" <= char <= "\udfff" for char in text) if not text.isascii() else True
