"""What the columns of published request traces are called, and in which unit they give times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..base.errors import bad

PROMPT, OUTPUT, ARRIVAL, ARRIVAL_MS = "prompt_len", "output_len", "arrival_s", "arrival_ms"
OWN = (PROMPT, OUTPUT)
CALLED = {"context_len": PROMPT}  # what users may say instead
# By meaning, most telling first; without case and separators.
KNOWN = {
    PROMPT: (
        *("promptlen", "inputlen", "promptlength", "inputlength", "contextlen", "contextlength", "contexttokens"),  # Azure
        *("requesttokens", "prompttokens", "inputtokens", "numprompttokens", "numinputtokens", "numprefilltokens"),  # BurstGPT
        *("promptsize", "inputtoks", "nprompt", "usageprompttokens", "usageinputtokens"),
    ),
    OUTPUT: (
        *("outputlen", "outputlength", "generatedtokens", "responsetokens", "completiontokens", "outputtokens"),
        *("numoutputtokens", "numdecodetokens", "numgeneratedtokens", "tokensize", "outputtoks", "completionlen"),
        *("responselen", "responselength", "ngen", "usagecompletiontokens", "usageoutputtokens"),
    ),
    ARRIVAL: (
        *("arrivals", "arrivalms", "arrivaltime", "arrivaltimes", "arrivaltimestamp", "arrivedat", "timestamp"),
        *("timestampms", "arrivaltimems", "starttime", "requesttime", "createdat"),
    ),
}
MILLISECONDS = {"inputlength", "outputlength"}  # Mooncake: its timestamps are milliseconds


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        prompt, output: Names in the file.
        arrival: Name in the file; None if there is none.
        arrival_unit_s: Unit of arrival times that are plain numbers. [s]
        own: These are our own names: every length must be positive. Else requests without
            output are failed ones, which are left out.
        own_unit: The name of the arrival column, or the user, says its unit.
    """

    prompt: str
    output: str
    arrival: str | None
    arrival_unit_s: float
    own: bool
    own_unit: bool = True


def plain(name: str) -> str:
    """A column name without case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def recognise(names: Iterable[str], given: Mapping[str, str], path: str) -> Columns:
    """Find the columns of a trace.

    Args:
        names: The columns of the file.
        given: Columns that the user names, by what they are: `prompt_len`, `output_len`, `arrival_s` or `arrival_ms`.
        path: The file, for error messages.

    Raises:
        InputError: A length has no column, or a given column is not in the file.
    """
    present = list(names)
    asked = {CALLED.get(key, key): value for key, value in given.items()}
    if unknown := [key for key in asked if key not in (*OWN, ARRIVAL, ARRIVAL_MS)]:
        raise bad("trace_columns", unknown[0], f"{PROMPT}, {OUTPUT}, {ARRIVAL} or {ARRIVAL_MS}", "another name")
    if missing := [value for value in asked.values() if value not in present]:
        raise bad(path, missing[0], "a column of this name", _listed(present))
    found = {meaning: asked.get(meaning) or _first(present, KNOWN[meaning]) for meaning in (PROMPT, OUTPUT)}
    if missing := [meaning for meaning, name in found.items() if name is None]:
        hint = "a column of this name (or say with `trace_columns` what it is called)"
        raise bad(path, ", ".join(missing), hint, _listed(present))
    arrival = asked.get(ARRIVAL) or asked.get(ARRIVAL_MS) or _first(present, KNOWN[ARRIVAL])
    prompt, output = str(found[PROMPT]), str(found[OUTPUT])
    milliseconds = ARRIVAL_MS in asked or (
        ARRIVAL not in asked
        and arrival is not None
        and (plain(arrival).endswith("ms") or {plain(prompt), plain(output)} <= MILLISECONDS)
    )
    own_unit = bool({ARRIVAL, ARRIVAL_MS} & set(asked)) or (arrival is not None and plain(arrival).endswith("ms"))
    return Columns(prompt, output, arrival, 1e-3 if milliseconds else 1.0, own=(prompt, output) == OWN, own_unit=own_unit)


def _first(present: Iterable[str], known: Iterable[str]) -> str | None:
    by_name = {plain(name): name for name in reversed(list(present))}
    return next((by_name[name] for name in known if name in by_name), None)


def _listed(present: list[str]) -> str:
    return ", ".join(present[:30]) or "nothing"
