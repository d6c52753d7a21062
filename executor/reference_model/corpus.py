"""Real text that every Python installation holds: its standard library's sources and the language reference behind `help()`.

One module in twenty is held out by a hash of its name, the same one for every Python version: the model never trains on it.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = {"site-packages", "__pycache__", "lib2to3", "pydoc_data", "encodings"}
TEST_FOLDERS = {"test", "tests", "idle_test"}
HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Document:
    """One text of the corpus.

    Attributes:
        name: Path inside the standard library, or `help/<topic>`.
        text: All of it.
        is_test: It is one of the library's own tests: plentiful and repetitive.
    """

    name: str
    text: str
    is_test: bool

    @property
    def held_out(self) -> bool:
        """Kept away from training."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def documents() -> list[Document]:
    """Every document of this Python installation, in a fixed order."""
    return sorted((*_sources(), *_help_topics()), key=lambda document: document.name)


def held_out_documents(min_chars: int = 0) -> list[Document]:
    """Documents that no training run has seen, without the library's tests, of at least so many characters."""
    return [doc for doc in documents() if doc.held_out and not doc.is_test and len(doc.text) >= min_chars]


def training_stream(epoch: int, seed: int = 0) -> Iterator[str]:
    """The texts of one epoch: packages shuffled, each one's modules kept together, a third of the tests."""
    packages: dict[str, list[str]] = defaultdict(list)
    for index, doc in enumerate(doc for doc in documents() if not doc.held_out):
        if not doc.is_test or index % 3 == epoch % 3:
            packages[doc.name.rsplit("/", 1)[0] if "/" in doc.name else doc.name].append(doc.text)
    order = sorted(packages)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    for package in order:
        yield from packages[package]


def _sources() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if SKIPPED_FOLDERS & set(parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip():
            yield Document("/".join(parts), text, bool(TEST_FOLDERS & set(parts)))


def _help_topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document(f"help/{name}", text, False)
