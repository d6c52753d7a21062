"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, title: str, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int], object]]:
    """Show a bar while the block runs, unless stderr is no terminal or `quiet`.

    Yields:
        What to call with the number of units done since the last call.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, leave=False, disable=quiet or None) as bar:
        yield bar.update
