"""Real text from this Python installation: the sources of the standard library and the texts behind `help()`.

One document in twenty is held out from training. The choice is a hash of its name, so it is the same for every Python version.
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
        text: The whole text.
        is_test: Whether it is one of the library's own tests, which are many and repetitive.
    """

    name: str
    text: str
    is_test: bool

    @property
    def held_out(self) -> bool:
        """Whether it is kept out of training."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def documents() -> list[Document]:
    """All documents of this Python installation, sorted by name."""
    return sorted((*_sources(), *_help_topics()), key=lambda document: document.name)


def held_out_documents() -> list[Document]:
    """Documents that the model was not trained on, without the library's tests."""
    return [document for document in documents() if document.held_out and not document.is_test]


def training_stream(epoch: int, seed: int = 0) -> Iterator[str]:
    """The training texts of one epoch: all sources and a third of the tests.

    Packages are shuffled; the modules of a package stay together.

    Args:
        epoch: Number of the epoch; three consecutive ones cover all tests.
        seed: Seed of the shuffling.
    """
    packages: dict[str, list[str]] = defaultdict(list)
    for index, document in enumerate(document for document in documents() if not document.held_out):
        if not document.is_test or index % 3 == epoch % 3:
            name = document.name
            packages[name.rsplit("/", 1)[0] if "/" in name else name].append(document.text)
    order = sorted(packages)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    for package in order:
        yield from packages[package]


def _sources() -> Iterator[Document]:
    """Modules of the standard library that are readable as UTF-8 and not empty."""
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
    """Texts that `help()` shows for keywords and topics."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document(f"help/{name}", text, False)
