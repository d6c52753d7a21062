"""A process that judges cases one after another, and is killed and replaced when it hangs or dies."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from .cases import Case, make_case
from .judge import LIMIT_S, MEMORY_BYTES, Verdict

Job = tuple[str, int]  # kind and number
START_S = 180.0  # imports and seeds, on a busy machine
CASES = 20_000  # after so many a fresh process takes its place


class Worker:
    """One process and its folder."""

    def __init__(self, seed: int):
        self.seed, self.job, self.case, self.deadline, self.given = seed, ("", 0), Case("", 0), 0.0, 0
        self.folder = Path(tempfile.mkdtemp(prefix="magicdec-fuzz-"))
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.folder, self.seed), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        if self.given == CASES:
            self._replace()
        self.job, self.deadline, self.given = job, time.monotonic() + START_S, self.given + 1
        self.connection.send(job)

    def take(self) -> Verdict | None:
        """The verdict, or None while there is none; a process that hangs or died is replaced."""
        try:
            while self.connection.poll():
                received = self.connection.recv()
                if isinstance(received, Verdict):
                    return received
                if isinstance(received, str):
                    raise RuntimeError(f"the fuzzer itself failed on {self.job}:\n{received}")
                self.case, self.deadline = received, time.monotonic() + 4 * LIMIT_S
            late = time.monotonic() > self.deadline
        except (EOFError, OSError):
            self.process.join(5)
            died = self.process.exitcode
            self._replace()
            name = signal.Signals(-died).name if died is not None and died < 0 else str(died)
            return Verdict("died", (f"died: {name}",), 0.0, 0)
        if late:
            self._replace()
            return Verdict("hang", ("hang: in native code, or waiting",), LIMIT_S, 0)
        return None

    def _replace(self) -> None:
        self.process.kill()
        self.close()
        self.given = 0
        self.folder = Path(tempfile.mkdtemp(prefix="magicdec-fuzz-"))
        self._start()

    def close(self) -> None:
        """End the process, which may finish its case first."""
        self.connection.close()
        self.process.join(2 * LIMIT_S)
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def judged(jobs: Iterator[Job], seed: int, workers: int) -> Iterator[tuple[Case, Verdict]]:
    """Each case and the verdict on it. A case that hangs is tried again: it may have been the first to load a library."""
    pool = [Worker(seed) for _ in range(workers)]
    again: set[Job] = set()
    try:
        busy = [worker for worker in pool if _give_next(worker, jobs)]
        while busy:
            wait([worker.connection for worker in busy], timeout=0.2)
            for worker in list(busy):
                verdict = worker.take()
                if verdict is None:
                    continue
                if verdict.outcome == "hang" and worker.job not in again:
                    again.add(worker.job)
                    worker.give(worker.job)
                    continue
                yield worker.case, verdict
                if not _give_next(worker, jobs):
                    busy.remove(worker)
    finally:
        for worker in pool:
            worker.close()


def _give_next(worker: Worker, jobs: Iterator[Job]) -> bool:
    job = next(jobs, None)
    if job is not None:
        worker.give(job)
    return job is not None


def _serve(connection: Connection, folder: Path, seed: int) -> None:
    """The process: receives jobs, sends the case when it begins, then its verdict."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        _judge_all(connection, folder, seed)
    except EOFError:  # no more jobs
        return
    except Exception:
        connection.send(traceback.format_exc())


def _judge_all(connection: Connection, folder: Path, seed: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    from .judge import judge, prepare, skip_constant_work

    prepare(folder)
    place = folder / "tiny"
    os.chdir(place)  # seeds are made where `../tiny` is the checkpoint
    skip_constant_work()
    warm: set[str] = set()
    while True:
        kind, number = connection.recv()
        os.chdir(place)
        if kind not in warm:  # imports are not the case's own time
            for valid in range(3):
                case = make_case(kind, seed, valid, changed=False)
                judge(case, folder, limit_s=START_S / 3)
                os.chdir(place)
            warm.add(kind)
        case = make_case(kind, seed, number)
        _limit_memory()
        connection.send(case)
        connection.send(judge(case, folder))


def _limit_memory() -> None:
    """Allow so much more than the process has, so that a case cannot take the machine's memory."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * MEMORY_BYTES // 2, hard))
