"""One tensor of a weight file."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a file stores it.

    Attributes:
        name: Its name in the file.
        dtype: Storage type: a name of `layers.dtypes` where there is one, else the file's own in lower case.
        shape: Stored dimensions; packed types have fewer elements than the matrix.
        nbytes: Size in the file. [bytes]
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        """Stored elements."""
        return math.prod(self.shape)
