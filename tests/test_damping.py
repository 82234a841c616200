"""What other light does to features counts less, and nothing else does."""

from __future__ import annotations

import dataclasses

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate import damping
from calibrate.augment import relit
from calibrate.damping import COUNTS, Damping
from calibrate.fit import UNDAMPED, fit
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from tests.helpers_parts import write_parts
from tests.helpers_recipe import write_good_frames

D, POSITIONS = 5, 40
WAY = np.array([3.0, 0, 4, 0, 0]) / 5  # that light moves patches


def pairs(frames=50, light=2.0, among=1.0):
    rng = np.random.default_rng(0)
    places = 100 * rng.standard_normal((POSITIONS, D))  # what differs from place to place is no variance
    for _ in range(frames):
        frame = places + among * rng.standard_normal((POSITIONS, D))
        moved = light * rng.standard_normal((POSITIONS, 1)) * WAY
        yield frame.astype(np.float32), (frame + moved).astype(np.float32)


def test_the_way_of_light_is_shortened_by_its_variance_and_the_rest_stays():
    """Breaking the sum over places (total left out) fails this: places would count as variance."""
    matrix = Damping.learn(pairs()).matrix
    assert WAY @ matrix @ WAY == pytest.approx(1 / np.sqrt(1 + COUNTS * 4), rel=0.03)
    for other in (np.array([4.0, 0, -3, 0, 0]) / 5, np.eye(D)[1], np.eye(D)[4]):
        assert matrix @ other == pytest.approx(other, abs=0.02)


@pytest.mark.parametrize("light", [0.0, 0.01])
def test_light_that_does_little_changes_little(light):
    assert Damping.learn(pairs(light=light)).matrix == pytest.approx(np.eye(D), abs=1e-3)


def test_of_parts_that_do_not_differ_at_all_it_is_finite():
    found = Damping.learn(pairs(among=0.0)).matrix
    assert np.isfinite(found).all()
    assert 0.01 < np.linalg.norm(found @ WAY) < 0.03


def test_the_graph_multiplies_the_embeddings():
    known = Damping.learn(pairs())
    entry = op.parameter([POSITIONS, D], ov.Type.f32)
    out = op.multiply(entry, op.constant(np.float32(1))).output(0)
    out.get_tensor().set_names({"embeddings"})
    graph = known.damp(ov.Model([op.result(out)], [entry], "features"))
    frame = next(pairs())[0]
    found = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([frame])["embeddings"]
    assert found == pytest.approx(frame @ known.matrix, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_relit_frame_is_another_picture_of_the_same_part(channels):
    y, x = np.mgrid[:60, :80]
    frame = (110 + 50 * np.sin(x / 6) * np.cos(y / 8))[..., None].repeat(channels, 2).astype(np.uint8)
    copies = [relit(frame, f"{number:064x}", 0) for number in range(30)]
    assert {copy.shape for copy in copies} == {frame.shape}
    apart = [np.abs(copy.astype(int) - frame).mean() for copy in copies]
    assert 1 < np.mean(apart) < 12
    assert max(apart) < 30
    alike = [np.corrcoef(copy.ravel(), frame.ravel())[0, 1] for copy in copies]
    assert min(alike) > 0.97
    assert (relit(frame, f"{7:064x}", 0) == copies[7]).all()
    assert (relit(frame, f"{7:064x}", 1) != copies[7]).any()


# --- in a fit ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_good_frames(tmp_path_factory.mktemp("damping") / "good", range(20), 128, 128)


def planned(folder, **more):
    base = FitOptions(
        product="p", recipes_dir=folder.parent / "recipes", folders=(folder,), memory_mb=100_000, seed=3
    )
    return prepare(dataclasses.replace(base, **more), Silent())


@pytest.mark.parametrize(
    ("more", "damped"),
    [
        ({}, True),
        ({"per_tile": True, "model": "patchcore", "tile": 64}, True),
        ({"model": "padim"}, False),  # whose own covariances do
        ({"relight": False}, False),
        ({"absolute": True}, False),
        ({"absolute": True, "relight": True}, True),
    ],
)
def test_it_goes_with_relight_where_patches_are_compared_by_distance(folder, more, damped):
    assert (len(planned(folder, **more).learns_light) > 0) == damped


def test_of_very_many_features_it_would_take_too_long(folder, monkeypatch):
    monkeypatch.setattr(damping, "MOST", 40)
    assert not planned(folder).damps


def test_copies_of_frames_beside_their_augmented_ones(folder):
    plan = planned(folder, augment=2)
    assert plan.learns_light.tolist() == list(range(0, 60, 3))
    frame = plan.good.frames[4]
    assert (plan.relit(12) == relit(plan.good.read(4), frame.digest, 3)).all()


def test_of_nearly_the_same_frames_nothing_is_damped_and_the_recipe_says_so(folder):
    """Damped, float32 would leave 0.3 % of their scores, and the gate would refuse the recipe."""
    said = Silent()
    recipe = fit(planned(folder, model="patchcore"), said)
    assert UNDAMPED in said.notes
    assert "damped" not in recipe.spec.model.parameters
    assert recipe.spec.model.parameters["relight_brightness"] > 0.9


def test_a_fit_learns_it_and_its_graph_holds_it(tmp_path, monkeypatch):
    """Without damp() in fit the second recipe would have the first one's scores."""
    scores, folder = [], write_parts(tmp_path / "good", range(20))
    for among in (None, 1e12):  # of which light is no share
        if among:
            learned = Damping.of
            monkeypatch.setattr(Damping, "of", lambda by_light, _, learned=learned: learned(by_light, 1e12))
        recipe = fit(planned(folder), Silent())
        assert recipe.spec.model.parameters["damped"]
        scores.append(recipe.golden()[-1].score)
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)
