"""What pre-training reads, and what a step of it sees."""

from __future__ import annotations

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pre-training needs torch")

from calibrate.pretrain import corpus as corpora  # noqa: E402
from calibrate.pretrain import scenes, train  # noqa: E402
from calibrate.pretrain.corpus import Corpus, read_corpus, with_designs  # noqa: E402
from calibrate.pretrain.train import NO_SINGLE, Draws, Settings  # noqa: E402
from inspectord.errors import FitError  # noqa: E402
from tests.helpers_corpus import PHOTOGRAPHS  # noqa: E402

SMALL = Settings(steps=6, images=8, size=32)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


# --- the corpus ---


def test_a_corpus_is_read_in_the_order_of_its_names(corpus):
    assert corpus.names == tuple(PHOTOGRAPHS)
    assert np.bincount(corpus.classes).tolist() == list(PHOTOGRAPHS.values())
    assert [image.shape for image in corpus.images[:2]] == [(48, 64, 3), (49, 64, 3)]
    assert np.flatnonzero(corpus.of(["bags"])).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.flatnonzero(corpus.of(["tex_philipk", "wood_screws"])).tolist() == list(range(7, 15))
    assert not corpus.of(["wood"]).any()


def test_channels_are_red_green_blue(tmp_path):
    (tmp_path / "paint" / "red").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "paint" / "red" / "0.png"), np.full((8, 8, 3), (0, 0, 255), np.uint8))
    assert read_corpus(tmp_path).images[0][0, 0].tolist() == [255, 0, 0]


def test_sources_and_classes_can_be_left_out(folder):
    left = ("bags/red", "tex_philipk/cork", "wood_screws/good")
    assert read_corpus(folder, ("bags/blue",)).names == left
    assert read_corpus(folder, ("bags", "tex_philipk/cork")).names == left[2:]


def test_what_cannot_be_left_out_is_named(folder):
    """A name in the wrong case once trained on what was meant for choosing between trainings."""
    with pytest.raises(FitError, match=r"has no Bags, bags/Red; --without"):
        read_corpus(folder, ("bags/Red", "Bags", "bags/blue"))


def test_a_source_with_the_name_of_the_made_up_parts_is_refused(folder, tmp_path):
    shutil.copytree(folder / "bags", tmp_path / "copy" / "scenes")
    with pytest.raises(FitError, match=r"copy/scenes: .*; rename the folder"):
        read_corpus(tmp_path / "copy")


def test_an_unreadable_photograph_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    torn = tmp_path / "copy" / "bags" / "red" / "2.jpg"
    torn.write_bytes(b"no image")
    with pytest.raises(FitError, match=f"{torn} is no readable image"):
        read_corpus(tmp_path / "copy")


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(FitError, match=f"no images in {tmp_path}; .*SOURCE/CLASS/IMAGE"):
        read_corpus(tmp_path)


def test_every_design_of_every_family_becomes_a_class_of_its_frames(corpus, monkeypatch):
    monkeypatch.setattr(corpora, "SIDE", 32)
    both = with_designs(corpus, 2)
    designs = [f"scenes/{family} {number}" for family in scenes.FAMILIES for number in (0, 1)]
    assert both.names == corpus.names + tuple(designs)
    assert both.images[: len(corpus.images)] == corpus.images
    counts = [*PHOTOGRAPHS.values(), *[corpora.INSTANCES] * len(designs)]
    assert both.classes.tolist() == np.repeat(np.arange(len(counts)), counts).tolist()
    assert np.flatnonzero(both.of([corpora.SCENES])).tolist() == list(range(15, len(both.images)))
    second = [both.images[i] for i in np.flatnonzero(both.classes == both.names.index("scenes/wires 1"))]
    assert {(image.shape, image.dtype.name) for image in second} == {((32, 32, 3), "uint8")}
    rendered = scenes.render("wires", torch.arange(2), corpora.INSTANCES, 32)[1]
    np.testing.assert_allclose(np.stack(second).transpose(0, 3, 1, 2), rendered.numpy(), atol=1)


def test_designs_are_the_same_every_time(corpus, monkeypatch):
    monkeypatch.setattr(corpora, "SIDE", 16)
    first, again = with_designs(corpus, 1), with_designs(corpus, 1)
    assert all(np.array_equal(a, b) for a, b in zip(first.images, again.images, strict=True))
    assert len(corpus.images) == 15
    assert len(corpus.names) == 4


# --- what a step sees ---


def drawn(corpus, settings=SMALL, first=0):
    """Images, classes and singles of the step `first`."""
    return next(iter(Draws(corpus, settings, first, torch.device("cpu"))))


def flat(names, counts, colour=(1, 1, 1)):
    """A corpus whose images are of one colour each, their number times ten: so an image tells its number."""
    images = [np.full((24, 32, 3), colour, np.uint8) * number * 10 for number in range(sum(counts))]
    return Corpus(images, np.repeat(np.arange(len(counts)), counts), tuple(names))


def test_what_is_drawn_depends_on_the_seed_and_the_step_alone(corpus):
    later = list(Draws(corpus, SMALL, 0, torch.device("cpu")))
    assert len(later) == SMALL.steps
    for same, now in zip(later[2], drawn(corpus, first=2), strict=True):
        assert torch.equal(same, now)
    assert not torch.equal(later[2][0], later[3][0])
    assert not torch.equal(later[2][0], drawn(corpus, replace(SMALL, seed=1), first=2)[0])


def test_an_image_comes_with_its_class_and_its_single():
    mixed = flat(["tex_philipk/cork", "bags/red", "ambientcg_thumbs/rust"], [2, 3, 4])
    images, classes, alone = drawn(mixed, replace(SMALL, images=64, light=0))
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == torch.float32
    numbers = (images / 10).long()
    assert torch.equal(images, numbers.float() * 10)  # without light and in one colour nothing else changes
    assert (numbers == numbers[:, :1, :1, :1]).all()
    number = numbers[:, 0, 0, 0]
    assert torch.equal(classes, torch.tensor(mixed.classes)[number])
    assert torch.equal(alone, torch.tensor([0, 1, *[NO_SINGLE] * 3, 2, 3, 4, 5])[number])
    assert set(number.tolist()) == set(range(9))


def test_only_photographs_of_textures_are_classes_of_their_own(corpus):
    assert train.singles(corpus).tolist() == [*[NO_SINGLE] * 7, 0, 1, 2, *[NO_SINGLE] * 5]


def test_half_of_the_images_are_grey_and_stay_so_under_other_light():
    red = flat(["bags/red"], [2], colour=(12, 6, 3))  # grey is their mean of 7
    for light in (0, 1):
        images, _, _ = drawn(red, replace(SMALL, images=400, size=8, light=light))
        images = images[images.flatten(1).amax(1) > 30]  # without the black one
        grey = (images == images[:, :1]).flatten(1).all(1)
        assert 0.4 < grey.float().mean() < 0.6
        assert (images[~grey][:, 0] > images[~grey][:, 2] + 20).all()
        if not light:
            assert (images[grey] == 70).all()


def test_half_of_the_images_are_mirrored(corpus):
    dark_to_bright = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None] * 6, 40, 0).repeat(3, 2)
    slope = Corpus([dark_to_bright], np.array([0]), ("bags/red",))
    images, _, _ = drawn(slope, replace(SMALL, images=400, size=8, light=0))
    assert 0.4 < (images[..., :4].mean((1, 2, 3)) > images[..., 4:].mean((1, 2, 3))).float().mean() < 0.6


def test_light_is_as_strong_as_the_settings_say(corpus):
    still, weak, strong = (drawn(corpus, replace(SMALL, light=light))[0] for light in (0, 0.25, 1))
    assert 0 < (weak - still).abs().mean() < 0.5 * (strong - still).abs().mean()
    assert strong.min() >= 0
    assert strong.max() <= 255


def test_a_class_is_drawn_as_often_as_the_root_of_its_size_and_made_up_parts_have_their_share():
    names, counts = ["bags/blue", "bags/red", "scenes/cast 0", "scenes/cast 1"], [1, 9, 4, 4]
    chances = train.chances(flat(names, counts), 0.2)
    of_classes = np.bincount(np.repeat(np.arange(4), counts), chances)
    np.testing.assert_allclose(of_classes, [0.8 / 4, 0.8 * 3 / 4, 0.1, 0.1])
    for first, last in ((0, 2), (2, 4)):  # the share means nothing where there are only scenes, or none
        part = flat(names[first:last], counts[first:last])
        alone = of_classes[first:last] / of_classes[first:last].sum()
        np.testing.assert_allclose(np.bincount(part.classes, train.chances(part, 0.2)), alone)


def test_what_is_drawn_follows_the_chances():
    part = flat(["bags/blue", "bags/red", "scenes/cast 0"], [1, 9, 4])
    for share in (0.2, 0.6):
        _, classes, _ = drawn(part, replace(SMALL, images=2000, size=4, light=0, scenes=share))
        found = np.bincount(classes.numpy()) / 2000
        np.testing.assert_allclose(found, [(1 - share) / 4, (1 - share) * 3 / 4, share], atol=0.04)
