"""Passes of a model over the slots of a cache; on a GPU they are captured as CUDA graphs once and replayed from then on.

Launching the hundreds of kernels of a pass one by one takes longer than a short pass itself.

Shapes: B batch, T query tokens, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from executor.attention import SlotAttention
from executor.device import send
from executor.transformer import Attend, Transformer

Captured = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]  # with the places of its arguments and of its answer


class Passes:
    """A model's passes. What is replayed reads and writes where it did when it was captured, until `forget`."""

    def __init__(self, model: Transformer):
        self.model = model
        self._captured: dict[Hashable, Captured] = {}
        self._aside: torch.cuda.Stream | None = None

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        """x_BTD of tokens and their positions, wherever those are; a replayed answer holds until the next one."""
        tokens_BT, positions_BT = send(tokens_BT, self.model.device), send(positions_BT, self.model.device)
        if not (isinstance(attend, SlotAttention) and attend.replayable and self.model.alone):
            return self.model(tokens_BT, positions_BT, attend)
        key, arguments = (tokens_BT.shape, attend.identity), (tokens_BT, positions_BT, attend.slots_BT, attend.positions_BT)
        if key not in self._captured:

            def function(tokens_BT: Tensor, positions_BT: Tensor, slots_BT: Tensor, own_positions_BT: Tensor) -> Tensor:
                x_BTD: Tensor = self.model(tokens_BT, positions_BT, attend.at(slots_BT, own_positions_BT))
                return x_BTD

            self._aside = self._aside or torch.cuda.Stream()
            self._captured[key] = capture(function, arguments, self._aside)
        return replay(self._captured[key], arguments)

    def forget(self) -> None:
        """What was captured is of no use any more: memory has moved."""
        self._captured.clear()


def capture(function: Callable[..., Tensor], arguments: tuple[Tensor, ...], aside: torch.cuda.Stream) -> Captured:
    """The kernels that a function of tensors launches on a stream; it must not look at their values."""
    places = tuple(argument.clone() for argument in arguments)
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are compiled and workspaces made before anything is captured
        function(*places)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        answer = function(*places)
    return graph, places, answer


def replay(captured: Captured, arguments: tuple[Tensor, ...]) -> Tensor:
    """The function's answer for other arguments of the same shapes."""
    graph, places, answer = captured
    for place, argument in zip(places, arguments, strict=True):
        place.copy_(argument)
    graph.replay()
    return answer
