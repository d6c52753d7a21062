"""A layer, and a model's layers as a short tuple of groups of equal ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .weights import Weight

if TYPE_CHECKING:
    from .attention import AttentionKind
    from .mlp import MlpKind
    from .recurrent import Recurrent

Stored = tuple[tuple[str, str], ...]


@dataclass(frozen=True, repr=False)
class Counted:
    """A layer counted from the modules of another library: its matrices, and what it keeps.

    Attributes:
        matrices: All matrices of the layer, those of its attention too.
        vectors: All parameters of the layer that are no matrices.
        kind: Name, for people.
    """

    matrices: tuple[Weight, ...]
    vectors: int
    kind: str = "as counted"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer."""
        return self.matrices

    def vector_params(self, d_model: int) -> int:
        """Parameters that are no matrices."""
        return self.vectors

    def idle_vector_params(self, d_model: int) -> float:
        """Not told apart."""
        return 0.0

    @property
    def widest(self) -> int:
        """Elements of the widest activation of a token."""
        return max((weight.outputs for weight in self.matrices), default=0)

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        return self.kind


@dataclass(frozen=True, repr=False)
class Layer:
    """One decoder layer: what it mixes tokens with, and what it does to each token.

    Attributes:
        attention: Its attention, if any.
        recurrent: Its recurrent part, if any; a layer may have both, side by side.
        mlp: Its MLP, if any.
        norms: Parameters of norms over the residual stream, in units of the model's width.
        extra: Further matrices.
        extra_vectors: Further parameters that are no matrices.
    """

    attention: AttentionKind | None = None
    recurrent: Recurrent | None = None
    mlp: MlpKind | Counted | None = None
    norms: int = 2
    extra: tuple[Weight, ...] = ()
    extra_vectors: int = 0

    def mixers(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of attention and recurrence."""
        if isinstance(self.mlp, Counted):
            return ()  # it has counted all matrices of the layer
        found = self.attention.weights(d_model) if self.attention else ()
        return (*found, *(self.recurrent.weights(d_model) if self.recurrent else ()))

    def mlps(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of the MLP, and the further ones."""
        return (*(self.mlp.weights(d_model) if self.mlp else ()), *self.extra)

    def vector_params(self, d_model: int) -> int:
        """Parameters that are no matrices."""
        if isinstance(self.mlp, Counted):
            return self.mlp.vectors
        parts = (self.attention, self.recurrent, self.mlp)
        return self.norms * d_model + self.extra_vectors + sum(part.vector_params(d_model) for part in parts if part is not None)

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        parts = (self.attention, self.recurrent, self.mlp)
        return " + ".join(part.title for part in parts if part is not None) or "nothing"


@dataclass(frozen=True, repr=False)
class LayerGroup:
    """Equal layers.

    Attributes:
        layer: One of them.
        count: How many there are.
        stored: Storage dtype by matrix name, where it is not the model's.
    """

    layer: Layer
    count: int
    stored: Stored = ()


def grouped(layers: Iterable[tuple[Layer, Mapping[str, str]]]) -> tuple[LayerGroup, ...]:
    """Group equal layers, in the order in which each kind first appears.

    Args:
        layers: Each layer with the storage dtypes of its matrices.
    """
    counts: dict[tuple[Layer, Stored], int] = {}
    for layer, stored in layers:
        key = (layer, tuple(sorted(stored.items())))
        counts[key] = counts.get(key, 0) + 1
    return tuple(LayerGroup(layer, count, stored) for (layer, stored), count in counts.items())


def merged(groups: Iterable[LayerGroup]) -> tuple[LayerGroup, ...]:
    """Join groups of equal layers, whatever types they are stored in."""
    counts: dict[Layer, int] = {}
    for group in groups:
        counts[group.layer] = counts.get(group.layer, 0) + group.count
    return tuple(LayerGroup(layer, count) for layer, count in counts.items())
