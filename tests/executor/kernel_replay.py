"""Random calls of the C kernels with what torch answers in float64, and a program outside Python that replays them.

So the kernels can be tested as any compiler builds them for any processor: natively, under emulation, with sanitizers.
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch
from tiny_models import tiny_model
from torch import Tensor

from magicdec.executor.kernels import build, cpu_attention, cpu_bindings
from magicdec.executor.kv.attention import SlotAttention, visible
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model.transformer import Transformer

# Largest error, as a part of the largest number of an answer: float32 rounds by 6e-8, and rounding adds up over the products of a
# pass. In 9,000 random calls, 3,000 for each length of vectors, 4.6e-6 was seen.
ROUNDING = 2e-5
DRIVER = Path(__file__).with_name("kernel_driver.c")
LINEAR, ATTEND, FORWARD_PASS = range(3)  # as in the driver
CPU = torch.device("cpu")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")


@dataclass(frozen=True)
class Buffer:
    """Memory that a call is given; `size` bytes of no content if there is no tensor."""

    tensor: Tensor | None = None
    size: int = -1
    back: bool = False


@dataclass
class Case:
    """A call, and a check of the buffers that it writes."""

    name: str
    kind: int
    integers: list[int]
    buffers: list[Buffer]
    check: Callable[[list[Tensor]], None] = field(repr=False)

    def written(self) -> list[Buffer]:
        return [buffer for buffer in self.buffers if buffer.back]


def compile_driver(command: Sequence[str], flags: Sequence[str], folder: Path) -> Path:
    """Compile the kernels and the driver into a program.

    Raises:
        RuntimeError: The compiler fails.
    """
    kernels, program = Path(build.__file__).parent, folder / "driver"
    files = [str(DRIVER), str(kernels / "cpu_attention.c"), "-lm"]
    words = [*command, *build.COMPILE_FLAGS, "-Wall", "-Werror", *flags, "-I", str(kernels), *files, "-o", str(program)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr}")
    return program


def replay(command: Sequence[str], cases: Sequence[Case], folder: Path) -> None:
    """Run cases in the driver, and check what it writes.

    Args:
        command: Driver, after its emulator if there is one.
        cases: The calls.
        folder: Where the files go.

    Raises:
        AssertionError: An answer is wrong, or the driver failed; the message has its last words.
    """
    calls, answers = folder / "calls", folder / "answers"
    with calls.open("wb") as file:
        file.write(_int64s(len(cases)))
        for case in cases:
            file.write(_int64s(case.kind, len(case.integers), *case.integers, len(case.buffers)))
            for buffer in case.buffers:
                if buffer.tensor is None:
                    file.write(_int64s(buffer.size, 0, int(buffer.back)))
                else:
                    content = buffer.tensor.contiguous().view(torch.uint8).numpy().tobytes()
                    file.write(_int64s(len(content), 1, int(buffer.back)) + content)
    ran = subprocess.run([*command, str(calls), str(answers)], capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, f"exit code {ran.returncode}\n{ran.stderr[-4000:]}"
    with answers.open("rb") as file:
        for case in cases:
            (status,) = struct.unpack("<q", file.read(8))
            assert status == 0, case.name
            case.check([_read(file.read(_size(buffer)), buffer) for buffer in case.written()])
        assert not file.read(1)


def random_cases(count: int, seed: int) -> Iterator[Case]:
    """Calls of random shapes, of every kind in turn."""
    makers = (random_pass, random_product, random_attention)
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        torch.manual_seed(chance.getrandbits(32))
        yield makers[number % len(makers)](chance)


def random_product(chance: random.Random) -> Case:
    """`linear` with weights of each storage type."""
    dtype = chance.choice(list(cpu_bindings.WEIGHT_TYPES))
    rows, width, outputs = (
        chance.choice((1, 3, 16, 17, 35, chance.randint(1, 300))),
        16 * chance.randint(1, 20),
        chance.randint(1, 70),
    )
    x, weight = torch.randn(rows, width), torch.randn(outputs, width).to(dtype)
    wanted = x.double() @ weight.double().T
    integers = [chance.randint(1, 3), cpu_bindings.WEIGHT_TYPES[dtype], rows, width, outputs]
    buffers = [
        Buffer(torch.zeros(2)),
        Buffer(x),
        Buffer(weight),
        Buffer(torch.zeros(rows, outputs), back=True),
        Buffer(size=x.nbytes),
    ]
    return Case(f"linear {integers}", LINEAR, integers, buffers, lambda found: _close(found[0], wanted))


def random_attention(chance: random.Random) -> Case:
    """`attend` over a part of a larger cache."""
    batch, kv_heads, group, length = chance.randint(1, 4), chance.randint(1, 3), chance.randint(1, 5), chance.randint(1, 6)
    width, slots = chance.choice(list(cpu_attention.HEAD_DIMS)), length + chance.choice((0, 3, 60, 64, 130, chance.randint(0, 400)))
    threads, window = chance.randint(1, 3), chance.choice((None, None, 1, chance.randint(1, slots)))
    k_BKSH, v_BKSH = torch.randn(2, batch, kv_heads, slots, width)
    q_BNTH = torch.randn(batch, kv_heads * group, length, width) * chance.choice((1.0, 1.0, 6.0))
    starts_B = torch.tensor([chance.randint(0, slots - length) for _ in range(batch)])
    positions_BT = starts_B[:, None] + torch.arange(length)
    seen_BTS = visible(positions_BT, torch.arange(slots), window)
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k_BKSH, v_BKSH))
    scores = (q_BNTH.double() @ keys.transpose(2, 3) * width**-0.5).masked_fill(~seen_BTS[:, None], float("-inf"))
    wanted = torch.softmax(scores, -1) @ values
    splits = cpu_attention.num_splits(batch * kv_heads, threads)
    scratch = cpu_attention.scratch_size(batch * kv_heads * group * length, width, splits)
    sizes = [batch, kv_heads, group, length, width, k_BKSH.stride(0), k_BKSH.stride(1), window or 0, splits]
    tensors = (torch.tensor([0.0, width**-0.5]), q_BNTH, k_BKSH, v_BKSH, positions_BT)
    buffers = [*map(Buffer, tensors), Buffer(torch.zeros_like(q_BNTH), back=True), Buffer(size=4 * scratch)]
    return Case(f"attend {threads} {sizes}", ATTEND, [threads, *sizes], buffers, lambda found: _close(found[0], wanted))


def random_pass(chance: random.Random) -> Case:
    """`forward_pass` of a random model: hidden states, greedy tokens, and keys and values in the cache."""
    dtype, kv_heads = chance.choice(("float32", "float16", "bfloat16")), chance.randint(1, 3)
    stored = {"linear_dtype": dtype, "embedding_dtype": dtype} if dtype != "float32" else {}
    shape = {
        "num_layers": chance.randint(1, 2),
        "d_model": 16 * chance.randint(1, 8),
        "num_heads": kv_heads * chance.randint(1, 4),
        "num_kv_heads": kv_heads,
        "head_dim": chance.choice((32, 32, 64, 96)),
        "d_ff": 16 * chance.randint(1, 10),
        "vocab_size": chance.randint(8, 70),
        "qkv_bias": chance.random() < 0.5,
        "qk_norm": chance.random() < 0.5,
    }
    model = tiny_model(dtype="float32", seed=chance.getrandbits(16), **shape, **stored)
    exact = Transformer(tiny_model(dtype="float64", **shape).config).eval().requires_grad_(False)
    exact.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
    batch, length = chance.choice(((1, 1), (1, 5), (16, 1), (17, 2), (chance.randint(1, 12), chance.randint(1, 9))))
    slots = length + chance.randint(0, 150)
    window = chance.choice((None, None, chance.randint(1, slots)))
    caches = [KvCache(m.config, batch, slots, CPU, m.dtype) for m in (model, exact)]
    for name in ("k_LBKSH", "v_LBKSH"):
        noise = torch.randn(getattr(caches[0], name).shape)
        for cache in caches:
            getattr(cache, name).copy_(noise)
    tokens_BT = torch.randint(model.config.vocab_size, (batch, length))
    slots_BT = torch.tensor([[chance.randint(0, slots - length)] for _ in range(batch)]) + torch.arange(length)
    case = _recorded(model, tokens_BT, slots_BT, caches[0], window, threads=chance.randint(1, 3))
    with torch.inference_mode():
        x_BTD = exact(tokens_BT, slots_BT, SlotAttention(caches[1], slots_BT, window))
        logits_BTV = exact.logits(x_BTD)

    def check(found: list[Tensor]) -> None:
        _close(found[0], x_BTD)
        _close(found[1], caches[1].k_LBKSH)
        _close(found[2], caches[1].v_LBKSH)
        best_BT = logits_BTV.gather(2, found[3][..., None])[..., 0]
        assert bool((best_BT >= logits_BTV.amax(2) - ROUNDING * logits_BTV.abs().max()).all()), case.name

    case.check = check
    return case


def _recorded(model: Transformer, tokens_BT: Tensor, slots_BT: Tensor, cache: KvCache, window: int | None, *, threads: int) -> Case:
    """The C call that a greedy pass makes, with the memory that Python would give it."""
    made: list[Case] = []

    def record(stack: cpu_bindings.StackStruct, tensors: Sequence[Tensor], sizes: Sequence[int], scale: float) -> int:
        decoder, config = model._cpu_decoder, model.config
        assert decoder is not None
        *inputs, x_BTD, k_LBKSH, v_LBKSH, greedy_BT, workspace, rest = tensors
        layer = [cpu_bindings.WEIGHT_TYPES[decoder.layers[0].matrix_dtype]]
        layer += [getattr(config, name) for name in cpu_bindings.LAYER_SIZES]
        integers = [threads, *layer, config.vocab_size, len(model.cos_PH), config.num_layers, *sizes]
        buffers = [Buffer(torch.tensor([config.norm_eps, scale])), *map(Buffer, inputs), Buffer(torch.zeros_like(x_BTD), back=True)]
        buffers += [Buffer(x.clone(), back=True) for x in (k_LBKSH, v_LBKSH)]
        buffers += [Buffer(torch.zeros_like(greedy_BT), back=True)]
        buffers += [Buffer(size=size) for size in (workspace.nbytes - rest.nbytes, rest.nbytes)]
        stacked = (decoder.embedding_VD, decoder.norm_D, decoder.head_VD, model.cos_PH, model.sin_PH)
        buffers += map(Buffer, (*stacked, *(weight for layer in decoder.layers for weight in layer.weights)))
        made.append(Case(f"pass {integers}", FORWARD_PASS, integers, buffers, lambda found: None))
        return 0

    usual = torch.get_num_threads()
    torch.set_num_threads(threads)  # parts of the attention, and so the size of its workspace, depend on it
    try:
        with (
            patch.object(cpu_bindings, "kernels", object),
            patch.object(cpu_bindings, "forward_pass", record),
            torch.inference_mode(),
        ):
            model.greedy_tokens(tokens_BT, slots_BT, SlotAttention(cache, slots_BT, window), model.config.vocab_size)
    finally:
        torch.set_num_threads(usual)
    return made[0]


def _close(found: Tensor, wanted: Tensor) -> None:
    error, largest = float((found.double() - wanted).abs().max()), float(wanted.abs().max())
    assert error <= ROUNDING * largest, f"off by {error:.3g} in numbers up to {largest:.3g}"


def _int64s(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _size(buffer: Buffer) -> int:
    return buffer.size if buffer.tensor is None else buffer.tensor.nbytes


def _read(content: bytes, buffer: Buffer) -> Tensor:
    assert buffer.tensor is not None
    return torch.frombuffer(bytearray(content), dtype=buffer.tensor.dtype).view(buffer.tensor.shape)
