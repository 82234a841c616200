"""--precision int8: what is quantised, what is not, what it may cost, and what a recipe says of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op
from pydantic import ValidationError

from calibrate import eight_bits
from calibrate.backbones.lite import open_lite
from calibrate.backbones.weights import convolve, random_state
from calibrate.cli import main
from calibrate.eight_bits import Loss, agreement
from calibrate.fit import fit
from calibrate.light import Light
from calibrate.options import FitOptions
from calibrate.pieces import LOOP, in_blocks
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.quantise import QUANTISED, in_float, quantised, rest_precision, share_in_8_bits
from inspectord.errors import FitError
from inspectord.inspect import Inspector, check_golden, compile_model
from inspectord.recipe import load_recipe
from inspectord.recipe_spec import RuntimeSpec


@pytest.fixture
def without_nncf(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def options(folder, tmp_path, **changes):
    base = FitOptions(
        product="flange",
        recipes_dir=tmp_path / "recipes",
        folders=(folder,),
        model="padim",
        threads=2,
        precision="int8",
    )
    return dataclasses.replace(base, **changes)


def small(weights, **changes):
    """Options of a network that is quantised in a second, whatever that costs."""
    return {
        "backbone": "resnet18",
        "weights": weights,
        "layers": ("layer1", "layer2"),
        "dimensions": 20,
        "max_int8_loss": 1.0,
    } | changes


def kernels(seed, outputs, inputs, size=3):
    return random_state({"w": (outputs, inputs, size, size)}, seed)["w"]


def planes_of(images):
    return op.transpose(op.convert(images, ov.Type.f32), op.constant([0, 3, 1, 2])).output(0)


def two_networks(images):
    """As EfficientAD compares them: the mean square of the difference of two networks, scaled."""
    planes, ends = planes_of(images), []
    for seed in (1, 2):
        hidden = op.relu(convolve(planes, kernels(seed, 16, 1) / 128, np.zeros(16, np.float32), 1)).output(0)
        ends.append(convolve(hidden, kernels(seed + 2, 8, 16), np.zeros(8, np.float32), 1))
    error = op.reduce_mean(op.squared_difference(*ends), op.constant([1]), True)
    return op.multiply(error, op.constant(np.float32(0.1))).output(0)


def model_of(build, shape=(1, 32, 40, 1)):
    images = op.parameter(list(shape), ov.Type.u8, name="frame")
    model = ov.Model([op.result(build(images.output(0)))], [images], "features")
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"node_{number}")
    return model


def frames(count=8, shape=(32, 40, 1)):
    return list(np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8))


def answers(model, asked=None):
    request = compile_model(model, "CPU", "f32", threads=1).create_infer_request()
    asked = frames() if asked is None else asked
    return np.array([request.infer([pixels[None]])[0] for pixels in asked])


def nodes(model, kind):
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def test_convolutions_compute_in_8_bits_and_answer_nearly_the_same():
    before = model_of(two_networks)
    after = quantised(before, frames())
    assert share_in_8_bits(before) == 0
    assert share_in_8_bits(after) == 1
    known, found = answers(before), answers(after)
    assert 0 < np.abs(found - known).mean() < 0.05 * known.mean()


def test_what_lies_behind_the_last_convolution_stays_in_floating_point():
    after = quantised(model_of(two_networks), frames())
    assert nodes(after, QUANTISED)
    for node in nodes(after, QUANTISED):
        readers = {port.get_node().get_type_name() for port in node.output(0).get_target_inputs()}
        assert readers == {"Convolution"}


def test_pixels_brighter_than_any_of_a_good_frame_are_not_cut_off():
    dark = [pixels // 8 for pixels in frames()]
    after = quantised(model_of(lambda images: convolve(planes_of(images), kernels(1, 4, 1), None, 1)), dark)
    request = compile_model(after, "CPU", "f32", threads=1).create_infer_request()
    tones = [request.infer([np.full((1, 32, 40, 1), tone, np.uint8)])[0].max() for tone in (31, 100, 255)]
    assert tones[2] / tones[1] == pytest.approx(2.55, rel=0.02)


@pytest.mark.parametrize("tiles", [1, 2])
def test_of_frames_brought_to_another_light_no_pixel_is_cut_off_either(tiles):
    """Asked through the light, a black and a white frame are two greys: white beside black would be cut."""
    asked = np.full((32, 40, 1), 60, np.uint8)
    asked[:, 20:], asked[:, 17:20], asked[:, 37:] = 180, 0, 255
    mean = asked.mean()
    places = np.full((1, 16 * 20), mean, np.float32)
    light = Light(
        mean=np.full(1, mean, np.float32),
        spread=float(np.abs(asked - mean).mean()),
        places=places,
        greys=places,
        slopes=np.zeros((2, 16 * 20), np.float32),
        of_brightness=1.0,
        of_colour=1.0,
        of_contrast=1.0,
    )

    def seen(images):
        evened = light.even(planes_of(images), None)
        if tiles == 1:
            return convolve(evened, kernels(1, 4, 1), None, 1)
        both = op.concat([evened, evened], 0).output(0)
        tile = op.parameter([1, *both.get_shape()[1:]], ov.Type.f32)
        return in_blocks([(tile, both)], convolve(tile.output(0), kernels(1, 4, 1), None, 1), 1)

    before = model_of(seen)
    after = quantised(before, [pixels // 4 + 90 for pixels in frames()])
    known, found = answers(before, [asked]), answers(after, [asked])
    assert np.abs(found - known).max() < 0.03 * np.abs(known).max()


def test_what_is_in_8_bits_already_stays_as_it_is():
    def student_of_lite(images):
        planes = planes_of(images)
        teacher = open_lite(None).features(planes, [None])[0]
        student = convolve(planes, kernels(1, 32, 1) / 128, np.zeros(32, np.float32), 8)
        student = convolve(op.relu(student).output(0), kernels(2, 144, 32), None, 1)
        return op.squared_difference(teacher, student).output(0)

    before = model_of(student_of_lite, (1, 32, 64, 1))
    after = quantised(before, frames(shape=(32, 64, 1)))
    added = len(nodes(after, QUANTISED)) - len(nodes(before, QUANTISED))
    assert added == 3  # what lite's first convolution and the two of the student take in
    assert share_in_8_bits(after) > 0.95 > share_in_8_bits(before) > 0


def in_tiles(images, one_by_one):
    """Four tiles, a channel of the frame each, through a network whose first bias is not zero."""
    planes = op.transpose(op.convert(images, ov.Type.f32), op.constant([3, 0, 1, 2])).output(0)

    def network(x):
        bias = np.linspace(-1, 1, 16).astype(np.float32)
        hidden = op.relu(convolve(x, kernels(1, 16, 1) / 128, bias, 1)).output(0)
        hidden = op.subtract(hidden, op.constant(np.float32(0.2))).output(0)  # of both signs
        return convolve(hidden, kernels(2, 8, 16), np.zeros(8, np.float32), 1)

    if not one_by_one:
        return network(planes)
    tile = op.parameter([1, 1, 32, 40], ov.Type.f32)
    return in_blocks([(tile, planes)], network(tile.output(0)), 1)


def edges(model):
    """What each node that rounds activations reaches, in the order of computation."""
    return [float(node.input_value(2).get_node().data.max()) for node in nodes(model, QUANTISED)]


def test_tiles_one_by_one_get_the_ranges_of_tiles_together():
    """Three tiles of four are mere background, and the fourth is dark. With NNCF's own ranges of single tiles
    this fails, what the fourth holds is cut off; and with pixels' range from good frames, what is bright.
    """
    good = [pixels // np.uint8([64, 64, 64, 4]) for pixels in frames(shape=(32, 40, 4))]
    shape = (1, 32, 40, 4)
    known, looped = (model_of(lambda images, how=how: in_tiles(images, how), shape) for how in (False, True))
    together, apart = quantised(known, good), quantised(looped, good)
    (loop,) = nodes(apart, LOOP)
    assert share_in_8_bits(looped) == 0
    assert share_in_8_bits(apart) == share_in_8_bits(together) == 1
    assert edges(loop.get_function()) == pytest.approx(edges(together), rel=0.02)
    assert edges(together)[0] == pytest.approx(255)
    exact, found = (answers(model, good) for model in (known, apart))
    assert 0 < np.abs(found - exact).mean() < 0.05 * np.abs(exact).mean()


def test_what_follows_a_loop_is_in_8_bits_too_by_what_good_frames_reach_there():
    def build(images):
        return convolve(op.relu(in_tiles(images, True)).output(0), kernels(3, 4, 8), None, 1)

    known, good = model_of(build, (1, 32, 40, 4)), frames(shape=(32, 40, 4))
    after = quantised(known, good)
    assert share_in_8_bits(after) == 1
    (loop,) = nodes(after, LOOP)
    assert len(nodes(loop.get_function(), QUANTISED)) == 2  # what its two convolutions take in
    before = model_of(lambda images: op.relu(in_tiles(images, True)).output(0), (1, 32, 40, 4))
    reached = np.mean([found.max() for found in answers(before, good)])
    assert edges(after) == pytest.approx([reached], rel=0.05)


def test_what_has_no_fixed_weights_is_refused():
    def build(images):
        planes = planes_of(images)
        return op.matmul(planes, planes, False, True).output(0)

    with pytest.raises(FitError, match=r"nothing in this network .*--precision bf16"):
        quantised(model_of(build), frames())


def test_lite_is_8_bit_and_a_resnet_is_not(resnet, good, tmp_path):
    lite = prepare(options(good, tmp_path, backbone="lite"), Silent())
    other = prepare(options(good, tmp_path, **small(resnet)), Silent())
    assert share_in_8_bits(lite.graph) > 0.5
    assert share_in_8_bits(other.graph) == 0
    assert in_float(other.graph)


def test_the_rest_is_in_what_the_kind_bears_and_the_device_has(monkeypatch):
    class Core:
        def get_property(self, device, name):
            return {"CPU": ["FP32", "INT8", "BF16"], "GPU": ["FP32", "FP16"], "OLD": ["FP32"]}[device]

    monkeypatch.setattr(ov, "Core", Core)
    every = ("f32", "bf16", "f16")
    assert [rest_precision(every, device) for device in ("CPU", "GPU", "OLD")] == ["bf16", "f16", "f32"]
    assert rest_precision(("f32",), "CPU") == "f32"


def test_without_nncf_a_fit_says_what_to_install_before_it_begins(resnet, good, tmp_path, without_nncf):
    with pytest.raises(FitError, match=r"pip install 'inspectord\[int8\]'"):
        prepare(options(good, tmp_path, **small(resnet)), Silent())


@pytest.mark.parametrize("model", ["padim", "patchcore"])
def test_lite_needs_no_nncf_and_says_that_nothing_changes(good, tmp_path, without_nncf, model):
    told = Silent()
    plan = prepare(options(good, tmp_path, model=model, backbone="lite", memory_mb=100_000), told)
    recipe = fit(plan, told)
    if model == "padim":  # whose Gaussians change, where the CPU has half precision
        changes = "only" if plan.hint != "f32" else "nothing"
        wanted = f"computes in 8 bits at any --precision, so int8 changes {changes}"
        assert any(wanted in note for note in told.notes)
    assert recipe.spec.runtime.precision == "int8"
    assert check_golden(Inspector(recipe, threads=2)) <= recipe.spec.golden.tolerance


@pytest.fixture(scope="module")
def fitted(resnet, good, tmp_path_factory):
    place = tmp_path_factory.mktemp("int8")
    told = Silent()
    return fit(prepare(options(good, place, **small(resnet)), told), told), told


def test_a_recipe_says_what_8_bits_cost(fitted):
    recipe, told = fitted
    parameters = recipe.spec.model.parameters
    loss = Loss.of(parameters)
    assert loss.good == 8
    assert loss.struck == 72
    assert 0 < loss.auroc <= 1
    assert 0 < loss.rank_agreement <= 1
    assert any(loss.words().split(" AUROC")[0] in note for note in told.notes)
    assert recipe.spec.runtime.words.startswith("int8, the rest in ")


def test_the_daemon_runs_what_the_limit_was_calibrated_with(fitted, monkeypatch):
    recipe, _ = fitted
    asked = []
    monkeypatch.setattr(
        "inspectord.inspect.compile_model",
        lambda model, device, precision, *rest: (
            asked.append(precision) or compile_model(model, device, precision, *rest)
        ),
    )
    assert check_golden(Inspector(recipe, threads=2)) <= recipe.spec.golden.tolerance
    assert asked == [recipe.spec.runtime.rest]
    core = ov.Core()
    assert share_in_8_bits(core.read_model(recipe.model_path)) > 0.9


def test_the_daemon_needs_no_nncf(fitted):
    recipe, _ = fitted
    code = (
        "import sys; sys.modules['nncf'] = None\n"
        "from pathlib import Path\n"
        "from inspectord.inspect import Inspector, check_golden\n"
        "from inspectord.recipe import load_recipe\n"
        "check_golden(Inspector(load_recipe(Path(sys.argv[1])), threads=2))"
    )
    subprocess.run([sys.executable, "-c", code, str(recipe.path)], check=True, timeout=60)


def test_the_same_frames_give_the_same_recipe(fitted, resnet, good, tmp_path):
    recipe, _ = fitted
    assert fit(prepare(options(good, tmp_path, **small(resnet)), Silent()), Silent()).hash == recipe.hash


def test_8_bits_that_lose_too_much_are_refused_with_the_numbers(resnet, good, tmp_path, monkeypatch):
    def one_bit(model, frames):
        """Whether a feature is above 1, and no more."""
        model = model.clone()
        result = model.get_results()[0]
        low, high = op.constant(np.float32(0)), op.constant(np.float32(2))
        rough = op.fake_quantize(result.input_value(0), low, high, low, high, 2)
        result.input(0).replace_source_output(rough.output(0))
        return model

    monkeypatch.setattr(eight_bits, "quantised", one_bit)
    plan = prepare(options(good, tmp_path, **small(resnet, max_int8_loss=0.02)), Silent())
    with pytest.raises(FitError, match=r"8 bits lose too much: on 8 good frames and 72 .*or allow 0\.\d+"):
        fit(plan, Silent())
    assert not (tmp_path / "recipes" / "flange" / "active").exists()


def test_the_frames_that_judge_8_bits_gave_no_ranges(resnet, good, tmp_path, monkeypatch):
    ranged, asked, written = [], [], eight_bits._written
    monkeypatch.setattr(
        eight_bits, "quantised", lambda model, frames: ranged.extend(frames) or quantised(model, frames)
    )
    monkeypatch.setattr(
        eight_bits,
        "_written",
        lambda plan, numbers, folder: (
            asked.extend(map(plan.good.read, numbers.tolist())) or written(plan, numbers, folder)
        ),
    )
    plan = prepare(options(good, tmp_path, **small(resnet)), Silent())
    eight_bits.in_eight_bits(plan, Silent())
    assert len(asked) == 8
    assert len(ranged) == len(plan.good) - 8
    assert not any(np.array_equal(one, other) for one in ranged for other in asked)


def test_loss_is_what_auroc_lacks_or_a_fifth_of_what_ranks_lack():
    assert Loss(0.9, 0.85, 1.0, 1.0, 8, 32).size == pytest.approx(0.05)
    assert Loss(0.9, 0.95, 0.9, 1.0, 8, 32).size == pytest.approx(0.02)


def test_scores_that_tell_nothing_apart_agree_only_with_such():
    flat, rising = np.ones(4), np.arange(4.0)
    assert [agreement(flat, flat), agreement(flat, rising), agreement(rising, 2 * rising)] == [1, 0, 1]


def test_quantising_tells_nobody_and_writes_nothing_to_standard_output():
    code = (
        "import numpy as np, openvino as ov\n"
        "from openvino import opset15 as op\n"
        "from calibrate.quantise import quantised\n"
        "images = op.parameter([1, 8, 8, 1], ov.Type.u8)\n"
        "planes = op.transpose(op.convert(images, ov.Type.f32), op.constant([0, 3, 1, 2]))\n"
        "kernel = op.constant(np.ones((1, 1, 3, 3), np.float32))\n"
        "y = op.convolution(planes, kernel, [1, 1], [0, 0], [0, 0], [1, 1])\n"
        "quantised(ov.Model([op.result(y)], [images]), [np.ones((8, 8, 1), np.uint8)] * 2)\n"
        "from nncf.telemetry.wrapper import NNCFTelemetry, telemetry\n"
        "assert not isinstance(telemetry, NNCFTelemetry)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_rest_goes_with_int8_and_only_with_it():
    for wrong in ({"precision": "int8"}, {"precision": "bf16", "rest": "f32"}):
        with pytest.raises(ValidationError, match="goes with precision int8"):
            RuntimeSpec(device="CPU", openvino="1", **wrong)
    spec = RuntimeSpec(device="CPU", openvino="1", precision="int8", rest="bf16")
    assert (spec.hint, RuntimeSpec(device="CPU", openvino="1", precision="f32").hint) == ("bf16", "f32")


def test_a_tolerance_for_int8_without_int8_is_refused(good, tmp_path, capsys):
    command = ["fit", str(good), "--product", "p", "--recipes", str(tmp_path), "--max-int8-loss", "0.1"]
    assert main(command) != 0
    assert "--precision int8 only" in capsys.readouterr().err


def test_an_int8_recipe_is_shown_with_its_rest(fitted):
    recipe, _ = fitted
    assert load_recipe(recipe.path).spec.runtime.hint in ("bf16", "f16", "f32")
