"""Step times and speedup of a model's shape on a device, with random weights and acceptance replayed at a given rate.

SYNTHETIC: weights and KV cache are random, and acceptance is drawn at the given rate. Only time is measured: an autoregressive
step, its bandwidth beside that of a copy, draft and verification, and the speedup at that acceptance rate. This tries a plan on a
GPU without a checkpoint:

    python benchmarks/replayed.py --model llama-3.1-8b --device cuda --batch-size 24 --context-len 32768 \
        --kv-policy snapkv --kv-budget 2049 --gamma 4 --acceptance-rate 0.9
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.base.units import format_bytes, format_seconds
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.decode_loop import decode
from magicdec.executor.drafting.draft_policy import AUTOREGRESSIVE
from magicdec.executor.drafting.factory import make_policy
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundLog
from magicdec.executor.engine.sampling import DeferredPass, Sampler, uniform
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.measuring.cpu_probe import read_rate
from magicdec.executor.measuring.measurement import environment
from magicdec.executor.measuring.throughput import achieved
from magicdec.executor.measuring.timing import median_time_s
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.system.device import to_device

REPLAYED = 3  # what a draw is for, beside those of executor.sampling


class ReplayedSampler(Sampler):
    """Accepts each draft token with one probability, whatever the target says; the target is asked all the same."""

    def __init__(self, sampler: Sampler, acceptance_rate: float):
        self.sampling, self.seeds_B, self.acceptance_rate = sampler.sampling, sampler.seeds_B, acceptance_rate

    def verify(
        self, draft_BG: Tensor, draft_probs_BGV: Tensor | None, forward: DeferredPass, positions_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        target_BT = super().verify(draft_BG, draft_probs_BGV, forward, positions_BT)[1]
        chance_BG = uniform(self.seeds_B, to_device(positions_BT[:, :-1], target_BT.device), REPLAYED)
        accepted_B = (chance_BG < self.acceptance_rate).int().cumprod(1).sum(1)
        return accepted_B, target_BT


def random_batch(model: Transformer, batch_size: int, context_len: int, gamma: int, new_tokens: int) -> Batch:
    """Rows of equal length whose prompts are noise and are not read: their keys and values are noise too."""
    prompts = [Request(str(row), [row % model.config.vocab_size] * context_len) for row in range(batch_size)]
    batch = Batch(model, prompts, GenerationSettings(new_tokens), gamma=gamma)
    with mock.patch("magicdec.executor.engine.batch.prefill"):
        batch.prefill()
    batch.cache.k_LBKSH.normal_()
    batch.cache.v_LBKSH.normal_()
    return batch


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a device reads and writes in a copy of half a gibibyte; on a CPU those that it reads. [bytes/s]"""
    if device.type == "cpu":
        return read_rate()
    source = torch.ones(2**27, device=device)
    place = torch.empty_like(source)
    return 2 * source.nbytes / median_time_s(lambda: place.copy_(source), repeats=20, warm_up=5, device=device)


@torch.inference_mode()
def measured(
    model: Transformer,
    strategy: Strategy,
    *,
    batch_size: int,
    context_len: int,
    acceptance_rate: float,
    new_tokens: int,
    repeats: int,
) -> dict[str, Any]:
    """Medians over runs of plain and speculative decoding that take turns, after one run of each that is not counted."""
    batch = random_batch(model, batch_size, context_len, strategy.gamma, new_tokens)
    batch.sampler = ReplayedSampler(batch.sampler, acceptance_rate)
    policy = make_policy(strategy, batch, None)
    ways: dict[str, Callable[[], RoundLog]] = {
        "plain": lambda: RoundLog(list(decode(batch, AUTOREGRESSIVE))),
        "speculative": lambda: RoundLog(list(decode(batch, policy))),
    }
    traces: dict[str, list[RoundLog]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            batch.rewind()
            traces[name].append(way())
    plain, speculative = traces["plain"][1:], traces["speculative"][1:]

    def median(values: list[float]) -> float:
        return statistics.median(values)

    bandwidth, rate = median([achieved(model, trace)[0] for trace in plain]), copy_rate(model.device)
    return {
        "synthetic": "random weights, random cache, acceptance drawn by lot",
        "model": model.config.name,
        "batch_size": batch_size,
        "context_len": context_len,
        "strategy": str(strategy),
        "replayed_acceptance_rate": acceptance_rate,
        "mean_acceptance_length": median([trace.mean_acceptance_length for trace in speculative]),
        "target_step_s": median([median(trace.round_s) for trace in plain]),
        "verify_step_s": median([median(trace.verify_s) for trace in speculative]),
        "draft_step_s": median([median(trace.draft_s) / strategy.gamma for trace in speculative]),
        "speedup": median([trace.tpot_s for trace in plain]) / median([trace.tpot_s for trace in speculative]),
        "target_bytes_per_s": bandwidth,
        "copy_bytes_per_s": rate,
        "share_of_copy_bandwidth": bandwidth / rate,
        "environment": environment(model.device.type).model_dump(),
    }


def random_weights(name: str, device: str, dtype: str, positions: int) -> Transformer:
    """A model of a known shape with room for so many positions."""
    config = resolve_model(name)
    longer = replace(config, dtype=dtype, max_context_len=max(config.max_context_len, positions))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # or the weights would be made in float32 first
    try:
        with torch.device(device):
            model = Transformer(longer).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.02)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", help="A built-in configuration or a config.json.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="bfloat16 on a GPU, float32 on a CPU by default."
    )
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--context-len", type=int, default=32768)
    parser.add_argument("--kv-policy", choices=["streaming_llm", "snapkv", "topk", "quest"], default="snapkv")
    parser.add_argument("--kv-budget", type=int, default=2049)
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--acceptance-rate", type=float, default=0.9)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="Print one JSON document.")
    chosen = parser.parse_args()
    if not 0 <= chosen.acceptance_rate <= 1:
        parser.error(f"--acceptance-rate: expected 0 to 1, found {chosen.acceptance_rate}")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device: expected cpu, for torch finds no GPU here, found 'cuda'")
    dtype = chosen.dtype or ("float32" if chosen.device == "cpu" else "bfloat16")
    try:
        strategy = Strategy("self", chosen.kv_policy, chosen.kv_budget, chosen.gamma)
        model = random_weights(chosen.model, chosen.device, dtype, chosen.context_len + chosen.new_tokens + chosen.gamma + 2)
    except InputError as error:
        parser.error(str(error))
    found = measured(
        model,
        strategy,
        batch_size=chosen.batch_size,
        context_len=chosen.context_len,
        acceptance_rate=chosen.acceptance_rate,
        new_tokens=chosen.new_tokens,
        repeats=chosen.repeats,
    )
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"SYNTHETIC ({found['synthetic']}): {found['model']} on {found['environment']['device']}, batch {chosen.batch_size}, ",
        end="",
    )
    print(f"context {chosen.context_len}, {found['strategy']}")
    print(f"autoregressive step {format_seconds(found['target_step_s'])}, {found['share_of_copy_bandwidth']:.0%} of the ", end="")
    print(f"{format_bytes(found['copy_bytes_per_s'])}/s of a copy")
    print(f"draft step {format_seconds(found['draft_step_s'])}, verification {format_seconds(found['verify_step_s'])}")
    print(f"speedup {found['speedup']:.2f}x at {found['mean_acceptance_length']:.2f} tokens a verification")


if __name__ == "__main__":
    main()
