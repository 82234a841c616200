"""calibrate pretrain: from a corpus of photographs to a weights file for --weights."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from calibrate.pretrain.corpus import read_corpus, with_designs
from calibrate.pretrain.distil import SETTINGS as DISTILLING
from calibrate.pretrain.distil import Distilling, export_teacher
from calibrate.pretrain.export import export
from calibrate.pretrain.train import Settings, Training
from calibrate.progress import Progress
from inspectord.errors import FitError

WEIGHTS = {
    "lite": "lite.safetensors",
    "standard": "standard.safetensors",
    "pdn-s": "teacher_small.safetensors",
}
DESIGNS = 32  # of each family of scenes
TELL_EVERY = 100  # steps


def pretrain(options: argparse.Namespace, progress: Progress) -> Path:
    """Train, or continue, and export; the path of the weights. Raises FitError for what can't be done."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise FitError("torch finds no CUDA device; leave --device out, or install torch with CUDA")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:  # before the hours, not after them
        options.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FitError(f"{options.out} can't be a folder, a file is there; give another --out") from error
    corpus = read_corpus(options.corpus, options.without)
    progress.note(f"{len(corpus.images)} photographs of {len(corpus.names)} classes")
    settings = _settings(options)
    corpus = with_designs(corpus, DESIGNS)
    learns = Distilling if options.network == "pdn-s" else Training
    training = learns(corpus, settings, options.out, options.device)
    if training.step:
        progress.note(f"continuing after step {training.step}")
    _run(training, settings.steps, progress)
    weights: Path = options.out / WEIGHTS[options.network]
    if isinstance(training, Training):
        export(training.averaged.backbone, corpus, weights)
    else:
        export_teacher(training.network, weights)
    return weights


def _settings(options: argparse.Namespace) -> Settings:
    kind = DISTILLING if options.network == "pdn-s" else Settings(network=options.network)
    chosen = replace(kind, steps=options.steps, seed=options.seed)
    return chosen if options.rate is None else replace(chosen, rate=options.rate)


def _run(training: Training | Distilling, steps: int, progress: Progress) -> None:
    sums: dict[str, float] = {}
    tracked = progress.track(training.run(), "training", steps - training.step)
    for number, losses in enumerate(tracked, start=1):
        sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
        if number % TELL_EVERY == 0:
            means = ", ".join(f"{name} {value / TELL_EVERY:.3f}" for name, value in sums.items())
            progress.note(f"step {training.step} of {steps}: {means}")
            sums = {}
