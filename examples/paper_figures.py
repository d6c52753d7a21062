"""The planning figures of the MagicDec paper for another model: where does speculation pay for Qwen2.5-7B on four H100?

    python examples/paper_figures.py [FOLDER]

Writes PNG and SVG figures and one HTML page. Needs the extra `plot`. Change the names below to your own model and machine:
`magicdec.models()` and `magicdec.profiles()` list what is known, and a path to a config.json or profile works as well.
"""

import sys

import magicdec

MODEL, HARDWARE, NUM_GPUS = "qwen2.5-7b", "h100-sxm", 4


def main(folder: str = "paper-figures") -> None:
    """Draw the figures, then print the numbers behind the most important one."""
    report = magicdec.report(
        folder,
        model=MODEL,
        hardware=HARDWARE,
        num_gpus=NUM_GPUS,
        batch_sizes=(1, 8, 32, 128),
        context_lens=(1000, 8000, 32000),
        kv_budget=512,
    )
    print(f"{report.page} and {len(report.files) - 1} figures")

    # Axes are arrays: batch sizes down, contexts across. Without a gamma, each point gets its best one.
    grid = magicdec.predict(
        MODEL, HARDWARE, num_gpus=NUM_GPUS, batch_size=[[1], [8], [32], [128]], context_len=[1000, 8000, 32000], kv_budget=512
    )
    print("\nspeedup of self-speculation (rows: batch 1, 8, 32, 128; columns: context 1k, 8k, 32k)")
    print(grid.speedup.round(2))
    print("\nbest gamma")
    print(grid.gamma.astype(int))

    # Qwen2.5-7B has no measured acceptance curve, so one is borrowed. The interval says what that is worth.
    print(f"\nlast point: {grid.points[-1].speedup_low:.2f} to {grid.points[-1].speedup_high:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
