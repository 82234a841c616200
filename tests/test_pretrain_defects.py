"""Synthetic defects and the nuisance of good parts: honest masks, the same numbers for the same seed."""

import pytest

torch = pytest.importorskip("torch")

from calibrate.pretrain import defects, nuisance  # noqa: E402
from calibrate.pretrain.fields import softened  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SIDE = 96
EVERY = defects.FAMILIES + defects.HELD_OUT
KINDS = ("noise", "object", "gradient")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(kind, count=12):
    """Grey test pictures (count, 3, SIDE, SIDE), their channels equal."""
    if kind == "noise":
        grey = 128 + 30 * torch.randn(count, 1, SIDE, SIDE, generator=seeded(1))
    elif kind == "object":
        grey = torch.full((count, 1, SIDE, SIDE), 90.0)
        grey[:, :, 24:70, 30:80] = 180
    else:
        grey = torch.linspace(0, 255, SIDE).expand(count, 1, SIDE, SIDE)
    return grey.clamp(0, 255).repeat(1, 3, 1, 1)


def coloured(count=12, seed=2):
    blotches = torch.rand(count, 3, 12, 12, generator=seeded(seed)) * 255
    return torch.nn.functional.interpolate(blotches, SIDE, mode="bilinear")


def changes(images, struck):
    return (struck - images).abs().mean(1, keepdim=True)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_shows_on_most_pictures_of_every_kind(family):
    for kind in KINDS:
        _, mask = defects.strike(pictures(kind), coloured(), seeded(), (family,))
        assert mask.flatten(1).any(1).float().mean() > 0.5, kind


@pytest.mark.parametrize("family", EVERY)
def test_the_mask_is_where_the_change_is_visible(family):
    images = coloured()
    struck, mask = defects.strike(images, coloured(seed=3), seeded(), (family,))
    seen = changes(images, struck) > defects.VISIBLE
    assert (mask & ~seen).sum() <= 0.5 * mask.sum()  # only gaps are filled
    assert not (seen & ~mask).any()
    near = torch.nn.functional.max_pool2d(seen.float(), 5, 1, 2) > 0
    assert not (mask & ~near).any()


@pytest.mark.parametrize("family", EVERY)
def test_a_grey_picture_stays_grey_beside_a_coloured_one(family):
    images = torch.cat((pictures("noise", 6), coloured(6)))
    struck, _ = defects.strike(images, coloured(seed=3), seeded(), (family,))
    assert (struck[:6] == struck[:6, :1]).all()
    assert not (struck[6:] == struck[6:, :1]).all()


def test_struck_pictures_stay_in_range_and_of_plausible_area():
    images = torch.cat([pictures(kind, 40) for kind in KINDS])
    struck, mask = defects.strike(images, coloured(120), seeded(), EVERY)
    area = mask.flatten(1).float().mean(1)
    assert struck.dtype == torch.float32
    assert struck.min() >= 0
    assert struck.max() <= 255
    assert area.max() < 0.3
    assert area.median() < 0.05


def test_faint_and_strong_defects_both_come():
    images = torch.full((200, 3, 64, 64), 128.0)
    struck, mask = defects.strike(images, coloured(200)[..., :64, :64], seeded(), ("flat", "spot", "stain"))
    strongest = changes(images, struck).flatten(1).amax(1)[mask.flatten(1).any(1)]
    assert (strongest < 15).float().mean() > 0.05
    assert (strongest > 60).float().mean() > 0.05


def test_an_invisible_change_gives_the_picture_back_with_an_empty_mask():
    images = 128 + torch.rand(6, 1, SIDE, SIDE, generator=seeded()).expand(-1, 3, -1, -1) * 2
    struck, mask = defects.strike(images, images, seeded(), ("shift", "blur"))
    assert torch.equal(struck, images)
    assert not mask.any()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    images, sources = torch.cat((pictures("noise"), coloured())), coloured(24, seed=4)
    first = defects.strike(images, sources, seeded(7), EVERY)
    again = defects.strike(images, sources, seeded(7), EVERY)
    other = defects.strike(images, sources, seeded(8), EVERY)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(nuisance.vary(images, seeded(7)), nuisance.vary(images, seeded(7)))


def test_the_global_generator_and_the_given_pictures_are_left_alone():
    images, sources = coloured(), coloured(seed=3)
    before, kept = torch.random.get_rng_state(), images.clone()
    defects.strike(images, sources, seeded(), EVERY)
    nuisance.vary(images, seeded())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images, kept)


def test_held_out_families_are_never_trained_on():
    assert not set(defects.FAMILIES) & set(defects.HELD_OUT)
    assert {"crack", "pits", "dent", "dropout", "fibre"} <= set(defects.HELD_OUT)
    assert len(defects.FAMILIES) >= 11


@pytest.mark.parametrize(
    ("images", "families", "said"),
    [
        ((2, 3, 32, 32), ("rust",), "rust"),
        ((2, 3, 32, 32), (), "named"),
        ((2, 1, 32, 32), ("flat",), "channel"),
    ],
)
def test_wrong_input_is_refused_in_a_line_that_says_what_to_do(images, families, said):
    picture = torch.zeros(images)
    with pytest.raises(defects.DefectError, match=said):
        defects.strike(picture, picture, seeded(), families)


def test_a_tall_picture_and_an_empty_batch_are_struck_too():
    tall = 255 * torch.rand(8, 3, 160, 40, generator=seeded())
    struck, mask = defects.strike(tall, tall.flip(0), seeded(), EVERY)
    assert struck.shape == tall.shape
    assert mask.flatten(1).any(1).all()
    empty, none = defects.strike(tall[:0], tall[:0], seeded())
    assert empty.shape[0] == none.shape[0] == 0


def test_nuisance_of_no_strength_changes_nothing_and_more_strength_changes_more():
    images = coloured()
    weak, strong = (changes(images, nuisance.vary(images, seeded(), by)).mean() for by in (0.3, 1.0))
    assert torch.equal(nuisance.vary(images, seeded(), 0), images)
    assert 0 < weak < strong < 40


def test_nuisance_keeps_grey_grey_and_in_range():
    varied = nuisance.vary(pictures("noise"), seeded(), 2.0)
    assert (varied == varied[:, :1]).all()
    assert varied.min() >= 0
    assert varied.max() <= 255


def test_softening_keeps_the_mean_and_takes_the_grain():
    noise = pictures("noise")
    soft = softened(noise, 2)
    assert abs(float(soft.mean() - noise.mean())) < 0.5
    assert soft.std() < 0.4 * noise.std()
