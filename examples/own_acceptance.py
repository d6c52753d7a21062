"""Measuring your own acceptance, and planning with it.

    python examples/own_acceptance.py [CHECKPOINT]

Without an argument it uses the shipped reference model and text of Python's standard library, and takes well under a minute on
two cores. Needs the extra `run`. For your own model, pass its checkpoint directory, and a file of real text as `text=`.
"""

import sys

import magicdec

QUICK = {"rows": 2, "gamma": 3, "max_new_tokens": 24}  # more rows and tokens make the standard errors smaller


def main(checkpoint: str = "reference", context_len: int = 2048, **effort: int) -> None:
    """Measure two budgets at one context, then predict with the rates found."""
    # 1. The model continues real text while it drafts for itself with few KV entries; accepted draft tokens are counted.
    curve = magicdec.acceptance(checkpoint, kv_budgets=(64, 256), context_lens=context_len, **(effort or QUICK))
    print(curve, end="\n\n")

    # 2. The rate decides whether a draft pays, and with which gamma. Given a rate, no curve is looked up.
    for point in curve.points:
        prediction = magicdec.predict(
            checkpoint,
            "l4",
            batch_size=256,
            context_len=context_len,
            kv_budget=point.kv_budget,
            acceptance_rate=point.acceptance_rate,
        )
        print(prediction.headline)

    # 3. Saved beside the checkpoint, the curve is used by every later prediction and plan for that directory:
    #        curve.save(f"{checkpoint}/acceptance.yaml")
    #        magicdec.plan(checkpoint, "l4", batch_size=64, context_len=16000)


if __name__ == "__main__":
    main(*sys.argv[1:2])
