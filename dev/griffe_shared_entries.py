"""A griffe extension: an entry for several parameters, `model_dir, draft_dir: ...`, becomes one entry for each of them.

So each is shown in the reference with its own type, and griffe can check that each is in the signature.
"""

from __future__ import annotations

import re

import griffe

ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+): ")


class SharedEntries(griffe.Extension):
    """Split shared entries of docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **context: object) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = split_shared_entries(obj.docstring.value)


def split_shared_entries(text: str) -> str:
    """The docstring with an entry per name; each repeats the description, continuation lines included.

    >>> print(split_shared_entries("Args:\\n    a, b: Both\\n        of them.\\n    c: Alone."))
    Args:
        a: Both
            of them.
        b: Both
            of them.
        c: Alone.
    """
    lines, found = text.split("\n"), []
    while lines:
        entry = ENTRY.match(lines[0])
        count = 1
        if entry is not None:
            deeper = entry[1] + " "
            while count < len(lines) and lines[count].startswith(deeper):
                count += 1
            for name in entry[2].split(", "):
                found += [f"{entry[1]}{name}: {lines[0][entry.end() :]}", *lines[1:count]]
        else:
            found.append(lines[0])
        lines = lines[count:]
    return "\n".join(found)
