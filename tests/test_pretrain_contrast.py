"""A last part of pre-training: what is the same place, that it is learnt, that a kill changes nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pre-training needs torch")

from calibrate.pretrain import contrast, course, nuisance  # noqa: E402
from calibrate.pretrain.contrast import (  # noqa: E402
    CHECKPOINT,
    STRIDES,
    Contrast,
    Settings,
    Views,
    same_places,
    told_apart,
)
from calibrate.pretrain.corpus import Corpus, read_corpus  # noqa: E402
from calibrate.pretrain.network import Standard  # noqa: E402
from inspectord.errors import FitError  # noqa: E402
from tests.test_boundaries import ROOT  # noqa: E402

SMALL = Settings(steps=6, crops=4, cells=5, size=48)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_torch_thread")

KILLED = """
import signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from calibrate.pretrain import course
from calibrate.pretrain.contrast import Contrast, Settings
from calibrate.pretrain.corpus import read_corpus
from calibrate.pretrain.network import Standard
course.CHECKPOINT_EVERY = 2
torch.manual_seed(1)
settings = Settings(steps=6, crops=4, cells=5, size=48)
run = Contrast(Standard(), read_corpus(Path(sys.argv[1])), settings, {}, Path(sys.argv[2]))
for losses in run.run():
    if run.step == 3:
        print("three steps done", flush=True)
        signal.pause()
"""


def start():
    torch.manual_seed(1)
    return Standard()


def numbered(side=400):
    """One photograph in which every pixel's colour is its place: red the row, green the column."""
    row, column = np.indices((side, side)) * 255 // side
    return np.stack([row, column, np.full_like(row, 128)], -1).astype(np.uint8)


def test_cells_that_count_as_the_same_place_show_the_same_place(monkeypatch):
    """Without light or jitter the cells of both views are equal; without the shift they would not be."""
    monkeypatch.setattr(contrast, "JITTER_PX", 0)
    monkeypatch.setattr(nuisance, "vary", lambda images, generator, strength: images)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 300, 3)).astype(np.uint8)
    corpus = Corpus([noise], np.zeros(1, np.int64), ("noise/one",))
    ways = set()
    for views, moved, step in Views(corpus, replace(SMALL, steps=12), 0, CPU):
        ways.add(tuple(moved.tolist()))
        for stride in STRIDES:
            cells = torch.nn.functional.avg_pool2d(views, stride)
            first, second = cells.chunk(2)
            by = (moved * (STRIDES[-1] // stride)).tolist()
            here, there = same_places(first, second, by, SMALL.cells, np.random.default_rng(step))
            assert here.shape == (SMALL.crops * SMALL.cells, 3)
            torch.testing.assert_close(here, there)
            if any(by):
                here, there = same_places(first, second, [0, 0], SMALL.cells, np.random.default_rng(step))
                assert (here - there).abs().max() > 1
    assert len(ways) > 6


@pytest.fixture
def views(corpus, monkeypatch):
    """Both views of a first step, moved by at most so many cells and pixels."""

    def make(moved, jitter_px, light):
        monkeypatch.setattr(contrast, "MOVED", moved)
        monkeypatch.setattr(contrast, "JITTER_PX", jitter_px)
        found, *_ = next(iter(Views(corpus, replace(SMALL, light=light), 0, CPU)))
        assert found.shape == (2 * SMALL.crops, 3, SMALL.size, SMALL.size)
        return found.chunk(2)

    return make


def test_views_differ_in_light(views):
    first, second = views(0, 0, 0.0)
    assert torch.equal(first, second)
    first, second = views(0, 0, 0.5)
    assert (first - second).abs().mean() > 1


def test_views_are_moved_by_up_to_so_many_pixels_besides(views):
    first, second = views(0, 2, 0.0)
    inner = slice(2, -2)
    agree = {
        (y, x)
        for y in range(-2, 3)
        for x in range(-2, 3)
        if torch.equal(first.roll((-y, -x), (2, 3))[..., inner, inner], second[..., inner, inner])
    }
    assert len(agree) == 1
    assert agree != {(0, 0)}


def test_each_step_draws_by_itself(corpus):
    """So a run that is continued sees what it would have seen."""
    late, early = (next(iter(Views(corpus, SMALL, first, CPU))) for first in (3, 0))
    again = list(Views(corpus, SMALL, 0, CPU))[3]
    assert torch.equal(late[0], again[0])
    assert late[2] == again[2] == 3
    assert not torch.equal(late[0], early[0])


def test_the_loss_is_that_of_choosing_among_all_places_both_ways():
    generator = torch.Generator().manual_seed(0)
    here, there = (torch.randn(7, 5, generator=generator) for _ in range(2))
    cosine = torch.nn.functional.cosine_similarity(here[:, None], there[None], dim=-1) / 0.1
    chosen = cosine.diagonal()
    expected = 0.5 * ((cosine.logsumexp(1) - chosen) + (cosine.logsumexp(0) - chosen)).mean()
    assert told_apart(here, there, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)
    assert told_apart(here, here, 0.1) < told_apart(here, there, 0.1)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not_and_leaves_its_start_alone(
    folder, corpus, tmp_path
):
    begun = start()
    before = {name: value.clone() for name, value in begun.state_dict().items()}
    whole = Contrast(begun, corpus, SMALL, {}, tmp_path / "whole")
    every_loss = list(whole.run())
    assert list(every_loss[0]) == ["stage1", "stage2"]
    assert all(torch.equal(value, before[name]) for name, value in begun.state_dict().items())
    moved = [
        name for name, value in whole.averaged.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert {"conv1.weight", "layer2.1.conv2.weight", "bn1.running_mean"} <= set(moved)
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "three steps done\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    continued = Contrast(start(), corpus, SMALL, {}, tmp_path)
    assert continued.step == 2
    assert list(continued.run()) == every_loss[2:]
    expected = whole.averaged.state_dict()
    for name, value in continued.averaged.state_dict().items():
        assert torch.equal(value, expected[name]), name
    told = f"{CHECKPOINT} is another training's: start none, now other; .*the classes are kept"
    with pytest.raises(FitError, match=told):
        Contrast(start(), corpus, SMALL, {"start": "other"}, tmp_path)
    fewer = read_corpus(folder, ("bags/red",))
    with pytest.raises(FitError, match="images of bags/red 4, now none"):
        Contrast(start(), fewer, SMALL, {}, tmp_path)


def test_a_run_from_broken_weights_ends_at_the_step_and_says_what_helps(corpus, tmp_path):
    """Its rate can't be chosen, so a smaller one is no advice."""
    broken = start()
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.inf)
    with pytest.raises(FitError, match=r"not finite at step 0; give other weights to --start, or leave"):
        list(Contrast(broken, corpus, SMALL, {}, tmp_path).run())
    assert not list(tmp_path.iterdir())


def test_places_are_learnt(tmp_path, monkeypatch):
    """Of one picture in which every place looks different; by chance the loss is log 64 = 4.2."""
    monkeypatch.setattr(course, "WARM_UP", 5)
    corpus = Corpus([numbered()], np.zeros(1, np.int64), ("numbers/one",))
    settings = Settings(steps=30, crops=8, cells=8, size=48, light=0.0, rate=5e-3)
    losses = [sum(each.values()) / 2 for each in Contrast(start(), corpus, settings, {}, tmp_path).run()]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
