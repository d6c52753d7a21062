"""`scripts/fuzz`: judges many cases, keeps those that break a rule, and sums up."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate, count, islice
from pathlib import Path
from random import Random

from .cases import KINDS, SHARES, Case
from .judge import Verdict
from .worker import Job, judged

EXAMPLES = 3  # kept of each kind of finding
NEWS_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="how many  [default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="T", help="stop after so long")
    parser.add_argument("--seed", type=int, default=0, help="others give other inputs  [default: %(default)s]")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only inputs of this kind; repeatable")
    parser.add_argument("--case", type=int, metavar="NUMBER", help="only this one of its --kind")
    parser.add_argument("--workers", type=int, default=1, help="processes  [default: %(default)s]")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="DIR", help="where they go")
    given = parser.parse_args()
    kinds = tuple(given.kind or KINDS)
    jobs = iter([(kinds[0], given.case)]) if given.case is not None else islice(_jobs(kinds, given.seed), given.inputs)
    total = 1 if given.case is not None else given.inputs
    stop_at = time.monotonic() + given.seconds
    summary = Summary(total, given.seed, given.findings)
    for case, verdict in judged(_until(jobs, stop_at), given.seed, given.workers):
        summary.add(case, verdict)
    summary.finish()
    return 1 if summary.findings else 0


def _jobs(kinds: tuple[str, ...], seed: int) -> Iterator[Job]:
    """Kinds in turns by their shares, each numbered from 0."""
    random, weights = Random(seed), list(accumulate(SHARES[kind] for kind in kinds))
    numbers = {kind: count() for kind in kinds}
    while True:
        (kind,) = random.choices(kinds, cum_weights=weights)
        yield kind, next(numbers[kind])


def _until(jobs: Iterator[Job], stop_at: float) -> Iterator[Job]:
    for job in jobs:
        if time.monotonic() > stop_at:
            return
        yield job


class Summary:
    """Counts, and the findings by their kind."""

    def __init__(self, total: int, seed: int, folder: Path):
        self.total, self.seed, self.folder = total, seed, folder
        self.start = self.news = time.monotonic()
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, float] = defaultdict(float)
        self.findings: Counter[str] = Counter()
        self.slowest, self.largest = (0.0, ""), (0, "")

    def add(self, case: Case, verdict: Verdict) -> None:
        kind, number = case.kind, case.number
        self.outcomes[kind][verdict.outcome] += 1
        self.seconds[kind] += verdict.seconds
        self.slowest = max(self.slowest, (verdict.seconds, f"{kind} {number}"))
        self.largest = max(self.largest, (verdict.bytes, f"{kind} {number}"))
        for problem in verdict.problems:
            name = f"{kind}: {_signature(problem)}"
            self.findings[name] += 1
            if self.findings[name] == 1:
                print(f"FINDING {kind} {number}: {problem}", flush=True)
            if self.findings[name] <= EXAMPLES:
                self._keep(case, problem)
        if time.monotonic() - self.news > NEWS_S:
            self.news = time.monotonic()
            done = sum(counts.total() for counts in self.outcomes.values())
            rate = done / (self.news - self.start)
            kinds, all_found = len(self.findings), self.findings.total()
            print(f"{done:,} of {self.total:,} inputs, {rate:.0f} a second, {all_found:,} findings of {kinds} kinds", flush=True)

    def _keep(self, case: Case, problem: str) -> None:
        """The files of the case and the command, in a folder of its own."""
        folder = self.folder / f"{case.kind.replace(' ', '-')}-{self.seed}-{case.number}"
        for name, text in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text)
        again = f"scripts/fuzz --seed {self.seed} --kind '{case.kind}' --case {case.number}"
        note = f"# {problem}\n# again: {again}\n{case.command}\n"
        (folder / "finding.txt").write_text(note, encoding="utf-8", errors="backslashreplace")

    def finish(self) -> None:
        done = sum(counts.total() for counts in self.outcomes.values())
        print()
        for kind, counts in sorted(self.outcomes.items()):
            each_ms = 1e3 * self.seconds[kind] / counts.total()
            print(f"{kind:13} {counts.total():8,} of {each_ms:4.0f} ms  {_counts(counts)}")
        for name, number in self.findings.most_common():
            print(f"finding {number:6,} x {name}")
        codes = sum(self.outcomes.values(), Counter[str]())
        print(
            f"{done:,} inputs in {time.monotonic() - self.start:.0f} s (seed {self.seed}): {_counts(codes)}; "
            f"slowest {self.slowest[0]:.2f} s ({self.slowest[1]}), most memory {self.largest[0] / 2**20:.0f} MiB "
            f"({self.largest[1]}), findings: {self.findings.total():,} of {len(self.findings)} kinds"
        )


def _counts(counts: Counter[str]) -> str:
    names = {"refused": "refused", "done": "done"}
    return ", ".join(f"{names.get(name, f'exit {name}' if name.isdigit() else name)} {n:,}" for name, n in sorted(counts.items()))


def _signature(problem: str) -> str:
    """What findings of one kind have in common."""
    kept = problem.split(": ", 2)[:2]
    return re.sub(r"\d+(\.\d+)?", "N", ": ".join(kept))[:120]


if __name__ == "__main__":
    sys.exit(main())
