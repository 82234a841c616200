"""Pre-training: what it learns, keeps and exports; a killed run goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import errno
import functools
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="pre-training needs torch")

from calibrate.backbones import standard  # noqa: E402
from calibrate.backbones.lite import Lite, state_shapes  # noqa: E402
from calibrate.cli import main  # noqa: E402
from calibrate.pretrain import checkpoint, command, contrast, course, export, network, train  # noqa: E402
from calibrate.pretrain import corpus as corpora  # noqa: E402
from calibrate.pretrain.corpus import Corpus, read_corpus  # noqa: E402
from calibrate.pretrain.train import CHECKPOINT, NO_SINGLE, Settings, Training  # noqa: E402
from inspectord.errors import FitError  # noqa: E402
from tests.reference_networks import shaken  # noqa: E402
from tests.test_boundaries import BLOCK, ROOT, python  # noqa: E402

SMALL = Settings(steps=6, images=8, size=32)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


# --- what is learnt from it ---


def test_only_images_of_a_class_count_and_a_batch_without_any_gives_no_loss_and_no_nan():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = torch.tensor([3, NO_SINGLE, 0, NO_SINGLE, NO_SINGLE, 4])
    some = train._told(logits, classes)
    some.backward()
    kept = torch.nn.functional.cross_entropy(logits[[0, 2, 5]], classes[[0, 2, 5]], label_smoothing=0.1)
    assert some.item() == pytest.approx(kept.item(), rel=1e-6)
    assert (logits.grad[classes == NO_SINGLE] == 0).all()
    logits.grad = None
    none = train._told(logits, torch.full((6,), NO_SINGLE))
    none.backward()
    assert none == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", network.NETWORKS)
def test_each_stage_tells_the_classes_itself_and_the_second_the_singles(name):
    trainee = shaken(network.Trainee(name, 4, 3), seed=1)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    logits, alone = trainee(images)
    assert [each.shape for each in (*logits, alone)] == [(2, 4)] * 3 + [(2, 3)]
    *_, first, second = trainee.backbone.children()
    stages = [next(stage.parameters()) for stage in (first, second, trainee.stage3)]
    for told, deepest in zip((*logits, alone), (0, 1, 2, 1), strict=True):
        trainee.zero_grad()
        told.square().sum().backward(retain_graph=True)
        reached = [stage.grad is not None for stage in stages]
        assert reached == [True] * (deepest + 1) + [False] * (2 - deepest)


# --- the training ---

KILLED = """
import signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from calibrate.pretrain import course, train
from calibrate.pretrain.corpus import read_corpus
course.CHECKPOINT_EVERY = 2
settings = train.Settings(steps=6, images=8, size=32)
training = train.Training(read_corpus(Path(sys.argv[1])), settings, Path(sys.argv[2]))
for losses in training.run():
    if training.step == 3:
        print("three steps done", flush=True)
        signal.pause()
"""


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run that nothing disturbed: its folder, the training, the losses of its steps."""
    where = tmp_path_factory.mktemp("trained")
    training = Training(corpus, SMALL, where)
    return where, training, list(training.run())


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(folder, corpus, trained, tmp_path):
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "three steps done\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (tmp_path / f"{CHECKPOINT}.part").write_bytes(b"killed while writing")
    continued = Training(corpus, SMALL, tmp_path)
    assert continued.step == 2
    _, whole, every_loss = trained
    assert list(continued.run()) == every_loss[2:]
    expected = whole.averaged.state_dict()
    for name, value in continued.averaged.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rate": 0.001}, "rate 0.002, now 0.001"),
        ({"steps": 7, "seed": 3}, "steps 6, now 7, seed 0, now 3"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_they_are_named(corpus, trained, changed, told):
    where = trained[0]
    with pytest.raises(FitError, match=f"{where / CHECKPOINT} is another training's: {told}; .*--out"):
        Training(corpus, replace(SMALL, **changed), where)


def test_a_checkpoint_of_other_photographs_is_refused_and_they_are_named(folder, trained):
    fewer = read_corpus(folder, ("bags/red",))
    with pytest.raises(FitError, match=r"images of bags/red 4, now none; go on"):
        Training(fewer, SMALL, trained[0])


@pytest.mark.parametrize("damage", ["empty", "torn", "garbage", "foreign"])
def test_a_damaged_checkpoint_is_one_clear_error(corpus, trained, tmp_path, damage):
    path = tmp_path / CHECKPOINT
    whole = (trained[0] / CHECKPOINT).read_bytes()
    if damage == "foreign":
        torch.save({"model": torch.zeros(3)}, path)
    else:
        path.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "garbage": b"?" * 5000}[damage])
    with pytest.raises(FitError, match=f"{path} is damaged or of another version .*; remove it") as refused:
        Training(corpus, SMALL, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_disk_that_is_full_leaves_the_last_checkpoint_as_it_was(trained, tmp_path, monkeypatch):
    def full(state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / CHECKPOINT
    path.write_bytes((trained[0] / CHECKPOINT).read_bytes())
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(path, 4, {}, {})
    assert path.read_bytes() == (trained[0] / CHECKPOINT).read_bytes()


def test_a_diverging_run_ends_at_the_step_and_leaves_no_checkpoint(corpus, tmp_path):
    with pytest.raises(FitError, match=r"not finite at step 1; begin anew with a smaller --rate"):
        list(Training(corpus, replace(SMALL, rate=1e30), tmp_path).run())
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "_told", lambda logits, classes: (logits * 0).sqrt().sum())
    training = Training(corpus, SMALL, tmp_path)
    with pytest.raises(FitError, match="not finite at step 0"):
        list(training.run())
    assert all(torch.isfinite(value).all() for value in training.averaged.state_dict().values())


def test_a_step_moves_every_part_of_the_trainee(corpus, tmp_path):
    training = Training(corpus, replace(SMALL, steps=1, images=16), tmp_path)
    before = {name: value.clone() for name, value in training._trainee.named_parameters()}
    (losses,) = training.run()
    assert list(losses) == ["stage1", "stage2", "stage3", "single"]
    for name, value in training._trainee.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_what_is_exported_is_the_average_of_the_steps(corpus, tmp_path):
    training = Training(corpus, replace(SMALL, steps=2, average=0.9), tmp_path)
    states = [
        {name: value.clone() for name, value in training._trainee.state_dict().items()}
        for _ in training.run()
    ]
    for name, value in training.averaged.state_dict().items():
        if value.is_floating_point():  # batch norms' means and variances too
            assert torch.allclose(value, 0.9 * states[0][name] + 0.1 * states[1][name], atol=1e-6), name


def test_classes_that_look_unlike_are_learnt(tmp_path, monkeypatch):
    """Fine and coarse checks, in light and in dark; there is no texture that would be a class of its own."""
    checks = [np.kron(np.indices((k, k)).sum(0) % 2, np.ones((64 // k, 64 // k))) for k in (4, 16)]
    images = [
        np.repeat((c * 100 + 20 * i)[..., None], 3, 2).astype(np.uint8) for c in checks for i in range(6)
    ]
    checked = Corpus(images, np.repeat([0, 1], 6), ("checks/coarse", "checks/fine"))
    monkeypatch.setattr(course, "WARM_UP", 5)
    losses = list(Training(checked, replace(SMALL, steps=20, images=16), tmp_path).run())
    for stage in ("stage1", "stage2", "stage3"):
        assert np.mean([each[stage] for each in losses[-5:]]) < 0.4, stage  # by chance 0.69, at best 0.2
    assert {each["single"] for each in losses} == {0}


# --- the weights file ---


@pytest.fixture
def few_images_for_ranges(monkeypatch):
    monkeypatch.setattr(export, "RANGE_IMAGES", 1)
    monkeypatch.setattr(export, "SIZE", 64)


@pytest.fixture
def exported(corpus, tmp_path, few_images_for_ranges):
    """A network with unlike batch norms, laid out as by a training, its file, and what the file holds."""
    backbone = shaken(network.Lite(), seed=1).to(memory_format=torch.channels_last)
    path = tmp_path / "lite.safetensors"
    export.export(backbone, corpus, path)
    return backbone, path, load_file(path)


def joined(tensors, images):
    """The layer joined in floating point, by the graph."""
    plain = {name: value for name, value in tensors.items() if not name.endswith(".range")}
    entry = op.parameter([1, *images.shape[1:]], ov.Type.f32)
    (maps,) = Lite(plain, "", None).features(entry.output(0), [None])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(ov.Model([op.result(maps)], [entry], "joined"), "CPU", settings)
    return np.concatenate([compiled([image[None]])[0] for image in images])


def test_the_file_is_small_whole_and_in_half_precision(exported):
    _, path, tensors = exported
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.stat().st_size < 1e6
    for name, value in tensors.items():
        assert value.dtype == (np.float16 if name.endswith(".kernel") else np.float32)
        assert np.isfinite(value).all()
    assert {name: value.shape for name, value in tensors.items()} == state_shapes()


def test_the_file_computes_what_was_trained(exported):
    backbone, _, tensors = exported
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 96)).astype(np.float32)
    with torch.no_grad():
        fine, middle = backbone(torch.from_numpy(images))
    expected = torch.cat([torch.nn.functional.avg_pool2d(fine, 2), middle], 1).numpy()
    expected /= tensors["joined.spread"][:, None, None]
    assert np.abs(joined(tensors, images) - expected).max() < 1e-2 * np.abs(expected).max()


def test_every_joined_channel_that_moves_has_a_variance_of_one(exported, corpus):
    spread = exported[2]["joined.spread"]
    moves = spread > 0.1001 * np.median(spread)
    assert moves.mean() > 0.95
    variance = joined(exported[2], np.stack(list(export._range_images(corpus)))).var((0, 2, 3))
    np.testing.assert_allclose(variance[moves], 1, rtol=0.02)
    assert (variance[~moves] < 1).all()


@pytest.mark.parametrize("faint", [0.0, 1e-3])
def test_a_channel_that_hardly_moves_is_not_blown_up(corpus, few_images_for_ranges, tmp_path, faint):
    backbone = shaken(network.Lite(), seed=1)
    with torch.no_grad():
        for unit in (backbone.stage2.down, backbone.stage2.block[1]):
            for tensor, value in ((unit.norm.weight, faint), (unit.norm.bias, 0.0)):
                tensor[5] = value
    export.export(backbone, corpus, tmp_path / "lite.safetensors")
    tensors = load_file(tmp_path / "lite.safetensors")
    spread = tensors["joined.spread"]
    assert spread[48 + 5] == pytest.approx(0.1 * np.median(spread), rel=1e-5)
    maps = joined(tensors, np.stack(list(export._range_images(corpus))))[:, 48 + 5]
    assert (maps.var() > 0) == (faint > 0)
    assert maps.var() < 1e-3


def test_the_standard_network_keeps_torchvisions_names_and_the_spread(
    corpus, few_images_for_ranges, tmp_path
):
    backbone = shaken(network.Standard(), seed=1).to(memory_format=torch.channels_last)
    path = tmp_path / "standard.safetensors"
    export.export(backbone, corpus, path)
    tensors = load_file(path)
    assert {name: value.shape for name, value in tensors.items()} == standard.state_shapes()
    assert tensors["layer2.0.conv1.weight"].dtype == np.float16
    np.testing.assert_allclose(
        tensors["layer2.0.conv1.weight"],
        backbone.layer2[0].conv1.weight.detach().numpy(),
        rtol=1e-3,
        atol=1e-7,
    )
    assert standard.open_standard(None, path).layers == ("pooled",)


# --- the command ---


@pytest.fixture
def small(monkeypatch, few_images_for_ranges):
    monkeypatch.setattr(command, "Settings", functools.partial(Settings, images=8, size=32))
    monkeypatch.setattr(command, "Told", functools.partial(contrast.Settings, crops=4, cells=5, size=48))
    monkeypatch.setattr(command, "TELL_EVERY", 2)
    monkeypatch.setattr(command, "DESIGNS", 1)
    monkeypatch.setattr(corpora, "SIDE", 32)


def pretrain(*arguments):
    return main(["pretrain", *map(str, arguments)])


@pytest.mark.parametrize("asked", [(), ("--network", "lite")])
def test_the_command_trains_exports_and_when_repeated_exports_the_same(
    asked, folder, tmp_path, capsys, small
):
    arguments = (folder, "--out", tmp_path / "run", "--steps", 3, "--contrast", 2, "--threads", 1, *asked)
    assert pretrain(*arguments) == 0
    weights = tmp_path / "run" / f"{asked[-1] if asked else 'standard'}.safetensors"
    said = capsys.readouterr()
    assert said.out == f"weights: {weights}\n"
    assert "15 photographs of 4 classes" in said.err
    assert "training, step 2 of 3: stage1 " in said.err
    assert "telling places apart, step 2 of 2: stage1 " in said.err
    trained_on = torch.load(tmp_path / "run" / CHECKPOINT)["identity"]
    assert (trained_on["images of bags/red"], trained_on["images of scenes/cast 0"]) == (4, corpora.INSTANCES)
    before = weights.read_bytes()
    assert pretrain(*arguments) == 0
    said = capsys.readouterr().err
    assert "training: continuing after step 3" in said
    assert "telling places apart: continuing after step 2" in said
    assert weights.read_bytes() == before
    assert pretrain(*arguments[:5], "--contrast", 0, *arguments[7:]) == 0
    assert weights.read_bytes() != before  # the classes alone


def test_a_run_that_was_stopped_while_it_told_places_apart_goes_on_there(
    folder, tmp_path, capsys, small, monkeypatch
):
    monkeypatch.setattr(course, "CHECKPOINT_EVERY", 1)
    given = ("--steps", 2, "--contrast", 3, "--threads", 1)
    assert pretrain(folder, "--out", tmp_path / "whole", *given) == 0
    second = contrast.Contrast._losses

    def stopped(self, drawn):
        if drawn[2] == 2:
            raise KeyboardInterrupt
        return second(self, drawn)

    monkeypatch.setattr(contrast.Contrast, "_losses", stopped)
    with contextlib.suppress(KeyboardInterrupt):
        pretrain(folder, "--out", tmp_path / "parts", *given)
    assert not (tmp_path / "parts" / "standard.safetensors").exists()
    monkeypatch.setattr(contrast.Contrast, "_losses", second)
    capsys.readouterr()
    assert pretrain(folder, "--out", tmp_path / "parts", *given) == 0
    said = capsys.readouterr().err
    assert "training: continuing after step 2" in said
    assert "telling places apart: continuing after step 2" in said
    whole, parts = ((tmp_path / name / "standard.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_the_command_goes_on_from_given_weights_without_the_classes(folder, tmp_path, capsys, small):
    bundled = tmp_path / "bundled.safetensors"
    bundled.write_bytes(standard.WEIGHTS["standard"].read_bytes())
    arguments = (folder, "--out", tmp_path / "run", "--contrast", 2, "--start", bundled, "--threads", 1)
    assert pretrain(*arguments) == 0
    assert "telling places apart, step 2 of 2: stage1 " in capsys.readouterr().err
    made = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert made == [contrast.CHECKPOINT, "standard.safetensors"]
    first, found = load_file(bundled), load_file(tmp_path / "run" / "standard.safetensors")
    for name in ("conv1.weight", "layer2.1.conv2.weight"):
        change = np.abs(found[name].astype(float) - first[name])
        assert 0 < change.max() < 0.05 * np.abs(first[name]).max(), name


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--network", "lite", "--contrast", 5), "--start goes with --network standard, not lite"),
        ((), "--start needs the steps to go on with: give --contrast"),
    ],
)
def test_a_start_that_would_do_nothing_is_refused(folder, tmp_path, capsys, more, told):
    given = ("--start", tmp_path / "w.safetensors", *more)
    assert pretrain(folder, "--out", tmp_path / "run", *given) == FitError.exit_code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--steps", 5), "--steps and --rate are of the classes"),
        (("--rate", 0.1), "--steps and --rate are of the classes"),
        ((), "standard.safetensors would be overwritten; give another --out"),
    ],
)
def test_a_start_is_not_overwritten_and_takes_no_flags_of_the_classes(folder, tmp_path, capsys, more, told):
    path = tmp_path / "standard.safetensors"
    path.write_bytes(b"kept")
    assert pretrain(folder, "--out", tmp_path, "--start", path, "--contrast", 5, *more) == FitError.exit_code
    assert told in capsys.readouterr().err
    assert path.read_bytes() == b"kept"


def test_a_start_that_is_not_there_is_named(folder, tmp_path, capsys):
    path = tmp_path / "none.safetensors"
    assert pretrain(folder, "--out", tmp_path, "--start", path, "--contrast", 5) == FitError.exit_code
    assert f"--start: no weights at {path}" in capsys.readouterr().err


def test_a_teacher_has_no_places_to_tell_apart(folder, tmp_path, capsys):
    more = ("--network", "pdn-s", "--contrast", 5)
    assert pretrain(folder, "--out", tmp_path, *more) == FitError.exit_code
    assert "--contrast goes with --network standard or lite only" in capsys.readouterr().err


def test_a_start_of_another_network_is_one_clear_error(folder, tmp_path, resnet, capsys):
    assert pretrain(folder, "--out", tmp_path, "--start", resnet, "--contrast", 5) == FitError.exit_code
    assert "these are not weights of standard: missing joined.spread" in capsys.readouterr().err


def test_without_a_cuda_device_the_command_says_so(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pretrain(folder, "--out", tmp_path, "--device", "cuda") == FitError.exit_code
    assert capsys.readouterr().err.startswith("calibrate: torch finds no CUDA device; leave --device out")


def test_a_file_in_the_place_of_the_folder_is_found_before_the_training(folder, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    for out in (tmp_path / "run", tmp_path / "run" / "deeper"):
        assert pretrain(folder, "--out", out) == FitError.exit_code
        assert capsys.readouterr().err.startswith(f"calibrate: {out} can't be a folder")


def test_without_torch_help_is_given_and_the_command_says_what_to_install():
    code = BLOCK.format(blocked={"torch"}) + (
        "import contextlib, io\nfrom calibrate.cli import main\nsaid = io.StringIO()\n"
        "with contextlib.redirect_stderr(said):\n    print(main(['pretrain', 'corpus', '--out', 'run']))\n"
        "print(said.getvalue().strip())\nmain(['pretrain', '--help'])"
    )
    said = python(code)
    assert said.startswith(
        "73\ncalibrate: pre-training needs torch: `pip install 'inspectord[train]'`\nusage"
    )
    assert "SOURCE/CLASS/IMAGE.jpg" in said
    assert not (ROOT / "run").exists()
