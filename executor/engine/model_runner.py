"""Forward passes of a model over a KV cache. On a GPU each pass is captured as a CUDA graph once and replayed from then on.

Without graphs, launching the hundreds of kernels of a short pass one by one takes longer than running them.

Shapes: B batch, T query tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdec.costmodel.base.errors import InputError, bad

from ..kv.attention import SlotAttention
from ..model.attend import Attend
from ..model.transformer import Transformer
from ..system.device import to_device

CapturedGraph = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]  # graph, its input tensors, its output tensor


@dataclass(frozen=True)
class ForwardPass:
    """Deferred forward pass: calling either method runs the model and writes the KV cache.

    Attributes:
        runner: Runs it.
        tokens_BT, positions_BT, attend: Inputs of the model.
        last_B: Token of each row that is asked about, on the host; None for all tokens.
    """

    runner: ModelRunner
    tokens_BT: Tensor
    positions_BT: Tensor
    attend: Attend
    last_B: Tensor | None

    def greedy(self) -> Tensor:
        """Argmax token after each token, of shape [B, T], or [B] if `last_B` is given.

        Raises:
            InputError: A logit is infinite or NaN.
        """
        return self.runner.greedy(self)

    def logits(self) -> Tensor:
        """Logits after each token, of shape [B, T, V], or [B, V] if `last_B` is given.

        Raises:
            InputError: A logit is infinite or NaN.
        """
        return self.runner.logits(self)


class ModelRunner:
    """Builds the forward passes of one model, and keeps their CUDA graphs.

    A captured graph reads and writes the same memory at each replay: call `drop_graphs` when the cache or the rows change.

    Args:
        model: The model.
        vocab_size: Number of token ids to answer with. Ids beyond the model's own vocabulary get a logit of -inf.
            None for the model's own vocabulary.
    """

    def __init__(self, model: Transformer, vocab_size: int | None = None):
        self.model = model
        self.vocab_size = vocab_size or model.config.vocab_size
        self._seen_finite = False  # some logits were checked and found finite
        self._graphs: dict[Hashable, CapturedGraph] = {}
        self._capture_stream: torch.cuda.Stream | None = None

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor, attend: Attend, last_B: Tensor | None = None) -> ForwardPass:
        """Build one forward pass over the given tokens.

        Args:
            tokens_BT, positions_BT, attend: Inputs of the model; the tensors may be on any device.
            last_B: Token of each row that is asked about, on the host; None for all tokens.
        """
        return ForwardPass(self, tokens_BT, positions_BT, attend, last_B)

    def drop_graphs(self) -> None:
        """Drop captured CUDA graphs after the cache or batch layout changes."""
        self._graphs.clear()

    def greedy(self, forward: ForwardPass) -> Tensor:
        """Run a pass and return the argmax tokens, see `ForwardPass.greedy`.

        Raises:
            InputError: A logit is infinite or NaN.
        """
        if forward.last_B is not None and forward.tokens_BT.shape[1] > 1:  # run the LM head for one token per row only
            return self.logits(forward).argmax(-1)
        vocab_size = min(self.vocab_size, self.model.config.vocab_size)
        try:
            fused_BT = self.model.greedy_tokens(forward.tokens_BT, forward.positions_BT, forward.attend, vocab_size)
        except FloatingPointError:
            raise self._not_finite() from None
        return self.logits(forward).argmax(-1) if fused_BT is None else _select_last(fused_BT, forward.last_B)

    def logits(self, forward: ForwardPass) -> Tensor:
        """Run a pass and return the logits, see `ForwardPass.logits`.

        Raises:
            InputError: A logit is infinite or NaN.
        """
        logits = self.model.logits(_select_last(self._hidden(forward), forward.last_B))[..., : self.vocab_size]
        if logits.device.type == "cpu" or not self._seen_finite:  # on a GPU the check makes the host wait: check once only
            self._seen_finite = bool(logits.isfinite().all())
            if not self._seen_finite:
                raise self._not_finite()
        missing = self.vocab_size - logits.shape[-1]
        return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits

    def _hidden(self, forward: ForwardPass) -> Tensor:
        """Final hidden states x_BTD. A replayed graph overwrites them at its next replay."""
        attend = forward.attend
        tokens_BT, positions_BT = (to_device(x, self.model.device) for x in (forward.tokens_BT, forward.positions_BT))
        if not (isinstance(attend, SlotAttention) and attend.capturable and not self.model.is_sharded):
            x_BTD: Tensor = self.model(tokens_BT, positions_BT, attend)
            return x_BTD
        key, arguments = (tokens_BT.shape, attend.graph_key), (tokens_BT, positions_BT, attend.slots_BT, attend.positions_BT)
        if key not in self._graphs:

            def run(tokens_BT: Tensor, positions_BT: Tensor, slots_BT: Tensor, own_positions_BT: Tensor) -> Tensor:
                x_BTD: Tensor = self.model(tokens_BT, positions_BT, attend.with_slots(slots_BT, own_positions_BT))
                return x_BTD

            if self._capture_stream is None:
                self._capture_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._graphs[key] = capture(run, arguments, self._capture_stream)
        return replay(self._graphs[key], arguments)

    def _not_finite(self) -> InputError:
        return bad(self.model.config.name, "", "finite logits", "inf or nan: the weights are damaged or overflow this type")


def _select_last(x_BT: Tensor, last_B: Tensor | None) -> Tensor:
    """The entry of one token per row; all entries if `last_B` is None."""
    if last_B is None:
        return x_BT
    if x_BT.shape[1] == 1:
        return x_BT[:, 0]
    return x_BT[to_device(torch.arange(len(last_B)), x_BT.device), to_device(last_B, x_BT.device)]


def capture(function: Callable[..., Tensor], arguments: tuple[Tensor, ...], stream: torch.cuda.Stream) -> CapturedGraph:
    """Capture a function of tensors as a CUDA graph.

    Args:
        function: Must not read tensor values on the host.
        arguments: Example inputs; the graph gets copies of them as its own input tensors.
        stream: Side stream to capture on.
    """
    inputs = tuple(argument.clone() for argument in arguments)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up: kernels are compiled and workspaces allocated before the capture
        function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = function(*inputs)
    return graph, inputs, output


def replay(captured: CapturedGraph, arguments: tuple[Tensor, ...]) -> Tensor:
    """Replay a captured graph on arguments of the captured shapes, and return its output tensor."""
    graph, inputs, output = captured
    for own, argument in zip(inputs, arguments, strict=True):
        own.copy_(argument)
    graph.replay()
    return output
