"""A cell of benchmarks.accuracy: one configuration on one data set with one seed, by the user's commands."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._accuracy_data import DataSet, folder_to_evaluate
from benchmarks._accuracy_random import random_network, with_random_weights
from benchmarks._common import ROOT, Measured, Words, attempted, scratch, versions
from calibrate import backbones, flags
from calibrate.chosen import fit_options
from calibrate.evaluation import GOOD
from calibrate.options import ADAPTED, MODELS, TRAINED
from inspectord.errors import FitError, SettingsError
from inspectord.recipe import file_hash

Cell = dict[str, Any]
OURS = ("--product", "--recipes", "--seed", "--no-activate")  # the benchmark gives these itself
SIZES = ("--letterbox", "--resize", "--tile", "--grid")  # one of them, and the size rule stays out
PRODUCT, VERSION = "measured", "0001"


@dataclass(frozen=True)
class Configuration:
    """A name and options of `calibrate fit`."""

    name: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """From NAME=FIT OPTIONS, as in 'fine=--model padim --tile 128'. Raises SettingsError."""
        name, equals, options = text.partition("=")
        try:
            words = tuple(shlex.split(options))
        except ValueError as error:
            raise SettingsError(f"--config {text!r} can't be read: {error}; close every quote") from error
        if not name or not equals:
            raise SettingsError(
                f"--config {text!r} is not NAME=FIT OPTIONS; nothing behind = means the default"
            )
        if taken := [word for word in words if word.partition("=")[0] in OURS]:
            raise SettingsError(
                f"--config {name} gives {', '.join(taken)}, which the benchmark gives; leave it out"
            )
        random_network(words)  # raises before anything is measured
        return cls(name, words)

    def on(self, data: DataSet) -> tuple[str, ...]:
        """Its words, behind those of the size rule unless it decides on sizes itself."""
        decides = any(word.partition("=")[0] in SIZES for word in self.words)
        return self.words if decides else (*data.options, *self.words)


def default_configurations() -> list[Configuration]:
    """`calibrate fit` as it ships, then every model kind with every backbone that needs no file, and the
    trained kind that takes minutes; the other trained ones take days on a CPU.

    A combination that asks for nothing but the defaults is not measured twice.
    """
    parser = argparse.ArgumentParser()
    flags.add_fit(parser)

    def meant(words: tuple[str, ...]) -> object:
        return fit_options(parser.parse_args(["good", "--product", PRODUCT, *words]))

    backbone_names = shipped_backbones()
    kinds = [kind for kind in MODELS if kind not in TRAINED]
    pairs: list[tuple[str, ...]]
    pairs = [("--model", kind, "--backbone", name) for kind in kinds for name in backbone_names]
    pairs += [("--model", kind) for kind in ("efficientad-lite", *ADAPTED.values())]
    others = [words for words in pairs if meant(words) != meant(())]
    named = [Configuration(" ".join(words[1::2]), words) for words in others]
    return [Configuration("default", ()), *named]


def shipped_backbones() -> list[str]:
    """Names that open without --weights; of two names for one backbone the first."""
    found: dict[str, str] = {}
    for name in backbones.NAMES:
        try:
            found.setdefault(backbones.open_backbone(name, None, None).digest, name)
        except FitError:
            continue
    return list(found.values())


def code_digest() -> str:
    """SHA-256 over both packages' files, weights included, and what they run on: figures belong to these."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for package in ("calibrate", "inspectord"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def identity(data: DataSet, configuration: Configuration, seed: int) -> Cell:
    """What decides a cell, code aside; two cells with the same are the same measurement."""
    options = list(configuration.on(data))
    files = _files_digest(data.digest, options)
    return {"folder": str(data.folder), "files": files, "options": options, "seed": seed}


def _files_digest(of_data: str, options: list[str]) -> str:
    """The data's digest; where options name files, as `--weights FILE` does, one over these files as well."""
    words = [part for word in options for part in (word, word.partition("=")[2])]
    words += [f"{word.removesuffix('.xml')}.bin" for word in words if word.endswith(".xml")]
    named = [word for word in words if os.path.isfile(word)]
    lines = [f"{word} {file_hash(Path(word))}\n" for word in named]
    return hashlib.sha256("".join([of_data, *lines]).encode()).hexdigest() if lines else of_data


class StepError(Exception):
    """A command of a cell failed: which, and its last word."""


def measure(data: DataSet, configuration: Configuration, seed: int, say: Callable[[str], None]) -> Cell:
    """Fit, evaluate and time; what fails is told under "failed", and nothing is raised."""
    cell = identity(data, configuration, seed) | {
        "data": data.name,
        "configuration": configuration.name,
        "code": code_digest(),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "failed": None,
    }
    with scratch() as work:
        try:
            return cell | _steps(data, cell, work, say)
        except StepError as error:
            return cell | {"failed": str(error)}


def _steps(data: DataSet, cell: Cell, work: Path, say: Callable[[str], None]) -> Cell:
    good, recipes = data.folder / "train" / GOOD, work / "recipes"
    options = with_random_weights(cell["options"], cell["seed"], work)
    ours: Words = ["--product", PRODUCT, "--recipes", recipes, "--seed", str(cell["seed"]), "--no-activate"]
    fitted = _step("fit", work, say, "calibrate", "fit", good, *options, *ours)
    folder, scores = folder_to_evaluate(data, work / "data"), work / "scores.json"
    recipe = recipes / PRODUCT / VERSION
    took = _step("evaluate", work, say, "calibrate", "evaluate", recipe, folder, "--json", scores)
    _step("latency", work, say, "benchmarks._latency", recipe, work / "latency.json")
    evaluation = json.loads(scores.read_text(encoding="utf-8"))
    images = [
        [each[key] for key in ("file", "kind", "score", "verdict")] for each in evaluation.pop("images")
    ]
    return {
        "fit": asdict(fitted),
        "evaluate": asdict(took),
        **json.loads((work / "latency.json").read_text(encoding="utf-8")),
        "evaluation": evaluation,
        "images": images,
    }


def _step(name: str, work: Path, say: Callable[[str], None], module: str, *words: str | Path) -> Measured:
    say(name)
    path = work / f"{name}.log"
    with path.open("w", encoding="utf-8") as log:
        code, took = attempted([sys.executable, "-m", module, *words], log)
    if code != 0:
        raise StepError(f"{name}: {last_word(code, path.read_text(encoding='utf-8', errors='replace'))}")
    return took


def last_word(code: int, log: str) -> str:
    """The command's own line on what failed, else its last line, else the signal that ended it."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; was there enough memory?"
    lines = [line for line in log.splitlines() if line.strip()] or [f"exit code {code} without a word"]
    own = [line.removeprefix("calibrate: ") for line in lines if line.startswith("calibrate: ")]
    return (own or lines)[-1].strip()
