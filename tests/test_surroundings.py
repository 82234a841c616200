"""What surroundings foretell is taken away, the same in the graph as in plain numbers."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate.backbones import BUNDLED
from calibrate.cli import main
from calibrate.fit import fit
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.surroundings import NEIGHBOURS, REACH, Surroundings, blocks, lacking, teaching
from calibrate.tiles import plan
from inspectord.errors import FitError
from tests.helpers_recipe import write_good_frames

WISHES = [{}, {"tile": 96, "overlap": 32}]
FEATURES = 3


def smooth_frames(geometry, count=40):
    """Embeddings that vary slowly from place to place, with a little noise of their own."""
    rng = np.random.default_rng(0)
    rows, columns = geometry.tile_grid
    walks = rng.standard_normal((count, geometry.tiles, rows, columns, FEATURES)).cumsum(2).cumsum(3)
    return list(walks.reshape(count, geometry.positions, FEATURES).astype(np.float32))


def features_graph(geometry):
    entry = op.parameter([geometry.positions, FEATURES], ov.Type.f32)
    out = op.multiply(entry, op.constant(np.float32(1))).output(0)
    out.get_tensor().set_names({"embeddings"})
    return ov.Model([op.result(out)], [entry], "features")


@pytest.mark.parametrize("wish", WISHES)
def test_the_graph_takes_away_what_the_blocks_around_foretell(wish):
    geometry = plan((0, 0, 160, 128), 8, 8, **wish)
    frames = smooth_frames(geometry)
    known = Surroundings.learn(frames, geometry)
    graph = known.less(features_graph(geometry), geometry)
    found = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([frames[0]])[
        "embeddings"
    ]
    tiles = frames[0].reshape(geometry.tiles, *geometry.tile_grid, FEATURES)
    wanted = np.concatenate([(tile - blocks(tile) @ known.weights).reshape(-1, FEATURES) for tile in tiles])
    assert found == pytest.approx(wanted, abs=1e-4)


def test_the_blocks_lie_above_below_left_and_right_and_leave_the_patch_out():
    tile = np.zeros((13, 13, 1), np.float32)
    tile[6, 6] = 9  # alone, so a block that holds it has the mean 1
    for number, (y, x) in enumerate([(6 + 3, 6), (6 - 3, 6), (6, 6 + 3), (6, 6 - 3)]):
        seen = blocks(tile)[..., number]
        assert seen[y, x] == 1  # it lies above the cell below it, and so on
        assert np.count_nonzero(seen) == 9
        assert seen[6, 6] == 0  # the patch never foretells itself


def test_what_varies_together_is_mostly_foretold_and_what_stands_alone_is_kept():
    geometry = plan((0, 0, 256, 256), 8, 8)
    frames = smooth_frames(geometry)
    known = Surroundings.learn(frames[:30], geometry)

    def left(frame):
        tile = frame.reshape(*geometry.tile_grid, FEATURES)
        return tile - blocks(tile) @ known.weights

    mean = np.mean(frames[:30], axis=0)
    unseen = frames[35] - mean
    assert np.var(left(unseen)) < 0.2 * np.var(unseen)
    struck = unseen.copy().reshape(*geometry.tile_grid, FEATURES)
    struck[16, 16] += 7
    assert (left(struck) - left(unseen))[16, 16] == pytest.approx(7, abs=1e-3)


def test_frames_that_hardly_differ_teach_the_same_and_those_that_are_all_the_same_teach_nothing():
    geometry = plan((0, 0, 256, 256), 8, 8)
    frames = smooth_frames(geometry)
    far = [frame * np.float32(0.01) + np.float32(50) for frame in frames]  # sums of squares would drown it
    expected = Surroundings.learn(frames, geometry).weights
    assert Surroundings.learn(far, geometry).weights == pytest.approx(expected, abs=0.02)
    assert not Surroundings.learn([frames[0]] * 10, geometry).weights.any()


def test_what_is_lacking_is_told_with_the_next_step():
    wide, narrow = plan((0, 0, 256, 256), 8, 8), plan((0, 0, 256, 56), 8, 8)
    assert wide.positions == 1024
    assert min(narrow.tile_grid) < 2 * REACH
    needed = -(-100 * NEIGHBOURS * 96 // 1024)
    assert lacking(needed, 96, wide) == ""
    assert "give more good frames" in lacking(needed - 1, 96, wide)
    assert "a larger --tile" in lacking(10**6, 96, narrow)
    assert "give --dimensions" in lacking(10**6, 257, wide)


def test_so_many_frames_teach_that_their_patches_suffice():
    wide, small = plan((0, 0, 256, 256), 8, 8), plan((0, 0, 128, 128), 8, 8)
    assert teaching(96, wide) == 64
    assert teaching(96, small) == 150
    assert lacking(150, 96, small) == ""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_good_frames(tmp_path_factory.mktemp("good"), range(40))


def options(good, recipes, **changes):
    return FitOptions(product="part", recipes_dir=recipes, folders=(good,), **changes)


@pytest.mark.parametrize("backbone", BUNDLED)
def test_patchcore_on_the_bundled_networks_takes_them_away_by_itself(good, tmp_path, backbone):
    recipe = fit(
        prepare(
            options(good, tmp_path, model="patchcore", backbone=backbone, coreset="200", dimensions=64),
            Silent(),
        ),
        Silent(),
    )
    assert recipe.spec.model.parameters["surroundings"] is True


@pytest.mark.parametrize(
    ("changes", "around"),
    [
        ({"model": "patchcore"}, True),
        ({"model": "patchcore", "absolute": True}, False),
        ({"model": "patchcore", "absolute": True, "surroundings": True}, True),
        ({"model": "patchcore", "surroundings": False}, False),
        ({"model": "patchcore", "tile": 48}, False),
        ({"model": "padim"}, False),
        ({"model": "padim", "surroundings": True}, True),
    ],
)
def test_who_takes_surroundings_away(good, tmp_path, changes, around):
    assert prepare(options(good, tmp_path, **changes), Silent()).around is around


@pytest.mark.parametrize("changes", [{"tile": 48}, {"layers": ("layer1",), "tile": 28}])
def test_what_cannot_be_is_refused_with_what_it_needs(good, tmp_path, changes):
    with pytest.raises(FitError, match=r"surroundings foretell can't be learned: tiles are \d cells wide"):
        prepare(options(good, tmp_path, surroundings=True, **changes), Silent())


def test_frames_are_added_to_a_recipe_that_knows_surroundings_and_teach_it_none(good, tmp_path):
    more = write_good_frames(tmp_path / "more", range(40, 44))
    recipes = tmp_path / "recipes"
    place = ["--recipes", str(recipes), "--memory-mb", "100000"]
    assert main(["fit", str(good), "--product", "part", *place, "--surroundings"]) == 0
    assert main(["extend", "part", str(more), *place]) == 0
    first, second = ((recipes / "part" / version / "recipe.toml").read_text() for version in ("0001", "0002"))
    assert "surroundings = true" in first
    assert "surroundings = true" in second


def test_in_eight_bits_the_loss_is_that_of_what_runs(good, tmp_path):
    changes = {"model": "padim", "surroundings": True, "precision": "int8", "max_int8_loss": 0.5}
    recipe = fit(prepare(options(good, tmp_path, **changes), Silent()), Silent())
    assert recipe.spec.model.parameters["surroundings"] is True
    assert "int8_auroc" in recipe.spec.model.parameters
