"""The corpus from this Python's library: training text and held-out text never overlap."""

from __future__ import annotations

from functools import cache

import pytest

from magicdec.executor.reference_model import corpus
from magicdec.executor.reference_model.corpus import Document, documents, held_out_documents, training_stream

BOILERPLATE_CHARS = 500  # packages share some near-empty files shorter than this


@cache
def all_documents() -> list[Document]:
    return documents()


@pytest.fixture
def library_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make training streams from documents that were read before: reading takes a second."""
    monkeypatch.setattr(corpus, "documents", all_documents)


@pytest.mark.slow
def test_documents_come_sorted_by_name_and_each_once() -> None:
    names = [document.name for document in all_documents()]
    assert names == sorted(set(names))
    assert len(names) > 500


def test_reading_the_library_anew_gives_the_same_documents() -> None:
    assert documents() == all_documents()


def test_documents_are_the_standard_library_and_the_help_topics_but_no_installed_package() -> None:
    names = {document.name for document in all_documents()}
    assert {"ast.py", "json/decoder.py", "help/lambda"} <= names
    assert not any("site-packages" in name or "__pycache__" in name for name in names)
    assert all(document.text.strip() for document in all_documents())


def test_about_one_document_in_twenty_is_held_out() -> None:
    found = all_documents()
    assert 0.03 < sum(document.held_out for document in found) / len(found) < 0.08


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("functools.py", True),
        ("traceback.py", True),
        ("asyncio/events.py", True),
        ("xml/dom/minidom.py", True),
        ("ast.py", False),
        ("json/decoder.py", False),
        ("argparse.py", False),
    ],
)
def test_the_split_depends_on_the_name_alone_and_never_moves(name: str, held_out: bool) -> None:
    """The shipped model was trained with this split; another would evaluate it on text that it has seen."""
    assert Document(name, "any text", is_test=False).held_out is held_out


@pytest.mark.usefixtures("library_read_once")
def test_no_epoch_of_training_shows_a_held_out_text() -> None:
    held_out = {document.text for document in all_documents() if document.held_out}
    for epoch in range(3):
        seen = set(training_stream(epoch))
        assert seen
        assert all(len(text) < BOILERPLATE_CHARS for text in seen & held_out)
    assert not set(training_stream(0)) & {document.text for document in held_out_documents()}


@pytest.mark.usefixtures("library_read_once")
def test_three_epochs_show_everything_else_and_each_shows_all_but_the_tests() -> None:
    kept = [document for document in all_documents() if not document.held_out]
    sources = {document.text for document in kept if not document.is_test}
    epochs = [list(training_stream(epoch)) for epoch in range(3)]
    assert all(sources <= set(epoch) for epoch in epochs)
    assert set().union(*epochs) == {document.text for document in kept}
    tests = sum(document.is_test for document in kept)
    assert all(len(epoch) < len(sources) + tests / 2 for epoch in epochs)


@pytest.mark.usefixtures("library_read_once")
def test_an_epoch_is_the_same_every_time_and_each_is_shuffled_anew() -> None:
    first = list(training_stream(0))
    assert list(training_stream(0)) == first
    assert list(training_stream(3)) != first  # with the same third of the tests
    assert sorted(training_stream(3)) == sorted(first)
    assert list(training_stream(0, seed=1)) != first


@pytest.mark.usefixtures("library_read_once")
def test_enough_text_is_held_out_to_measure_with() -> None:
    found = held_out_documents()
    assert all(document.held_out and not document.is_test for document in found)
    assert sum(len(document.text.encode()) for document in found) >= 100_000


def test_tests_of_the_library_are_known_as_such() -> None:
    for document in all_documents():
        assert document.is_test == bool({"test", "tests", "idle_test"} & set(document.name.split("/")))
