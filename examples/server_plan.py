"""A plan for a server: which draft at which load, whether it holds the latency limit, and the command that starts the engine.

    python examples/server_plan.py [FOLDER]

The server: Llama-3.1-8B on eight H100, requests of 32,000 tokens of prompt and 256 of output, at most 20 ms per token.
"""

import sys
from pathlib import Path

import magicdec

SERVER = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "num_gpus": 8}
MAX_TPOT_S = 0.020


def main(folder: str = "server-plan") -> None:
    """Plan for the expected load, look at all other loads, and export."""
    # 1. The expected load: the best batch size and strategy for throughput, within the limit.
    plan = magicdec.plan(
        **SERVER, batch_size=[32, 64, 128], context_len=32000, output_len=256, objective="throughput", max_tpot_s=MAX_TPOT_S
    )
    print(plan, end="\n\n")

    # 2. All other loads: the best strategy of every batch size and context. Small batches and short contexts gain nothing.
    speedups = magicdec.explore(**SERVER, max_tpot_s=MAX_TPOT_S)
    print(speedups, end="\n\n")

    # 3. A plan that carries the whole map as its policy table, so that an engine can switch with the load.
    table = magicdec.plan(**SERVER, batch_size=128, context_len=32000, output_len=256, sweep=True, max_tpot_s=MAX_TPOT_S)
    Path(folder).mkdir(parents=True, exist_ok=True)
    table.save(f"{folder}/plan.yaml")

    # 4. The same plan in the words of an engine. The notes are part of the result: they say what was lost.
    exported = magicdec.export(table, "vllm-vegas", model_dir="meta-llama/Llama-3.1-8B-Instruct")
    print(exported)
    for note in exported.notes:
        print(f"note: {note}")
    exported.save(f"{folder}/start.sh")


if __name__ == "__main__":
    main(*sys.argv[1:2])
