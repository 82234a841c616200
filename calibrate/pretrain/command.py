"""calibrate pretrain: from a corpus of photographs to a weights file for --weights."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calibrate.backbones.standard import state_shapes
from calibrate.backbones.weights import read_state, require
from calibrate.pretrain.checkpoint import Identity
from calibrate.pretrain.contrast import Contrast, identity_after
from calibrate.pretrain.contrast import Settings as Told
from calibrate.pretrain.corpus import Corpus, read_corpus, with_designs
from calibrate.pretrain.course import Course
from calibrate.pretrain.distil import SETTINGS as DISTILLING
from calibrate.pretrain.distil import Distilling, export_teacher
from calibrate.pretrain.export import export
from calibrate.pretrain.network import Lite, Standard
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
    _check(options)
    try:  # before the hours, not after them
        options.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FitError(f"{options.out} can't be a folder, a file is there; give another --out") from error
    start = None if options.start is None else _started(options.start)
    corpus = read_corpus(options.corpus, options.without)
    progress.note(f"{len(corpus.images)} photographs of {len(corpus.names)} classes")
    corpus = with_designs(corpus, DESIGNS)
    weights: Path = options.out / WEIGHTS[options.network]
    if options.network == "pdn-s":
        distilling = Distilling(corpus, _settings(options), options.out, options.device)
        _run(distilling, _settings(options).steps, "training", progress)
        export_teacher(distilling.network, weights)
        return weights
    backbone, identity = start or _classes(options, corpus, progress)
    if options.contrast:
        told = Told(steps=options.contrast, seed=options.seed)
        contrast = Contrast(backbone, corpus, told, identity, options.out, options.device)
        _run(contrast, options.contrast, "telling places apart", progress)
        backbone = contrast.averaged
    export(backbone, corpus, weights)
    return weights


def _check(options: argparse.Namespace) -> None:
    """Raises FitError for flags without use."""
    if options.contrast and options.network == "pdn-s":
        raise FitError("--contrast goes with --network standard or lite only; leave it out")
    if options.start is None:
        return
    if options.network != "standard":
        raise FitError(f"--start goes with --network standard, not {options.network}; leave one of them out")
    if not options.contrast:
        raise FitError("--start needs the steps to go on with: give --contrast, as in --contrast 500")
    if options.steps is not None or options.rate is not None:
        raise FitError("--steps and --rate are of the classes, which --start leaves out; leave them out too")
    if not options.start.is_file():
        raise FitError(f"--start: no weights at {options.start}; give a file of `calibrate pretrain`")
    if options.start.resolve() == (options.out / WEIGHTS["standard"]).resolve():
        raise FitError(f"--start {options.start} would be overwritten; give another --out")


def _started(path: Path) -> tuple[Standard, Identity]:
    """The backbone of --start, and what tells it from others."""
    state, digest = read_state(path)
    require(state, state_shapes(), "standard")
    backbone = Standard()
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    backbone.load_state_dict(tensors, strict=False)  # batches are not counted in the file
    return backbone, {"start": digest}


def _classes(
    options: argparse.Namespace, corpus: Corpus, progress: Progress
) -> tuple[Lite | Standard, Identity]:
    settings = _settings(options)
    training = Training(corpus, settings, options.out, options.device)
    _run(training, settings.steps, "training", progress)
    return training.averaged.backbone, identity_after(settings)


def _settings(options: argparse.Namespace) -> Settings:
    kind = DISTILLING if options.network == "pdn-s" else Settings(network=options.network)
    chosen = replace(kind, steps=options.steps or kind.steps, seed=options.seed)
    return chosen if options.rate is None else replace(chosen, rate=options.rate)


def _run(course: Course[Any] | Distilling, steps: int, what: str, progress: Progress) -> None:
    if course.step:
        progress.note(f"{what}: continuing after step {course.step}")
    sums: dict[str, float] = {}
    tracked = progress.track(course.run(), what, steps - course.step)
    for number, losses in enumerate(tracked, start=1):
        sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
        if number % TELL_EVERY == 0:
            means = ", ".join(f"{name} {value / TELL_EVERY:.3f}" for name, value in sums.items())
            progress.note(f"{what}, step {course.step} of {steps}: {means}")
            sums = {}
