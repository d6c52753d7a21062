"""Notes: what was understood or chosen where a user's words leave a choice. A warning in Python, a `note:` on the command line."""

from __future__ import annotations

import warnings


class Note(UserWarning):
    """What the user should know about an answer."""


def note(*sentences: str) -> None:
    """Give one note of several sentences; empty ones and repetitions are left out, and nothing is said if none is left."""
    if said := "; ".join(dict.fromkeys(sentence for sentence in sentences if sentence)):
        warnings.warn(said, Note, stacklevel=2)
