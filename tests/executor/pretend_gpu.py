"""A simulated GPU: tensors that claim to be on a GPU but are stored and computed on the CPU.

It enforces the rules of a real GPU: host and device tensors must not mix, and every operation that makes the host wait is counted.
Results are correct, so a whole run can be compared with the same run on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
aten = torch.ops.aten
UNBOUND: dict[Any, Any] = {  # functions that would select a real GPU in C++
    Tensor.__invert__: torch.bitwise_not,
    Tensor.copy_: aten.copy_.default,
    Tensor.__int__: aten._local_scalar_dense.default,
    Tensor.__float__: aten._local_scalar_dense.default,
}
WAITS = (
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)


class OnGpu(torch.Tensor):
    """A tensor that claims to be on the GPU, with the CPU tensor behind it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        wrapper: OnGpu = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=GPU, **layout)  # type: ignore[attr-defined]
        wrapper.held = held
        return wrapper

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.__getitem__, Tensor.__setitem__):  # they would select a real GPU in C++
            return PretendedGpu.entered[-1].index(function, *args)
        with torch._C.DisableTorchFunctionSubclass():
            return UNBOUND.get(function, function)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of the pretended GPU")


class PretendedGpu(TorchDispatchMode):
    """Context in which tensors can be on the simulated GPU.

    Attributes:
        waits: Operations that made the host wait, in order.
        capturing: Whether a graph is being captured: the host must neither wait nor send anything.
        replayed: Number of graph replays.
    """

    entered: ClassVar[list[PretendedGpu]] = []

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.capturing = False
        self.replayed = 0

    def __enter__(self) -> PretendedGpu:
        self.entered.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.entered.pop()

    def index(self, function: Any, x: Tensor, place: Any, *value: Any) -> Any:
        """`x[place]`, or `x[place] = value`."""
        tensors = [y for y in tree_flatten(place)[0] if isinstance(y, Tensor)]
        others = [y for y in (x, *tensors, *value) if isinstance(y, Tensor) and not isinstance(y, OnGpu) and y.ndim > 0]
        if others or any(y.dtype == torch.bool for y in tensors):
            self._wait(function)
        with torch._C._DisableTorchDispatch():
            found = function(_held(x), tree_map(_held, place), *map(_held, value))
        return OnGpu(found) if isinstance(x, OnGpu) and isinstance(found, Tensor) else found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        ours = [x for x in given if isinstance(x, OnGpu)]
        target = kwargs.get("device")
        to_gpu = target is not None and torch.device(target).type == "cuda"
        to_host = target is not None and not to_gpu and bool(ours)
        if not ours and not to_gpu:
            return function(*args, **kwargs)
        if function is aten._fused_sdp_choice.default:
            return 0  # the math backend, which the CPU has too
        self._check(function, args, kwargs, given, ours, to_gpu, to_host)
        if to_gpu:
            kwargs["device"] = torch.device("cpu")
        held_args, held_kwargs = tree_map(_held, (args, kwargs))
        found = function(*held_args, **held_kwargs)
        if to_host:
            return found
        same = {id(x.held): x for x in ours}
        return tree_map(lambda x: (same[id(x)] if id(x) in same else OnGpu(x)) if isinstance(x, Tensor) else x, found)

    def _check(self, function: Any, args: Any, kwargs: Any, given: Any, ours: Any, to_gpu: bool, to_host: bool) -> None:
        hosts = [x for x in given if not isinstance(x, OnGpu) and x.ndim > 0]
        if function is aten.copy_.default:
            blocking = len(args) < 3 or not args[2]
            if hosts and (blocking or not isinstance(args[0], OnGpu)):
                self._wait(function)
        elif function in INDEXING:
            if hosts or any(x.dtype == torch.bool for x in args[1] if isinstance(x, Tensor)):
                self._wait(function)
        elif hosts and not to_gpu:
            raise AssertionError(f"{function}: some of its tensors are on the GPU and some on the host")
        if function in WAITS or to_host or (to_gpu and hosts and not kwargs.get("non_blocking")):
            self._wait(function)
        if self.capturing and (hosts or to_host):
            raise AssertionError(f"{function}: a graph was being captured")

    def _wait(self, function: Any) -> None:
        assert not self.capturing, f"{function}: the host waits while a graph is captured"
        self.waits.append(str(function))


def moved(model: nn.Module) -> nn.Module:
    """Move the weights of a model to the GPU in place; `Module.to` would turn them into ordinary tensors."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: OnGpu(x.detach()) for name, x in tensors.items() if x is not None})  # type: ignore[arg-type]
    return model


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGpu) else x


Captured = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def pretended_graphs(gpu: PretendedGpu) -> tuple[Callable[..., Captured], Callable[..., Tensor]]:
    """Replacements for `capture` and `replay` of `engine.model_runner`: a graph sees only the tensors it was captured with."""

    def replay(captured: Captured, arguments: tuple[Tensor, ...]) -> Tensor:
        function, places = captured
        for place, argument in zip(places, arguments, strict=True):
            place.copy_(argument)
        gpu.capturing = True
        gpu.replayed += 1
        try:
            return function(*places)
        finally:
            gpu.capturing = False

    return lambda function, arguments, aside: (function, tuple(x.clone() for x in arguments)), replay
