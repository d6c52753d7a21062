"""Passes of a model over the slots of a cache; on a GPU they are captured as CUDA graphs once and replayed from then on.

Launching the hundreds of kernels of a pass one by one takes longer than a short pass itself.

Shapes: B batch, T query tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdec.costmodel.base.errors import bad

from ..kv.attention import SlotAttention
from ..model.attend import Attend
from ..model.transformer import Transformer
from ..system.device import to_device
from .sampling import Answer

Captured = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]  # with the places of its arguments and of its answer


class Passes:
    """A model's passes. What is replayed reads and writes where it did when it was captured, until `forget`.

    Args:
        model: The model.
        vocab_size: Ids it is to answer with; those it does not know are never likely. All that it knows by default.
    """

    def __init__(self, model: Transformer, vocab_size: int | None = None):
        self.model = model
        self.vocab_size = vocab_size or model.config.vocab_size
        self._sound = False  # it has answered with finite logits
        self._captured: dict[Hashable, Captured] = {}
        self._aside: torch.cuda.Stream | None = None

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend, last_B: Tensor | None = None) -> Answer:
        """What follows tokens at their positions, wherever those are: one pass for one question.

        Args:
            tokens_BT, positions_BT, attend: As the model takes them.
            last_B: Of each row only what follows this one of its tokens, if it has several; on the host. All by default.

        Returns:
            Likeliest tokens of shape [B, T], or logits of [B, T, V]; without T if `last_B` is given.

        Raises:
            InputError: A logit is infinite or NaN.
        """
        return Answer(*(partial(ask, tokens_BT, positions_BT, attend, last_B) for ask in (self._likeliest, self._logits)))

    def forget(self) -> None:
        """The cache or the rows are others from now on."""
        self._captured.clear()

    def _likeliest(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend, last_B: Tensor | None) -> Tensor:
        if last_B is not None and tokens_BT.shape[1] > 1:  # the LM head is for the asked ones alone
            return self._logits(tokens_BT, positions_BT, attend, last_B).argmax(-1)
        try:
            found_BT = self.model.greedy_tokens(tokens_BT, positions_BT, attend, min(self.vocab_size, self.model.config.vocab_size))
        except FloatingPointError:
            raise self._damaged() from None
        return self._logits(tokens_BT, positions_BT, attend, last_B).argmax(-1) if found_BT is None else self._of(found_BT, last_B)

    def _logits(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend, last_B: Tensor | None) -> Tensor:
        logits = self.model.logits(self._of(self._hidden(tokens_BT, positions_BT, attend), last_B))[..., : self.vocab_size]
        if logits.device.type == "cpu" or not self._sound:  # to know it of a GPU is to wait for it
            self._sound = bool(logits.isfinite().all())
            if not self._sound:
                raise self._damaged()
        missing = self.vocab_size - logits.shape[-1]
        return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits

    def _hidden(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        """x_BTD; a replayed answer holds until the next one."""
        tokens_BT, positions_BT = to_device(tokens_BT, self.model.device), to_device(positions_BT, self.model.device)
        if not (isinstance(attend, SlotAttention) and attend.replayable and not self.model.is_sharded):
            x_BTD: Tensor = self.model(tokens_BT, positions_BT, attend)
            return x_BTD
        key, arguments = (tokens_BT.shape, attend.identity), (tokens_BT, positions_BT, attend.slots_BT, attend.positions_BT)
        if key not in self._captured:

            def function(tokens_BT: Tensor, positions_BT: Tensor, slots_BT: Tensor, own_positions_BT: Tensor) -> Tensor:
                x_BTD: Tensor = self.model(tokens_BT, positions_BT, attend.at(slots_BT, own_positions_BT))
                return x_BTD

            self._aside = self._aside or torch.cuda.Stream()
            self._captured[key] = capture(function, arguments, self._aside)
        return replay(self._captured[key], arguments)

    def _of(self, all_BT: Tensor, last_B: Tensor | None) -> Tensor:
        """Of each row what belongs to one of its tokens."""
        if last_B is None:
            return all_BT
        if all_BT.shape[1] == 1:
            return all_BT[:, 0]
        rows_B = torch.arange(len(last_B))
        return all_BT[to_device(rows_B, all_BT.device), to_device(last_B, all_BT.device)]

    def _damaged(self) -> Exception:
        return bad(self.model.config.name, "", "finite logits", "inf or nan: the weights are damaged or overflow this type")


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
