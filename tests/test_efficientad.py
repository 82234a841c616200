"""EfficientAD's networks, teachers and map: the paper's, in torch and in the graph."""

from __future__ import annotations

import dataclasses

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

torch = pytest.importorskip("torch")

from reference_efficientad import (  # noqa: E402
    MEDIUM,
    SMALL,
    autoencoder_256,
    combined,
    folded_lite,
    hard_loss,
    pdn,
)
from safetensors.numpy import load_file, save_file  # noqa: E402

from calibrate.backbones.lite import WEIGHTS, Lite  # noqa: E402
from calibrate.efficientad import networks, teachers  # noqa: E402
from calibrate.efficientad.detector import new_detector  # noqa: E402
from calibrate.efficientad.inputs import Others, recoloured  # noqa: E402
from calibrate.efficientad.settings import LITE, Settings  # noqa: E402
from calibrate.efficientad.teachers import LiteTeacher, open_teacher  # noqa: E402
from calibrate.efficientad.train import Training, hard_mean  # noqa: E402
from inspectord.errors import FitError  # noqa: E402
from inspectord.inspect import compile_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PDN = {"efficientad-s": (networks.pdn_small, SMALL), "efficientad-m": (networks.pdn_medium, MEDIUM)}


def pdn_state(kind, seed=0):
    """A teacher's state dict as nelson1425/EfficientAD names it: places in a Sequential without our first."""
    torch.manual_seed(seed)
    state = PDN[kind][0](384).state_dict()
    return {f"{int(name.partition('.')[0]) - 1}.{name.partition('.')[2]}": v for name, v in state.items()}


def teacher_file(folder, kind, layout="nelson"):
    state = pdn_state(kind)
    if layout != "nelson":
        places = sorted({int(name.partition(".")[0]) for name in state})
        number = {str(place): f"conv{1 + index}" for index, place in enumerate(places)}
        state = {f"{number[n.partition('.')[0]]}.{n.partition('.')[2]}": v for n, v in state.items()}
    if layout == "safetensors":
        path = folder / "teacher.safetensors"
        save_file({name: value.numpy() for name, value in state.items()}, path)
    else:
        path = folder / f"teacher_{layout}.pth"
        torch.save(state, path)
    return path


def shaken(detector):
    """Random scales, and batch norms that did something: a forgotten tensor shows."""
    rng = torch.Generator().manual_seed(5)
    for name, value in detector.trained.named_buffers():
        if name.endswith(("running_var", "spread")):
            value.uniform_(0.5, 2.0, generator=rng)
        elif name == "mean" or name.endswith("running_mean"):
            value.normal_(0, 0.2, generator=rng)
    detector.trained.quantiles.copy_(torch.tensor([[0.2, 0.9], [0.4, 0.5]]))
    detector.trained.usual.fill_(1.7)
    return detector


def images(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32))


def in_the_graph(detector, batch):
    entry = op.parameter(list(batch.shape), ov.Type.f32)
    model = ov.Model([op.result(detector.build(entry.output(0)))], [entry], "map")
    request = compile_model(model, "CPU", "f32", 1).create_infer_request()
    request.infer([batch.numpy()])
    return request.get_output_tensor(0).data[:, 0].copy()


def close(found, known):
    return float(np.abs(found - known).max() / np.abs(known).max()) < 1e-3


# --- the same mathematics as the paper ---


def by_the_paper(teacher, student, autoencoder, trained):
    """The paper's map, our constant and our unit."""
    quantiles = trained.quantiles.tolist()
    with torch.no_grad():
        known = combined(teacher, student, autoencoder, trained.mean, trained.spread, quantiles).numpy()
    shifted = known + sum(0.05 * low / (high - low) for low, high in quantiles)
    return shifted / float(trained.usual)


@pytest.mark.parametrize(("kind", "side"), [("efficientad-s", 256), ("efficientad-m", 64)])
def test_the_graphs_map_is_the_papers_up_to_a_constant_and_a_unit(kind, side, tmp_path):
    detector = shaken(new_detector(kind, open_teacher(kind, teacher_file(tmp_path, kind), 1), side, side, 3))
    batch, trained, plan = images((1, 1, side, side)), detector.trained, PDN[kind][1]
    by_hand = side == 256  # the size whose decoder the paper gives in numbers
    known = by_the_paper(
        pdn(batch, plan, pdn_state(kind)),
        pdn(batch, plan, trained.student.state_dict()),
        autoencoder_256(batch, trained.autoencoder.state_dict()) if by_hand else trained.autoencoder(batch),
        trained,
    )
    found = in_the_graph(detector, batch)
    assert found.shape == (1, side // 4, side // 4)
    assert close(found[:, 4:-4, 4:-4], known)
    assert (found[:, :4] == found[:, 4:5]).all()
    assert (found[:, :, -4:] == found[:, :, -5:-4]).all()
    assert (found > 0).all()


def test_lites_map_is_the_papers_with_the_lite_backbone_as_teacher():
    state = load_file(WEIGHTS)
    # 8-bit rounding jumps where the last bit of a sum differs, so it is left out here.
    plain = {name: value for name, value in state.items() if not name.endswith(".range")}
    detector = shaken(new_detector("efficientad-lite", LiteTeacher(Lite(plain, "", None), 1), 64, 96, 3))
    batch, trained = images((2, 3, 64, 96)), detector.trained
    with torch.no_grad():
        known = by_the_paper(
            folded_lite(batch, state), trained.student(batch), trained.autoencoder(batch), trained
        )
    assert close(in_the_graph(detector, batch), known)


@pytest.mark.parametrize(("kind", "shape"), [("efficientad-s", (36, 100)), ("efficientad-lite", (40, 104))])
@pytest.mark.parametrize("channels", [1, 3])
def test_torch_and_graph_agree_on_tiles_of_other_sizes(kind, shape, channels, tmp_path):
    weights = teacher_file(tmp_path, kind) if kind in PDN else None
    detector = shaken(new_detector(kind, open_teacher(kind, weights, 1), *shape, 1))
    batch = images((2, channels, *shape))
    found = in_the_graph(detector, batch)
    stride = 4 if kind in PDN else 8
    assert found.shape == (2, shape[0] // stride, shape[1] // stride)
    assert close(found, detector.combined(batch).numpy())


def test_the_teachers_normalisation_decides_the_map(tmp_path):
    detector = shaken(new_detector("efficientad-lite", open_teacher("efficientad-lite", None, 1), 64, 64, 1))
    batch = images((1, 1, 64, 64))
    before = in_the_graph(detector, batch)
    detector.trained.spread *= 1.1
    assert not close(in_the_graph(detector, batch), before)
    assert close(in_the_graph(detector, batch), detector.combined(batch).numpy())


@pytest.mark.parametrize("quantile", [0.5, 0.99, 0.999])
@pytest.mark.parametrize("count", [10, 1000, 12345])
def test_the_hard_loss_is_equation_1(quantile, count):
    errors = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert float(hard_mean(errors, quantile)) == pytest.approx(float(hard_loss(errors, quantile)), rel=1e-6)


class Still:
    """Tiles without any difference between them or their places."""

    shape = (1, 48, 48)

    def read(self, numbers):
        return torch.full((len(numbers), *self.shape), 20.0)


def training_of(kind, tmp_path, tiles):
    weights = teacher_file(tmp_path, kind) if kind in PDN else None
    detector = new_detector(kind, open_teacher(kind, weights, 1), 48, 48, 3)
    settings = Settings(mixed=False) if kind in PDN else dataclasses.replace(LITE, mixed=False)
    numbers = np.arange(4)
    return Training(detector, tiles, numbers, numbers, settings, torch.device("cpu"))


def test_the_losses_are_algorithm_1(tmp_path):
    training = training_of("efficientad-s", tmp_path, Still())
    shaken(training.detector)
    tiles, changed, others = (images((2, 3, 48, 48), seed) for seed in range(3))
    trained, teacher = training.trained, pdn_state("efficientad-s")
    for layer in trained.autoencoder.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    found = training._losses(tiles, changed, others)
    with torch.no_grad():
        of_student = [pdn(x, SMALL, trained.student.state_dict()) for x in (tiles, changed, others)]
        of_teacher = [(pdn(x, SMALL, teacher) - trained.mean) / trained.spread for x in (tiles, changed)]
        told = trained.autoencoder(changed)
        expected = {
            "student": hard_loss((of_teacher[0] - of_student[0][:, :384]) ** 2, 0.999),
            "others": (of_student[2][:, :384] ** 2).mean(),
            "autoencoder": ((of_teacher[1] - told) ** 2).mean(),
            "together": ((told - of_student[1][:, 384:]) ** 2).mean(),
        }
    assert {name: float(loss.detach()) for name, loss in found.items()} == pytest.approx(
        {name: float(loss) for name, loss in expected.items()}, rel=1e-4
    )


@pytest.mark.parametrize("kind", ["efficientad-s", "efficientad-lite"])
def test_a_still_tile_can_be_taught_and_anything_there_is_strange(kind, tmp_path):
    training = training_of(kind, tmp_path, Still())
    training._normalise()
    training._learn(*training._draw(), rate=1e-4)
    training._check()
    training.finish()
    tile = Still().read([0])
    usual = training.detector.combined(tile)
    tile[..., 20:28, 20:28] = 90.0
    struck = training.detector.combined(tile)
    assert torch.isfinite(struck).all()
    assert float(usual.mean()) == pytest.approx(1.0, rel=0.3)
    assert float(struck.max()) > 2 * float(usual.max())


def test_a_teacher_that_is_not_finite_is_refused(tmp_path):
    state = pdn_state("efficientad-s")
    next(iter(state.values()))[0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "teacher.pth")
    with pytest.raises(FitError, match="teacher of efficientad-s are not finite; get the file again"):
        open_teacher("efficientad-s", tmp_path / "teacher.pth", 1)


def test_lite_takes_less_than_3_gmac_at_256_pixels():
    teacher = open_teacher("efficientad-lite", None, 1)
    detector = new_detector("efficientad-lite", teacher, 256, 256, 0)
    entry = op.parameter([1, 3, 256, 256], ov.Type.f32)
    model = ov.Model([op.result(detector.build(entry.output(0)))], [entry], "map")
    total = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            kernel, given = node.input_value(1).get_shape(), node.output(0).get_shape()
            total += int(np.prod(kernel[1:])) * int(np.prod(given))
    assert 1e9 < total < 3e9


# --- teachers ---


@pytest.mark.parametrize("kind", PDN)
@pytest.mark.parametrize("layout", ["nelson", "anomalib", "safetensors"])
def test_a_teacher_is_read_in_the_common_layouts(kind, layout, tmp_path):
    teacher = open_teacher(kind, teacher_file(tmp_path, kind, layout), 1)
    batch = images((1, 3, 40, 40))
    with torch.no_grad():
        assert close(teacher(batch).numpy(), pdn(batch, PDN[kind][1], pdn_state(kind)).numpy())


def test_another_networks_weights_are_refused(tmp_path):
    with pytest.raises(FitError, match=r"not weights of the teacher of efficientad-s.*teacher_small\.pth"):
        open_teacher("efficientad-s", teacher_file(tmp_path, "efficientad-m"), 1)
    more = tmp_path / "more.safetensors"
    state = {name: value.numpy() for name, value in pdn_state("efficientad-s").items()}
    save_file(state | {"9.weight": np.zeros(3, np.float32)}, more)
    with pytest.raises(FitError, match="more than that network"):
        open_teacher("efficientad-s", more, 1)


def test_without_a_teacher_one_is_told_which_file_to_give():
    with pytest.raises(FitError, match=r"--weights FILE.*teacher_medium\.pth.*efficientad-lite need none"):
        open_teacher("efficientad-m", None, 1)


@pytest.mark.parametrize("content", [b"not weights", None], ids=["damaged", "missing"])
def test_a_damaged_package_is_told(content, tmp_path, monkeypatch):
    if content:
        (tmp_path / "teacher").write_bytes(content)
    monkeypatch.setattr(teachers, "BUNDLED", tmp_path / "teacher")
    with pytest.raises(FitError, match=r"the bundled weights .*teacher .*: .*; install inspectord again"):
        open_teacher("efficientad-s", None, 1)


@pytest.mark.parametrize(("kind", "least"), [("efficientad-s", 36), ("efficientad-lite", 32)])
def test_a_tile_smaller_than_what_the_network_sees_is_refused(kind, least, tmp_path):
    weights = teacher_file(tmp_path, kind) if kind in PDN else None
    teacher = open_teacher(kind, weights, 1)
    new_detector(kind, teacher, least, least, 0)
    with pytest.raises(FitError, match=f"at least {least} on each side"):
        new_detector(kind, teacher, least, least - 4, 0)


# --- what training sees besides good tiles ---


def test_colours_change_by_at_most_a_fifth_and_shapes_stay():
    batch = images((40, 3, 8, 8), 1).clamp(20, 200)
    changed = recoloured(batch, np.random.default_rng(0))
    ratios = (changed.std((1, 2, 3)) / batch.std((1, 2, 3))).tolist()
    assert min(ratios) < 0.95
    assert max(ratios) > 1.05
    assert all(0.79 < ratio < 1.21 for ratio in ratios)
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255


def test_scenes_of_a_seed_are_the_same_in_any_order():
    first, second = Others(40, 48, 7), Others(40, 48, 7)
    second.draw(3, np.random.default_rng(9))
    one, two = (each.draw(4, np.random.default_rng(1)) for each in (first, second))
    assert torch.equal(one, two)
    assert one.shape == (4, 3, 40, 48)
    other = Others(40, 48, 8).draw(4, np.random.default_rng(1))
    assert not torch.equal(one, other)
