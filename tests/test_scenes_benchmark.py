"""Good frames of one made-up design: reproducible, and the parts lie as they were asked to."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks import scenes
from calibrate.pretrain.scenes import FAMILIES, HELD_OUT, render


def drawn(folder, *more):
    assert scenes.main(["moulded", str(folder), "--design", "1007", "--frames", "5", *more]) == 0
    return np.array([cv2.imread(str(path)) for path in sorted((folder / "train/good").iterdir())], float)


def spread(frames):
    """How much a pixel differs from frame to frame."""
    return frames.std(axis=0).mean()


def test_parts_lie_alike_or_at_any_angle(tmp_path, capsys):
    alike, anyhow = drawn(tmp_path / "alike", "--lie", "alike"), drawn(tmp_path / "any", "--lie", "any")
    assert alike.shape == anyhow.shape == (5, 256, 256, 3)
    assert drawn(tmp_path / "small", "--size", "64").shape == (5, 64, 64, 3)
    assert spread(anyhow) > 1.3 * spread(alike)
    assert f"next: python -m benchmarks.struck {tmp_path / 'any'} OUT" in capsys.readouterr().out


def test_what_has_no_place_can_not_lie_anyhow(tmp_path, capsys):
    with pytest.raises(SystemExit):
        scenes.main(["wood", str(tmp_path / "a"), "--lie", "any"])
    assert "--lie: wood has no place of its own; leave it out" in capsys.readouterr().err


def test_the_families_that_lie_are_those_with_a_place():
    for family in (*FAMILIES, *HELD_OUT):
        any_, alike = (render(family, torch.tensor([7]), 3, 32, free=free) for free in scenes.FREE.values())
        assert torch.equal(any_, alike) == (family not in scenes.LYING), family


def test_the_same_command_gives_the_same_frames_and_nothing_is_overwritten(tmp_path, capsys):
    assert np.array_equal(drawn(tmp_path / "a"), drawn(tmp_path / "b"))
    assert scenes.main(["wood", str(tmp_path / "a")]) == 65
    assert "exists; give another folder" in capsys.readouterr().err
