"""Tries the C kernels on random shapes with the address and undefined-behaviour sanitizers. See `scripts/sanitize --help`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from kernel_replay import SANITIZERS, compile_driver, random_cases, replay

BUILDS = {  # one for each path through the sources that x86-64 can run
    "native": ("-march=native",),
    "plain C, 4 floats": ("-DLANES=4",),
    "plain C, 16 floats": ("-DLANES=16", "-Wno-psabi"),
}
AT_ONCE = 150  # calls in one file


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/sanitize", description=__doc__)
    parser.add_argument("--shapes", type=int, default=1500, help="random calls for each build (1500)")
    parser.add_argument("--seed", type=int, default=0, help="of the shapes and numbers (0)")
    parser.add_argument("--compiler", default="gcc", help="gcc or clang (gcc)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, flags in BUILDS.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            driver = compile_driver([options.compiler], ["-O1", "-fopenmp", *flags, *SANITIZERS], Path(folder))
            for done in range(0, options.shapes, AT_ONCE):
                cases = list(random_cases(min(AT_ONCE, options.shapes - done), options.seed * 1_000_000 + done))
                replay([str(driver)], cases, Path(folder))
        print(f"{name}: {options.shapes} random calls, nothing found, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
