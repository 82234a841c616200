"""Made-up scenes: the same seed gives the same pictures, and a part is recognisable among its instances."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibrate.pretrain import contact_sheet, defects, scenes  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
EVERY = scenes.FAMILIES + scenes.HELD_OUT
SMALL = 48


def parts(family, count=3, instances=2, first=0, size=SMALL):
    return scenes.render(family, torch.arange(first, first + count), instances, size)


def grey(pictures):
    """True for each part (first axis) whose three channels are equal."""
    return (pictures == pictures[:, :, :1]).flatten(1).all(1)


def statistics(pictures):
    """Grey level, contrast, colour and fineness of each picture, (g, n, 6)."""
    flat = pictures.flatten(3)
    light = pictures.mean(2)
    steps = [(light.diff(dim=d)).abs().flatten(2).mean(2) for d in (-1, -2)]
    return torch.stack([*flat.mean(3).unbind(2), light.flatten(2).std(2), *steps], dim=2)


def test_training_families_and_held_out_families_are_disjoint_and_many():
    assert not set(scenes.FAMILIES) & set(scenes.HELD_OUT)
    assert len(scenes.FAMILIES) >= 12
    assert len(scenes.HELD_OUT) >= 3


@pytest.mark.parametrize("family", EVERY)
def test_pictures_are_finite_float32_within_0_to_255_and_not_empty(family):
    pictures = parts(family)
    assert pictures.shape == (3, 2, 3, SMALL, SMALL)
    assert pictures.dtype == torch.float32
    assert torch.isfinite(pictures).all()
    assert pictures.min() >= 0
    assert pictures.max() <= 255
    assert pictures.flatten(2).std(2).min() > 0.5


@pytest.mark.parametrize("family", EVERY)
def test_the_same_seed_gives_the_same_pictures_and_another_seed_another_part(family):
    assert torch.equal(parts(family), parts(family))
    assert (parts(family, 1) - parts(family, 1, first=1)).abs().mean() > 1


@pytest.mark.parametrize("family", EVERY)
def test_a_picture_depends_neither_on_the_other_parts_nor_on_the_other_instances(family):
    batch = parts(family, count=5, instances=3)
    alone = parts(family, count=1, instances=1, first=4)
    # vector and scalar code of one operation may round differently; a few pixels at hard edges may then flip
    assert (batch[4, 0] - alone[0, 0]).abs().mean() < 0.05


@pytest.mark.parametrize("family", EVERY)
def test_instances_of_a_part_differ(family):
    pictures = parts(family)
    assert (pictures[:, 0] - pictures[:, 1]).abs().flatten(1).mean(1).min() > 0.2


@pytest.mark.parametrize("family", EVERY)
def test_instances_of_a_part_are_closer_than_parts_are(family):
    seen = statistics(parts(family, count=16))
    seen = seen / seen.std(dim=(0, 1))
    within = (seen[:, 0] - seen[:, 1]).norm(dim=1).mean()
    between = (seen[:, 0] - seen[:, 0].roll(1, 0)).norm(dim=1).mean()
    assert within < 0.6 * between


def test_about_half_of_the_parts_are_grey_in_every_instance():
    share = np.mean([grey(parts(family, count=24, instances=2, size=16)).float().mean() for family in EVERY])
    assert 0.4 < share < 0.65


def test_families_of_one_seed_do_not_share_their_draws():
    greys = torch.stack([grey(parts(family, count=24, instances=1, size=16)) for family in EVERY]).float()
    assert greys.std(dim=0).min() > 0.2


def test_rendering_leaves_the_global_generators_as_they_were():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for family in EVERY:
        parts(family, count=1, size=16)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_large_and_negative_seeds_are_parts_like_any_other():
    pictures = scenes.render("cast", torch.tensor([2**62 + 1, -5, 2**31]), 1, SMALL)
    assert torch.isfinite(pictures).all()
    assert (pictures[0] - pictures[1]).abs().mean() > 1


def test_an_unknown_family_is_refused():
    with pytest.raises(KeyError):
        scenes.render("marble", torch.arange(1), 1, SMALL)


def test_the_contact_sheet_shows_every_family(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        contact_sheet, "scene_row", lambda name: shown.append(name) or torch.zeros(6, 3, 8, 8)
    )
    monkeypatch.setattr(
        contact_sheet, "defect_row", lambda name, _: shown.append(name) or torch.zeros(6, 3, 8, 8)
    )
    contact_sheet.main(["--out", str(tmp_path / "sheet.png")])
    assert set(shown) == {*EVERY, *defects.FAMILIES, *defects.HELD_OUT}
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("family", EVERY)
def test_every_tensor_is_made_on_the_device_asked_for(family):
    pictures = scenes.render(family, torch.arange(2), 2, SMALL, device="meta")  # refuses to mix with the CPU
    assert pictures.device.type == "meta"
    assert pictures.shape == (2, 2, 3, SMALL, SMALL)
