"""Weight matrices: what one layer has of them, and what one GPU holds of a whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .dtypes import BYTES_PER_ELEMENT

Operator = Literal["projections", "mlp", "head"]
Split = Literal["outputs", "inputs", "none"]
Role = Literal["linear", "expert", "router"]


@dataclass(frozen=True, repr=False)
class Matrix:
    """A weight matrix on one GPU.

    Attributes:
        name: Name of the matrix.
        operator: Operator class.
        outputs, inputs: Dimensions.
        layers: Number of layers that have this matrix.
        dtype: Storage dtype.
        experts: Copies per layer, one per expert; 1 without experts.
        used: Copies used by each token.
    """

    name: str
    operator: Operator
    outputs: float
    inputs: float
    layers: int
    dtype: str
    experts: int = 1
    used: int = 1

    @property
    def params(self) -> float:
        """Parameters, over all layers and experts."""
        return self.outputs * self.inputs * self.layers * self.experts

    @property
    def bytes(self) -> float:
        """Size, over all layers and experts. [bytes]"""
        return self.params * BYTES_PER_ELEMENT[self.dtype]


@dataclass(frozen=True, repr=False)
class Weight:
    """A weight matrix of one layer, before it is split over GPUs.

    Attributes:
        name: Name of the matrix; quantisation refers to it.
        outputs, inputs: Dimensions, without `kv_outputs`.
        operator: Operator class.
        split: Dimension that tensor parallelism divides; `none` if every GPU holds all of it.
        kv_outputs: Further outputs, for keys and values: replicated where there are fewer KV heads than GPUs.
        kv_heads: KV heads that `kv_outputs` belong to.
        experts: Copies, one per expert.
        used: Copies used by each token.
        role: Which of the model's dtypes it has by default; a router has that of the activations.
    """

    name: str
    outputs: int
    inputs: int
    operator: Operator = "projections"
    split: Split = "outputs"
    kv_outputs: int = 0
    kv_heads: int = 1
    experts: int = 1
    used: int = 1
    role: Role = "linear"

    @property
    def params(self) -> int:
        """Parameters of all copies."""
        return (self.outputs + self.kv_outputs) * self.inputs * self.experts

    def on_gpu(self, gpus: int, layers: int, dtype: str) -> Matrix:
        """Return the part on one of `gpus` GPUs, for so many layers."""
        outputs, inputs = float(self.outputs), float(self.inputs)
        if self.split == "outputs":
            outputs /= gpus
        elif self.split == "inputs":
            inputs /= gpus
        if self.kv_outputs:
            outputs += max(self.kv_heads / gpus, 1.0) * (self.kv_outputs / self.kv_heads)
        return Matrix(self.name, self.operator, outputs, inputs, layers, dtype, self.experts, self.used)
