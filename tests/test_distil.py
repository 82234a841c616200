"""EfficientAD-S's bundled teacher: what it learns from, that it learns, and that the package holds one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibrate.backbones.lite import JOINED  # noqa: E402
from calibrate.cli import main  # noqa: E402
from calibrate.efficientad.networks import BORDER, STRIDE, TEACHER, pdn_small  # noqa: E402
from calibrate.efficientad.teachers import open_teacher  # noqa: E402
from calibrate.pretrain import distil  # noqa: E402
from calibrate.pretrain.corpus import read_corpus  # noqa: E402
from calibrate.pretrain.distil import SETTINGS, Described, Distilling, export_teacher  # noqa: E402
from calibrate.pretrain.scenes import render  # noqa: E402
from inspectord.errors import FitError  # noqa: E402

SIZE = 64
FEW = replace(SETTINGS, steps=4, images=2, size=SIZE)


@pytest.fixture
def described(one_torch_thread):
    found = Described(SIZE, threads=1)
    found.normalise(iter([scenes()]))
    return found


def scenes():
    return render("cast", torch.arange(4), 1, SIZE)[:, 0]


def test_descriptions_are_the_backbones_normalised_and_as_far_apart_as_its_own(described):
    told = described(scenes())
    side = SIZE // STRIDE - 2 * BORDER
    assert told.shape == (4, TEACHER, side, side)
    plain = (described._features(scenes()) - described._mean) / described._spread
    plain = plain[..., BORDER:-BORDER, BORDER:-BORDER]
    apart = (told[0] - told[1]).square().mean(0)
    assert torch.allclose(apart, (plain[0] - plain[1]).square().mean(0), rtol=1e-4)
    assert plain.shape[1] == sum(JOINED)
    assert 0.3 < float(plain.square().mean()) < 3


@pytest.mark.parametrize("place", [(20, 44), (32, 32), (44, 24)])
def test_a_spot_is_described_where_the_network_sees_it(described, place):
    """Else the network would have to learn a shift, and the map would lie beside the part."""
    plain = torch.full((1, 3, SIZE, SIZE), 128.0)
    spot = plain.clone()
    spot[..., place[0] - 4 : place[0] + 4, place[1] - 4 : place[1] + 4] = 255.0
    torch.manual_seed(0)
    network = pdn_small(TEACHER)
    with torch.no_grad():
        centres = [centre((each(spot) - each(plain)).square().sum(1)[0]) for each in (described, network)]
    assert np.abs(np.subtract(*centres)).max() < 1.0


def centre(energy):
    cells = np.indices(energy.shape).reshape(2, -1)
    weights = energy.numpy().ravel()
    return cells @ weights / weights.sum()


def test_it_learns_and_a_stopped_run_ends_as_an_uninterrupted_one(
    folder, tmp_path, monkeypatch, one_torch_thread
):
    monkeypatch.setattr(distil, "CHECKPOINT_EVERY", 2)
    corpus = read_corpus(folder)
    whole = Distilling(corpus, FEW, tmp_path / "whole")
    errors = [losses["error"] for losses in whole.run()]
    assert len(errors) == 4
    assert errors[-1] < errors[0]
    stopped = Distilling(corpus, FEW, tmp_path / "parts").run()
    for _ in range(3):
        next(stopped)
    stopped.close()
    last = Distilling(corpus, FEW, tmp_path / "parts")
    assert last.step == 2
    list(last.run())
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, last.network.state_dict()[name])


def test_another_corpus_or_seed_does_not_take_up_the_checkpoint(folder, tmp_path, one_torch_thread):
    corpus = read_corpus(folder)
    list(Distilling(corpus, replace(FEW, steps=1), tmp_path).run())
    with pytest.raises(FitError, match="another training's: seed 0, now 1"):
        Distilling(corpus, replace(FEW, steps=1, seed=1), tmp_path)


def test_the_weights_file_is_read_as_a_teacher(tmp_path):
    torch.manual_seed(0)
    network = pdn_small(TEACHER)
    export_teacher(network, tmp_path / "teacher_small.safetensors")
    teacher = open_teacher("efficientad-s", tmp_path / "teacher_small.safetensors", 1)
    images = scenes()
    with torch.no_grad():
        wanted, found = network(images), teacher(images)
    assert float((found - wanted).abs().max()) < 2e-3 * float(wanted.abs().max())


def test_the_command_makes_a_teacher(folder, tmp_path, capsys, monkeypatch):
    from calibrate.pretrain import command

    monkeypatch.setattr(command, "DISTILLING", FEW)
    monkeypatch.setattr(command, "DESIGNS", 1)
    arguments = ["pretrain", folder, "--out", tmp_path / "run", "--network", "pdn-s", "--steps", 2]
    assert main([*map(str, arguments), "--threads", "1"]) == 0
    weights = tmp_path / "run" / "teacher_small.safetensors"
    assert capsys.readouterr().out == f"weights: {weights}\n"
    open_teacher("efficientad-s", weights, 1)


def test_the_package_has_a_teacher_that_describes_as_the_backbone_does(described):
    """On scenes of families that it never saw; 1 would be the error of knowing nothing."""
    teacher = open_teacher("efficientad-s", None, 1)
    unseen = torch.cat([render(family, torch.arange(2), 1, SIZE)[:, 0] for family in ("knitted", "wood")])
    shared = Described(SIZE, threads=1)
    shared.normalise(iter([unseen]))
    with torch.no_grad():
        found = teacher(unseen)
    flat = found.transpose(0, 1).flatten(1).numpy()
    told = shared(unseen).transpose(0, 1).flatten(1).numpy()
    correlations = [np.corrcoef(one, other)[0, 1] for one, other in zip(flat, told, strict=True)]
    assert np.median(correlations) > 0.5
