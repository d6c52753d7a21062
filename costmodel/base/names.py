"""Names of models, machines and versions: they end up in scripts, YAML files, pages and messages."""

from __future__ import annotations

MAX_NAME_LENGTH = 1024
NAME_RULE = f"at most {MAX_NAME_LENGTH} printable characters, none of them a line break, not beginning with '-'"


def is_name(value: str) -> bool:
    """True for a text that is safe to show on one line and to pass as one argument.

    Control characters, line and paragraph separators, surrogates and invisible format characters are not. A name that begins
    with a dash would be read as an option.
    """
    return 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable() and not value.startswith("-")


def one_line(text: str) -> str:
    """The text on one line, for comments: white space collapsed, other unprintable characters replaced."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))


def shortened(text: str, longest: int) -> str:
    """The text with at most `longest` characters; the middle is left out."""
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[: longest - 3 - half]}...{text[-half:]}"
