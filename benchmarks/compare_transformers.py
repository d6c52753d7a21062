"""Decoding speed on the shipped model and this machine, taking turns within one run; medians over the turns.

- Autoregressive decoding beside transformers' `generate`, with the same weights, prompts and new tokens, both greedy in float32 and
  uncompiled; the better of its dynamic and its static cache counts. Reading the prompts is left out of both.
- Speculative beside autoregressive decoding, with the planned StreamingLLM self draft, on text that the model was not trained on.
- A verification of gamma + 1 tokens beside an autoregressive step, alone.
- What autoregressive decoding reads a second, beside the fastest that this machine reads memory at all.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from magicdec.api.demo import SEARCH
from magicdec.api.plan import make_plan
from magicdec.costmodel.base.units import format_bytes
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.decode_loop import decode
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.model_runner import ModelRunner
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundLog
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import make_batch
from magicdec.executor.kv.attention import SlotAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.measuring.comparison import compare
from magicdec.executor.measuring.cpu_probe import random_model, read_rate
from magicdec.executor.measuring.measurement import processor_name
from magicdec.executor.measuring.timing import median_time_s
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.tokenizer import load_tokenizer
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model import reference_model_dir
from magicdec.inputs.cpu_profile import CPU
from magicdec.inputs.names import REFERENCE
from magicdec.inputs.scenario import resolve_scenario
from magicdec.render.tables import text_table
from magicdec.running.checkpoints import tokenize_text

CACHES = ("dynamic", "static")
LONG = 16384  # tokens, more than the shipped model has positions for


class Clock(BaseStreamer):
    """Notes when `generate` hands out the prompts, and then each token."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        pass


def taking_turns(actions: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of what each action answers, every one having run once before."""
    turns = [{name: action() for name, action in actions.items()} for _ in range(repeats + 1)][1:]
    return {name: statistics.median(turn[name] for turn in turns) for name in actions}


def evenly_cut(tokens: Sequence[int], rows: int, context_len: int) -> list[Request]:
    """Prompts of one length, from places spread evenly over a text."""
    stride = (len(tokens) - context_len) // max(rows - 1, 1)
    return [Request(str(row), list(tokens[row * stride : row * stride + context_len])) for row in range(rows)]


def beside_transformers(model: Transformer, prompts: Sequence[Request], new_tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds per step of both, prompts being read left out, and the share of equal tokens."""
    theirs = LlamaForCausalLM.from_pretrained(reference_model_dir(), dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    prompts_BT = torch.tensor([prompt.tokens for prompt in prompts])
    outputs: dict[str, list[list[int]]] = {}
    batch = Batch(model, prompts, GenerationSettings(new_tokens))
    batch.prefill()

    @torch.inference_mode()
    def generate(cache: str) -> float:
        clock = Clock()
        found = theirs.generate(
            prompts_BT,
            attention_mask=torch.ones_like(prompts_BT),
            max_new_tokens=new_tokens,
            do_sample=False,
            cache_implementation=cache,
            disable_compile=True,
            streamer=clock,
        )
        outputs[cache] = found[:, prompts_BT.shape[1] :].tolist()
        return (clock.times_s[-1] - clock.times_s[1]) / (len(clock.times_s) - 2)

    def own() -> float:
        batch.rewind()
        log = RoundLog(list(decode(batch)))
        outputs["own"] = log.outputs
        return log.decode_s / len(log.rounds)

    steps = taking_turns({"own": own, **{cache: (lambda c=cache: generate(c)) for cache in CACHES}}, repeats)
    same = [
        a == b for mine, other in zip(outputs["own"], outputs[CACHES[0]], strict=True) for a, b in zip(mine, other, strict=True)
    ]
    return {
        "own_step_s": steps["own"],
        **{f"transformers_{cache}_step_s": steps[cache] for cache in CACHES},
        "speedup": min(steps[cache] for cache in CACHES) / steps["own"],
        "equal_tokens": sum(same) / len(same),
    }


def speculation(
    model: Transformer, prompts: Sequence[Request], strategy: Strategy, new_tokens: int, repeats: int
) -> dict[str, Any]:
    """Plain over speculative time per token, as `magicdec demo` measures it, and the acceptance."""
    batch = make_batch(model, prompts, strategy, GenerationSettings(new_tokens))
    batch.prefill()
    result = compare(batch, None, strategy, repeats=repeats)
    plain, log = result.autoregressive, result.log
    return {
        "speedup": plain.tpot_s / log.tpot_s,
        "strategy": str(strategy),
        "acceptance_rate": log.acceptance_rate,
        "mean_acceptance_length": log.mean_acceptance_length,
        "plain_tpot_s": plain.tpot_s,
        "speculative_tpot_s": log.tpot_s,
        "draft_step_s": statistics.median(log.draft_s) / strategy.gamma,
        "verify_step_s": statistics.median(log.verify_s),
        "outputs_identical": log.outputs == plain.outputs,
    }


def decoding_pass(runner: ModelRunner, cache: KvCache, query_len: int, context_len: int) -> None:
    """Run one greedy pass over every row of a cache, from `query_len` tokens at `context_len` to the next tokens."""
    batch_size = cache.k_LBKSH.shape[1]
    tokens_BT = torch.zeros((batch_size, query_len), dtype=torch.long)
    positions_BT = torch.arange(context_len, context_len + query_len).expand(batch_size, -1)
    runner(tokens_BT, positions_BT, SlotAttention(cache, positions_BT)).greedy()


@torch.inference_mode()
def passes(model: Transformer, batch_size: int, context_len: int, gamma: int, repeats: int) -> dict[str, float]:
    """Time of an autoregressive step and of a verification pass over random keys and values, their ratio, and the read bandwidth.

    The machine's best read bandwidth is measured in the same turns, because other jobs may use its memory.
    """
    cache = KvCache(model.config, batch_size, context_len + gamma + 1, model.device, model.dtype)
    cache.k_LBKSH.normal_()
    cache.v_LBKSH.normal_()

    runner = ModelRunner(model)

    def timed(query_len: int) -> float:
        return median_time_s(lambda: decoding_pass(runner, cache, query_len, context_len), repeats=3, warm_up=1)

    found = taking_turns(
        {"target_step_s": lambda: timed(1), "verify_step_s": lambda: timed(gamma + 1), "read_bytes_per_s": read_rate}, repeats
    )
    weights_bytes = sum(parameter.nbytes for parameter in model.parameters())
    read_bytes = weights_bytes + batch_size * (context_len + 1) * model.config.kv_bytes_per_token
    step_bytes_per_s = read_bytes / found["target_step_s"]
    return {
        **found,
        "verify_over_target": found["verify_step_s"] / found["target_step_s"],
        "step_bytes_per_s": step_bytes_per_s,
        "share_of_read_bandwidth": step_bytes_per_s / found["read_bytes_per_s"],
    }


def measured(repeats: int, new_tokens: int) -> dict[str, Any]:
    folder = reference_model_dir()
    model = load_model(folder)
    tokens = tokenize_text(load_tokenizer(folder), None)[1]
    plan = make_plan(resolve_scenario(REFERENCE, CPU), Workload(16, 8192, new_tokens), SEARCH).plan
    beside = {
        f"{rows} x {context_len}": beside_transformers(model, evenly_cut(tokens, rows, context_len), new_tokens, repeats)
        for rows, context_len in ((16, 2048), (1, 8192))
    }
    gain = speculation(model, evenly_cut(tokens, 16, 8192), plan.strategy, new_tokens, repeats)
    longer = random_model(replace(model.config, max_context_len=LONG + 8))
    long = passes(longer, 16, LONG, 4, repeats)
    return {
        "autoregressive_vs_transformers": {where: found["speedup"] for where, found in beside.items()},
        "speculative_vs_autoregressive": gain["speedup"],
        "acceptance_rate": gain["acceptance_rate"],
        "verify_over_target": passes(model, 16, 8192, 4, repeats)["verify_over_target"],
        "share_of_read_bandwidth": long["share_of_read_bandwidth"],
        "read_bandwidth_bytes_per_s": long["read_bytes_per_s"],
        "beside_transformers": beside,
        "speculation": gain,
        "passes_16_x_16384": long,
        "machine": f"{processor_name()}, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="Print one JSON document.")
    parser.add_argument("--repeats", type=int, default=5, help="Turns that each way of decoding takes.")
    parser.add_argument("--new-tokens", type=int, default=64)
    chosen = parser.parse_args()
    found = measured(chosen.repeats, chosen.new_tokens)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    rows = [
        [f"autoregressive decoding over transformers, {where}", f"{x:.2f}x"]
        for where, x in found["autoregressive_vs_transformers"].items()
    ]
    gain = f"{found['speculative_vs_autoregressive']:.2f}x at acceptance {found['acceptance_rate']:.3f}"
    rows += [
        [f"speculative over autoregressive decoding, 16 x 8192 ({found['speculation']['strategy']})", gain],
        ["verification of 5 tokens over an autoregressive step, 16 x 8192", f"{found['verify_over_target']:.2f}"],
        ["read bandwidth reached by autoregressive decoding, 16 x 16384", f"{found['share_of_read_bandwidth']:.0%}"],
    ]
    reads = format_bytes(found["read_bandwidth_bytes_per_s"])
    print(f"{found['machine']}, which reads {reads}/s; load {found['load_average'][0]:.1f} at the end\n")
    print(text_table(["measured", "found"], rows))


if __name__ == "__main__":
    main()
