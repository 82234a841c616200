"""One target under atheris: `python -m tests.fuzz.worker TARGET --inputs N --seed S --out FOLDER`.

Exceptions are counted by where they came from, with the first input of each kept in FOLDER, and the run goes
on. A hang, a native crash or memory beyond the bound ends the process; libFuzzer then leaves the input there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris
import cv2

with atheris.instrument_imports(include=["inspectord"]):
    from inspectord.sources import files
    from tests.fuzz.targets import FEWER_PIXELS, Target, targets

ADDRESS_SPACE = (
    4 << 30
)  # bytes; a decoder that asks for more gets none, where RSS alone would notice too late
RESIDENT_MB = 1024
HANG_S = 10
LONGEST = 100_000  # bytes of an input
SAVE_EVERY = 1000


class Tally:
    """Runs one input after the other and keeps count, also on disk: the process may end at any input."""

    def __init__(self, name: str, target: Target, out: Path, inputs: int) -> None:
        self._name, self._target, self._out, self._inputs = name, target, out, inputs
        self._done, self._slowest_s = 0, 0.0
        self._crashes: dict[str, int] = {}

    def run(self, data: bytes) -> None:
        began_s = time.monotonic()
        try:
            self._target.run(data)
        except Exception as error:
            self._note(error, data)
        self._slowest_s = max(self._slowest_s, time.monotonic() - began_s)
        self._done += 1
        if self._done % SAVE_EVERY == 0 or self._done >= self._inputs:
            self._save()

    def _note(self, error: Exception, data: bytes) -> None:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}"
        if where not in self._crashes:
            (self._out / f"{self._name}-{len(self._crashes)}.bin").write_bytes(data)
        self._crashes[where] = self._crashes.get(where, 0) + 1

    def _save(self) -> None:
        table = {"inputs": self._done, "slowest_s": self._slowest_s, "crashes": self._crashes}
        unfinished = self._out / f"{self._name}.tmp"
        unfinished.write_text(json.dumps(table))
        unfinished.replace(self._out / f"{self._name}.json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    for name in ("--inputs", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fuzz-") as folder:
        target = targets(Path(folder))[options.target]
        corpus = Path(folder) / "seeds"
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        _fuzz(options, target, corpus)


def _fuzz(options: argparse.Namespace, target: Target, corpus: Path) -> None:
    files.MOST_PIXELS = FEWER_PIXELS
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there of each input

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        """libFuzzer's own changes keep no form; ours know no coverage: take turns."""
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return target.mutate(data, rng)[:most]

    tally = Tally(options.target, target, options.out, options.inputs)
    flags = {
        "atheris_runs": options.inputs,
        "seed": options.seed,
        "timeout": HANG_S,
        "rss_limit_mb": RESIDENT_MB,
        "max_len": LONGEST,
        "len_control": 0,  # ours are whole from the start
        "artifact_prefix": f"{options.out}/{options.target}-",
    }
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in flags.items()), str(corpus)]
    atheris.Setup(arguments, tally.run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
