"""Acceptance of self drafts by KV policy at equal budget, on the reference model: on held-out text and where recall is needed.

Two recall tasks, each made of held-out text around something that cannot be known but from far back:
- passage: a passage from near the start is begun again at the end, so the model continues by copying it.
- identifiers: definitions of random names near the start, called again one after the other at the end.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.decode_loop import decode
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundLog
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.measuring.acceptance import acceptance_rates
from magicdec.executor.model.checkpoint import load_model
from magicdec.executor.model.tokenizer import load_tokenizer
from magicdec.executor.reference_model import reference_model_dir
from magicdec.render.tables import text_table
from magicdec.running.checkpoints import tokenize_text

POLICIES = ("streaming_llm", "snapkv", "topk", "quest")


def held_out(tokens: Sequence[int], rows: int, context_len: int) -> list[Request]:
    """Text as it is, from places spread evenly over it."""
    stride = (len(tokens) - context_len) // max(rows - 1, 1)
    return [Request(str(row), list(tokens[row * stride : row * stride + context_len])) for row in range(rows)]


def passage(tokens: Sequence[int], rows: int, context_len: int, length: int = 160, begun: int = 48) -> list[Request]:
    """A passage from an eighth into the text, begun again at its end."""
    prompts = []
    for prompt in held_out(tokens, rows, context_len - begun):
        start = context_len // 8
        copied = prompt.tokens[start : start + length]
        prompts.append(Request(prompt.id, [*prompt.tokens, *copied[:begun]]))
    return prompts


def identifiers(tokens: Sequence[int], tokenizer: Tokenizer, rows: int, context_len: int) -> list[Request]:
    """Assignments of random words near the start; at the end they are begun again in the same order."""
    prompts = []
    for row, prompt in enumerate(held_out(tokens, rows, context_len)):
        chance = random.Random(row)
        names = ["".join(chance.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(6)) for _ in range(24)]
        lines = [f'{name} = "{"".join(chance.choice("abcdefghijklmnop") for _ in range(5))}"\n' for name in names]
        table_ids, again_ids = (tokenizer.encode("\n" + "".join(part)).ids for part in (lines, lines[:4]))
        rest = prompt.tokens[: context_len - len(table_ids) - len(again_ids)]
        prompts.append(Request(prompt.id, [*rest[:64], *table_ids, *rest[64:], *again_ids]))
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context-len", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 256, 512])
    chosen = parser.parse_args()
    folder = reference_model_dir()
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    tokens = tokenize_text(tokenizer, None)[1]
    tasks = {
        "held-out text": held_out(tokens, chosen.rows, chosen.context_len),
        "passage": passage(tokens, chosen.rows, chosen.context_len),
        "identifiers": identifiers(tokens, tokenizer, chosen.rows, chosen.context_len),
    }
    torch.manual_seed(0)
    for name, prompts in tasks.items():
        strategies = [Strategy("self", policy, budget, 4) for budget in chosen.budgets for policy in POLICIES]
        found = list(acceptance_rates(model, prompts, strategies, chosen.new_tokens))
        cells = [f"{rate:.3f} ± {error:.3f}" for rate, error in found]
        width = len(POLICIES)
        rows = [[str(budget), *cells[i * width : (i + 1) * width]] for i, budget in enumerate(chosen.budgets)]
        print(f"\n{name}, context {chosen.context_len}, {chosen.rows} rows of {chosen.new_tokens} tokens, gamma 4")
        print(text_table(["KV budget", *POLICIES], rows))
        if name == "passage":
            print(f"of its continuation, the model itself copies {copied_share(model, tokens, prompts, chosen.context_len):.0%}")


def copied_share(model: torch.nn.Module, tokens: Sequence[int], prompts: Sequence[Request], context_len: int) -> float:
    """How much of the passage the model itself gets right, up to 64 tokens."""
    batch = Batch(model, prompts, GenerationSettings(64))
    batch.prefill()
    outputs = RoundLog(list(decode(batch))).outputs
    start, begun = context_len // 8, 48
    right = total = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        wanted = prompt.tokens[start + begun : start + begun + 64]
        right += sum(a == b for a, b in zip(output, wanted, strict=True))
        total += 64
    return right / total


if __name__ == "__main__":
    main()
