"""Every frame is brought to the good frames' light, in the graph as in plain numbers, and no farther."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate import light
from calibrate.backbones import BUNDLED
from calibrate.cli import main
from calibrate.fit import PASSES, fit
from calibrate.graph import light_model
from calibrate.images import GoodFrames
from calibrate.light import DRIFT, MOST, Light
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.region import FILL
from calibrate.tiles import plan
from inspectord.errors import FitError
from inspectord.inspect import Inspector
from inspectord.recipe import FrameSpec
from tests.helpers_recipe import good_frame, write_good_frames

HEIGHT, WIDTH = 96, 128


def part(seed=0, brightness=0.0, contrast=1.0, channels=3):
    """A part with a pattern of its own, float (height, width, channels)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pattern = 40 * np.sin(x / 9)[..., None] + 30 * np.cos(y / 7)[..., None]
    noise = np.random.default_rng(seed).normal(0, 2, (HEIGHT, WIDTH, 1))
    base = np.array([110, 120, 130][:channels]) + (pattern + noise) * np.array([1.0, 0.8, 0.6][:channels])
    return (base - base.mean((0, 1))) * contrast + base.mean((0, 1)) + brightness


def pixels(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def spec(channels=3):
    return FrameSpec(width=WIDTH, height=HEIGHT, pixel_format="Mono8" if channels == 1 else "BGR8")


def learned(frames, ignored=None, **wish):
    geometry = plan((0, 0, WIDTH, HEIGHT), 8, 8, resize=HEIGHT, **wish)
    measure = light_model(spec(frames[0].shape[2]), geometry, ignored)
    return Light.learn(frames, measure, light.seen_share(geometry, ignored)), geometry


def even(known, frame, seen=None):
    """A frame as the graph shows it, (height, width, channels), blue first as frames are."""
    planes = np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1)[None], np.float32)
    entry = op.parameter(planes.shape, ov.Type.f32)
    model = ov.Model([op.result(known.even(entry.output(0), seen))], [entry], "even")
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([planes])[0]
    return found[0].transpose(1, 2, 0)[..., ::-1]


@pytest.fixture(scope="module")
def alike():
    return learned([pixels(part(seed)) for seed in range(20)])[0]


def test_it_learns_each_colours_mean_red_first_and_the_spread_of_all(alike):
    frames = np.array([pixels(part(seed)) for seed in range(20)], float)
    assert alike.mean == pytest.approx(frames.mean((0, 1, 2))[::-1], abs=0.05)
    assert alike.spread == pytest.approx(np.abs(frames - frames.mean((1, 2), keepdims=True)).mean(), rel=0.01)
    assert min(alike.parameters.values()) > 0.99  # good frames hardly differ


@pytest.mark.parametrize(
    "lit",
    [
        {"brightness": 12},
        {"brightness": -12},
        {"contrast": 0.88, "brightness": -8},
        {"contrast": 1.12, "brightness": 8},
        {"brightness": np.array([-4, 0, 4])},
    ],
)
def test_other_light_is_taken_away(alike, lit):
    usual, other = part(50), pixels(part(50, **lit))
    assert np.abs(other - usual).mean() > 2.5
    assert np.abs(even(alike, other) - usual).mean() < 0.6


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lamp_that_gives_less_is_taken_away(channels):
    known, _ = learned([pixels(part(seed, channels=channels)) for seed in range(20)])
    usual = part(50, channels=channels)
    assert np.abs(even(known, pixels(0.9 * usual)) - usual).mean() < 0.6


def on_belt(seed, factor, ground=60, columns=48):
    """A part of 72 rows before a ground that the factor does not touch, and where the part lies."""
    frame = np.random.default_rng(seed).normal(ground, 1, (HEIGHT, WIDTH, 1))
    place = slice(12, 84), slice(8, 8 + columns)
    frame[place] = part(seed, channels=1)[place] * factor
    return pixels(frame), place


@pytest.mark.parametrize("factor", [0.85, 0.9, 1.1, 1.15])
def test_a_part_that_is_darker_before_the_same_ground_stays_so(factor):
    """With SHOWN at 1000 this fails: a mean and a spread bring two greys back."""
    known, _ = learned([on_belt(seed, 1.0)[0] for seed in range(20)])
    (usual, place), (other, _) = on_belt(50, 1.0), on_belt(50, factor)
    differs = (other[place].astype(float) - usual[place]).mean()
    assert (even(known, other) - usual)[place].mean() == pytest.approx(differs, rel=0.15)
    under_a_lamp = even(known, pixels(factor * usual))
    assert abs((under_a_lamp - usual)[place].mean()) < 0.15 * abs(differs)


@pytest.mark.parametrize(("ground", "columns"), [(60, 100), (8, 48)], ids=["large", "on black"])
def test_light_and_a_darker_part_are_one_where_the_part_covers_most_or_lies_on_black(ground, columns):
    known, _ = learned([on_belt(seed, 1.0, ground, columns)[0] for seed in range(20)])
    (usual, place), (other, _) = (on_belt(50, factor, ground, columns) for factor in (1.0, 0.9))
    assert abs((even(known, other) - usual)[place].mean()) < 4  # it differs by 12


def test_contrast_about_the_middle_grey_comes_back_in_part(alike):
    """Half of the frame hardly changes by it, so it might be the part's."""
    usual, other = part(50), pixels(part(50, contrast=0.88))
    assert np.abs(even(alike, other) - usual).mean() < 0.7 * np.abs(other - usual).mean()
    black = np.zeros_like(alike.places)  # which tells nothing, so the mean and the spread alone decide
    blind = replace(alike, places=black, greys=black, slopes=np.zeros_like(alike.slopes))
    assert np.abs(even(blind, other) - usual).mean() < 0.6


@pytest.mark.parametrize(("down", "across"), [(0.05, 0), (0, -0.05), (-0.03, 0.04)])
def test_a_slope_of_the_light_is_taken_away(down, across):
    """Of a part before a ground, too, and where the part lies elsewhere in each frame."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    slope = (1 + down * y + across * x)[..., None]
    for moves in (0, 7):
        frames = [np.roll(on_belt(seed, 1.0)[0], seed * moves % 60, 1) for seed in range(30)]
        known, _ = learned(frames[:29])
        shown = even(known, pixels(frames[29] * slope))
        left, was = (np.abs(each - frames[29]).mean() for each in (shown, frames[29] * slope))
        assert left < 0.6 * was


@pytest.mark.parametrize("place", [slice(8, 44), slice(70, 106)])
def test_a_part_to_one_side_that_is_darker_is_no_slope(place):
    frames = [on_belt(seed, 1.0)[0] for seed in range(20)]
    known, _ = learned(frames)
    struck = frames[0].astype(float)
    struck[20:70, place] *= 0.8
    moved = even(known, pixels(struck)) - struck
    assert np.abs(moved).max() < 6  # of some 25 that it differs by


def test_a_part_that_is_as_grey_as_the_ground_is_told_by_its_place():
    """With sorted greys alone this fails: the darker part's take the ground's ranks."""

    def frame(seed, factor):
        values = np.random.default_rng(seed).normal(120, 1, (HEIGHT, WIDTH, 1))
        values[12:84, 8:48] = np.random.default_rng(seed).normal(130, 1, (72, 40, 1)) * factor
        return values

    known, _ = learned([pixels(frame(seed, 1.0)) for seed in range(20)])
    moved = even(known, pixels(frame(50, 0.85))) - frame(50, 0.85)
    assert np.abs(moved).max() < 6  # of 19.5


def test_a_part_of_a_darker_colour_before_another_keeps_it():
    """With the colours' shares made good as in another light, a quarter of it is gone."""

    def frame(seed, factor):
        values = np.random.default_rng(seed).normal([160, 90, 60], 1, (HEIGHT, WIDTH, 3))
        values[12:84, 8:48] = np.array([50, 60, 200]) * factor
        return values

    known, _ = learned([pixels(frame(seed, 1.0)) for seed in range(20)])
    moved = even(known, pixels(frame(50, 0.85))) - frame(50, 0.85)
    assert np.abs(moved).max() < 5  # of 30 in red


def test_a_part_before_white_is_one_with_the_light():
    """White is clipped, so it tells nothing of a lamp."""
    known, _ = learned([on_belt(seed, 1.0, 255)[0] for seed in range(20)])
    (usual, place), (other, _) = (on_belt(50, factor, 255) for factor in (1.0, 0.9))
    assert abs((even(known, other) - usual)[place].mean()) < 6  # it differs by 12


def test_a_frame_in_the_same_light_stays_as_it_is(alike):
    frame = pixels(part(51))
    assert np.abs(even(alike, frame) - frame).max() < 0.5


def test_no_more_is_made_good_than_light_does(alike):
    most = MOST * np.hypot(DRIFT[0] * alike.mean.mean(), DRIFT[1])
    dark = even(alike, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert dark.mean() == pytest.approx(most, rel=1e-3)  # a black frame stays dark
    assert dark.max() < 30
    level = replace(alike, slopes=np.zeros_like(alike.slopes))
    flat = even(level, pixels(part(52, contrast=0.3)))
    gain = flat.std((0, 1)) / pixels(part(52, contrast=0.3)).std((0, 1))
    assert gain == pytest.approx(np.full(3, np.exp(MOST * DRIFT[0])), rel=1e-3)
    flat = even(alike, pixels(part(52, contrast=0.3)))
    usual = pixels(part(52, contrast=0.3)).astype(float)
    gain = np.polyfit((usual - usual.mean((0, 1))).ravel(), (flat - flat.mean((0, 1))).ravel(), 1)[0]
    assert gain == pytest.approx(np.exp(MOST * DRIFT[0]), rel=0.05)
    sloping = even(alike, pixels(part(53) * np.linspace(0.4, 1.6, WIDTH)[:, None]))
    assert sloping[:, -8:].mean() / sloping[:, :8].mean() > 2  # of four times at most 1.2 are made good


def test_a_part_of_another_colour_keeps_it(alike):
    """As bright as the others, 40 grey levels more blue than red: hardly any of that is a lamp's."""
    other = even(alike, pixels(part(57, brightness=np.array([20, 0, -20]))))
    told = (other - part(57)).mean((0, 1))
    assert told[0] > 10
    assert told[2] < -10


def test_a_small_defect_moves_nothing_else(alike):
    struck = part(53)
    struck[20:28, 30:38] = 255
    before, after = even(alike, pixels(part(53))), even(alike, pixels(struck))
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[20:28, 30:38] = False
    assert np.abs(after - before)[outside].max() < 4
    assert np.abs(after - before)[~outside].mean() > 80


def test_of_what_good_frames_vary_in_by_themselves_little_is_taken_away():
    """With of_brightness always 1 this fails: parts of many greys would be judged as one grey."""
    rng = np.random.default_rng(1)
    frames = [pixels(part(seed, brightness=rng.normal(0, 20))) for seed in range(40)]
    known, _ = learned(frames)
    drift = np.hypot(DRIFT[0] * known.mean.mean(), DRIFT[1])
    assert known.of_brightness == pytest.approx(drift**2 / (drift**2 + 400), rel=0.5)
    other = pixels(part(54, brightness=20))
    moved = even(known, other).mean() - other.mean()
    lacking = known.mean.mean() - other.mean()
    assert moved == pytest.approx(known.of_brightness * lacking, abs=0.1)
    assert known.of_contrast > 0.9


def test_ignored_pixels_do_not_count():
    ignored = np.zeros((HEIGHT, WIDTH), bool)
    ignored[:, :50] = True
    frames = [pixels(part(seed)) for seed in range(20)]
    known, geometry = learned(frames, ignored)
    assert known.greys.shape == (3, 16 * 10)  # of 16 columns of 8 pixels those that reach behind the 50th
    assert known.mean == pytest.approx(np.array(frames, float)[:, :, 50:].mean((0, 1, 2))[::-1], abs=0.3)
    seen = light.seen_share(geometry, ignored)
    assert (seen[0, 0] == ~ignored).all()
    assert light.seen_share(geometry, None) is None
    painted = pixels(part(55, brightness=12))
    painted[:, :50] = FILL
    level = even(replace(known, slopes=np.zeros_like(known.slopes)), painted, seen)
    assert level[:, 50:] == pytest.approx(part(55)[:, 50:], abs=1.5)
    shown = even(known, painted, seen)
    assert np.abs(shown - part(55))[:, 50:].mean() < 0.8
    assert (shown[:, :50] == FILL).all()  # or the mask's edge would be one that no good frame had


def test_of_scaled_frames_a_pixel_counts_as_far_as_it_is_seen():
    ignored = np.zeros((HEIGHT, WIDTH), bool)
    ignored[10:, 64:] = True
    seen = light.seen_share(plan((0, 8, WIDTH, 80), 8, 8, resize=40), ignored)[0, 0]
    assert seen.shape == (40, 64)
    assert (seen[0] == 1).all()
    assert (seen[:, :32] == 1).all()
    assert not seen[1:, 32:].any()
    ignored = np.arange(HEIGHT)[:, None] % 4 == np.zeros(WIDTH)
    seen = light.seen_share(plan((0, 0, WIDTH, HEIGHT), 8, 8, resize=24), ignored)
    assert seen == pytest.approx(0.75)


def test_of_large_frames_not_every_pixel_is_counted_and_of_the_counted_the_same_is_told():
    large = np.tile(pixels(part(0)), (6, 6, 1))
    tall, wide = large.shape[:2]
    model = light_model(
        FrameSpec(width=wide, height=tall, pixel_format="BGR8"),
        plan((0, 0, wide, tall), 8, 8, tile=256),
        None,
    )
    mean, spread, at = ov.Core().compile_model(model, "CPU")([large[None]]).values()
    assert mean.ravel() == pytest.approx(large.mean((0, 1))[::-1], abs=1)
    assert spread.ravel() == pytest.approx([np.abs(large - large.mean((0, 1))).mean()], rel=0.02)
    blocks = cv2.resize(large, (wide // 48, tall // 36), interpolation=cv2.INTER_AREA)
    assert at[0].transpose(1, 2, 0) == pytest.approx(blocks[..., ::-1], abs=1)


def test_a_pattern_that_moves_is_no_other_light():
    """Every eighth pixel alone, instead of means of blocks, would see 60 or 180 here."""
    mesh = np.repeat(np.repeat([[60, 180] * 128], 4, 1), 1024, 0)[..., None].astype(np.uint8)
    spec_, geometry = FrameSpec(width=1024, height=1024, pixel_format="Mono8"), plan((0, 0, 1024, 1024), 8, 8)
    model = ov.Core().compile_model(light_model(spec_, geometry, None), "CPU")
    for shift in range(4):
        mean, *_ = model([np.roll(mesh, shift, 1)[None]]).values()
        assert mean.ravel() == pytest.approx([120], abs=1)


def test_of_a_mask_finer_than_the_pixels_all_that_is_seen_counts(alike):
    frame = pixels(part(56, brightness=10))
    half = np.full((1, 1, HEIGHT, WIDTH), 0.5, np.float32)
    shown = even(alike, ((frame + FILL) / 2).astype(np.float32), half)
    assert np.isfinite(shown).all()


def test_a_defect_on_an_even_part_keeps_its_contrast():
    """With the least spread at a level of noise it would be shown at most of it."""
    rng = np.random.default_rng(0)
    even_part = lambda: pixels(120 + rng.normal(0, 2, (HEIGHT, WIDTH, 1)))  # noqa: E731
    known, _ = learned([even_part() for _ in range(20)])
    struck = even_part()
    struck[30:40, 40:50] += 40
    shown = even(known, struck)
    assert shown[30:40, 40:50].mean() - shown[60:].mean() > 38


# --- in a fit ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_good_frames(tmp_path_factory.mktemp("light") / "good", range(30), 128, 128)


def options(folder, **more):
    return FitOptions(
        product="p", recipes_dir=folder.parent / "recipes", folders=(folder,), memory_mb=100_000, **more
    )


@pytest.mark.parametrize(
    ("more", "relit"),
    [
        *(({"backbone": name}, True) for name in BUNDLED),
        ({"model": "padim"}, True),
        ({"absolute": True}, False),
        ({"absolute": True, "relight": True}, True),
        ({"relight": False}, False),
    ],
)
def test_it_is_the_default_with_the_bundled_networks_but_for_plain_distances(folder, more, relit):
    planned = prepare(options(folder, **more), Silent())
    assert (planned.light is not None) == relit
    assert bool(planned.told_of_light) == relit


def test_what_takes_frames_as_they_are_refuses_it(folder):
    pytest.importorskip("torch")
    with pytest.raises(FitError, match="efficientad-lite takes every frame as it is; leave --relight out"):
        prepare(options(folder, model="efficientad-lite", relight=True, steps=1), Silent())


@pytest.mark.parametrize("flag", ["--relight", "--no-relight"])
def test_the_command_refuses_it_too(folder, capsys, flag):
    words = ["fit", str(folder), "--product", "p", "--model", "efficientad-lite", flag]
    assert main(words) == 78
    assert f"{flag} has no effect with --model efficientad-lite" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "said"), [(None, True), (True, False), (False, False)])
def test_a_fit_says_what_it_makes_pass_unless_it_was_asked(folder, asked, said):
    notes = Silent()
    fit(prepare(options(folder, relight=asked, model="padim"), Silent()), notes)
    assert (PASSES in notes.notes) == said


def test_few_of_many_frames_are_read(folder, monkeypatch):
    seen, read = [], GoodFrames.read
    monkeypatch.setattr("calibrate.plan.FRAMES", 3)
    monkeypatch.setattr(GoodFrames, "read", lambda good, index: seen.append(index) or read(good, index))
    prepare(options(folder), Silent())
    assert seen == [0, 14, 29]


def test_a_recipe_says_how_much_is_made_good_and_passes_a_good_part_in_other_light(folder):
    """Without Light.even() in the graph the same frame is rejected: the second fit shows it."""
    good = {
        relit: fit(prepare(options(folder, relight=relit, model="padim"), Silent()), Silent())
        for relit in (True, False)
    }
    told = good[True].spec.model.parameters
    assert 0.9 < told["relight_brightness"] <= 1
    assert told["relight_colour"] == 1  # of grey frames there is nothing to be made good
    assert 0 < told["relight_contrast"] <= 1
    assert "relight_brightness" not in good[False].spec.model.parameters
    frame = good_frame(128, 128, seed=99) + np.uint8(18)
    passed = {relit: Inspector(r).score(frame).score <= r.spec.limits.score for relit, r in good.items()}
    assert passed == {True: True, False: False}
