"""Pre-training: what it reads, compares and asks for; a killed run goes on as if nothing had happened."""

from __future__ import annotations

import errno
import functools
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="pre-training needs torch")

from calibrate.backbones.lite import Lite, state_shapes  # noqa: E402
from calibrate.cli import main  # noqa: E402
from calibrate.pretrain import checkpoint, command, episodes, export, losses, train  # noqa: E402
from calibrate.pretrain.corpus import read_corpus  # noqa: E402
from calibrate.pretrain.train import CHECKPOINT, Settings, Trainee, Training  # noqa: E402
from inspectord.errors import FitError  # noqa: E402
from tests.reference_networks import shaken  # noqa: E402
from tests.test_boundaries import BLOCK, ROOT, python  # noqa: E402

SMALL = Settings(steps=6, parts=2, photographs=4, size=32)
pytestmark = pytest.mark.usefixtures("one_torch_thread")
PHOTOGRAPHS = {"bags/blue": 3, "bags/red": 4, "wood_screws/bent": 2, "wood_screws/good": 5}


def write_corpus(folder):
    """Blurred coloured noise of unlike sizes, laid out as SOURCE/CLASS/IMAGE.jpg."""
    rng = np.random.default_rng(0)
    for name, count in PHOTOGRAPHS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.jpg"), cv2.resize(coarse, (64, 48 + number)))
    (folder / "README.md").write_text("no image, no class")
    (folder / "bags" / "notes").mkdir()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def corpus(folder):
    return read_corpus(folder)


# --- the corpus ---


def test_a_corpus_is_read_in_the_order_of_its_names(corpus):
    assert corpus.names == tuple(PHOTOGRAPHS)
    assert np.bincount(corpus.classes).tolist() == list(PHOTOGRAPHS.values())
    assert [image.shape for image in corpus.images[:2]] == [(48, 64, 3), (49, 64, 3)]
    assert [m.tolist() for m in corpus.members(["wood_screws"])] == [[7, 8], [9, 10, 11, 12, 13]]


def test_channels_are_red_green_blue(tmp_path):
    (tmp_path / "paint" / "red").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "paint" / "red" / "0.png"), np.full((8, 8, 3), (0, 0, 255), np.uint8))
    assert read_corpus(tmp_path).images[0][0, 0].tolist() == [255, 0, 0]


def test_sources_and_classes_can_be_left_out(folder):
    assert read_corpus(folder, ("bags", "wood_screws/bent")).names == ("wood_screws/good",)


def test_what_cannot_be_left_out_is_named(folder):
    """A name in the wrong case once trained on what was meant for choosing between trainings."""
    with pytest.raises(FitError, match=r"has no Bags, bags/Red; --without"):
        read_corpus(folder, ("bags/Red", "Bags", "bags/blue"))


def test_an_unreadable_photograph_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    torn = tmp_path / "copy" / "bags" / "red" / "2.jpg"
    torn.write_bytes(b"no image")
    with pytest.raises(FitError, match=f"{torn} is no readable image"):
        read_corpus(tmp_path / "copy")


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(FitError, match=f"no images in {tmp_path}; .*SOURCE/CLASS/IMAGE"):
        read_corpus(tmp_path)


# --- the losses ---


def test_nearest_gives_the_distance_to_and_the_difference_from_the_nearest_patch_of_the_same_part():
    rng = np.random.default_rng(0)
    queries, support = rng.normal(size=(2, 3, 5, 2, 4)), rng.normal(size=(2, 2, 5, 2, 4))
    distance, residual = losses.nearest(torch.tensor(queries), torch.tensor(support))
    assert distance.shape == (2, 3, 2, 4)
    for part, query, row, column in np.ndindex(2, 3, 2, 4):
        patch = queries[part, query, :, row, column]
        apart = patch - support[part].transpose(0, 2, 3, 1).reshape(-1, 5)
        closest = apart[np.argmin(np.square(apart).sum(1))]
        np.testing.assert_allclose(residual[part, query, :, row, column], closest, atol=1e-6)
        expected = np.sqrt(np.square(closest).sum() + 1e-6)
        np.testing.assert_allclose(distance[part, query, row, column], expected, rtol=1e-6)


def test_gradients_reach_support_and_queries_even_where_they_are_equal():
    support = torch.rand(1, 2, 3, 2, 2).requires_grad_()
    queries = torch.cat([torch.rand(1, 1, 3, 2, 2), support.detach()[:, :1]], 1).requires_grad_()
    losses.nearest(queries, support)[0].sum().backward()
    assert queries.grad.abs().sum() > 0
    assert support.grad.abs().sum() > 0
    assert torch.isfinite(queries.grad).all()


def masked(*boxes):
    """Struck and clean cells, 8 x 8 of 8 pixels a side, of a mask with these boxes (y, x, height, width)."""
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    for y, x, height, width in boxes:
        mask[:, :, y : y + height, x : x + width] = True
    struck, clean = losses.cells(mask, 8, 8)
    return struck[0], clean[0]


def rectangle(rows, columns):
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[rows, columns] = True
    return expected


def test_covered_cells_are_struck_and_their_neighbours_count_for_neither():
    struck, clean = masked((16, 24, 16, 25))  # an eighth of the next two cells too
    assert torch.equal(struck, rectangle(slice(2, 4), slice(3, 6)))
    assert torch.equal(~clean, rectangle(slice(1, 5), slice(2, 8)))


def test_a_tiny_defect_marks_the_cell_that_has_most_of_it():
    struck, clean = masked((7, 22, 3, 3))
    assert torch.equal(struck, rectangle([1], [2]))
    assert not (struck & clean).any()


def test_what_is_too_small_to_see_marks_no_cell_and_a_good_frame_is_clean():
    for boxes in ([(20, 20, 1, 1)], []):
        struck, clean = masked(*boxes)
        assert not struck.any()
        assert clean.all()


def judged(far):
    """Both losses of two parts with two frames: one cell of the first frame is struck and this far away."""
    logits = torch.full((2, 2, 4, 4), -1.0)
    struck = torch.zeros_like(logits, dtype=torch.bool)
    struck[0, 0, 1, 1] = True
    logits[struck] = far
    return [float(loss(logits, struck, ~struck)) for loss in (losses.balanced, losses.ranked)]


def test_both_losses_fall_as_defects_move_away():
    found = np.array([judged(far) for far in (-3.0, -1.0, 1.0, 5.0)])
    assert (np.diff(found, axis=0) < 0).all()


def test_one_struck_cell_counts_as_much_as_all_clean_ones():
    zeros, struck = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    struck[0, 0, 0] = True
    loss = losses.balanced(zeros.requires_grad_(), struck, ~struck)
    loss.backward()
    assert zeros.grad[struck].sum() == pytest.approx(-0.25)
    assert zeros.grad[~struck].sum() == pytest.approx(0.25)


def test_a_defect_is_ranked_against_the_good_cells_of_its_own_part_only():
    logits = torch.zeros(2, 2, 4, 4)
    struck = torch.zeros_like(logits, dtype=torch.bool)
    struck[0, 0, 1, 1] = True
    before = losses.ranked(logits, struck, ~struck)
    logits[1] = 9.0
    assert losses.ranked(logits, struck, ~struck) == before
    logits[0, 1] = 9.0
    assert losses.ranked(logits, struck, ~struck) > before + 5


@pytest.mark.parametrize("everywhere", [True, False], ids=["all struck", "none struck"])
def test_frames_without_a_pair_to_rank_give_no_loss_and_no_nan(everywhere):
    logits = torch.randn(1, 2, 4, 4).requires_grad_()
    struck = torch.full((1, 2, 4, 4), everywhere)
    loss = losses.ranked(logits, struck, ~struck)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


# --- the episodes ---


def drawn(corpus, step=0, seed=0, parts=6):
    return episodes.Episodes(corpus, 64, seed, torch.device("cpu")).draw(step, parts)


def test_an_episode_depends_on_seed_and_step_alone(corpus):
    first = drawn(corpus, step=5)
    assert first.support.shape == first.queries.shape == (6, 4, 3, 64, 64)
    assert first.mask.shape == (6, 4, 1, 64, 64)
    for same, now in zip(first, drawn(corpus, step=5), strict=True):
        assert torch.equal(same, now)
    assert not torch.equal(first.queries, drawn(corpus, step=6).queries)
    assert not torch.equal(first.queries, drawn(corpus, step=5, seed=1).queries)


def test_a_grey_part_stays_grey_through_defects_and_light(corpus, monkeypatch):
    def grey(episode):
        everything = torch.cat([episode.support, episode.queries], 1)
        return (everything == everything[:, :, :1]).flatten(1).all(1)

    assert 0 < grey(drawn(corpus)).sum() < 6
    monkeypatch.setattr(episodes, "GREY", 1.0)
    assert grey(drawn(corpus)).all()


def test_the_mask_is_empty_where_no_defect_struck_and_covers_the_change_where_one_did(corpus, monkeypatch):
    monkeypatch.setattr(episodes, "STRUCK", 0.5)
    episode = drawn(corpus)
    monkeypatch.setattr(episodes, "STRUCK", 0.0)
    good = drawn(corpus)
    assert not good.mask.any()
    assert torch.equal(good.support, episode.support)
    struck = episode.mask.flatten(2).any(2)
    assert 0.2 < struck.float().mean() < 0.8
    assert torch.equal(episode.queries[~struck], good.queries[~struck])
    change = (episode.queries - good.queries).abs().mean(2, keepdim=True)
    assert change[episode.mask].mean() > 10 * change[~episode.mask].mean()


# --- the training ---

KILLED = """
import signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from calibrate.pretrain import train
from calibrate.pretrain.corpus import read_corpus
train.CHECKPOINT_EVERY = 2
settings = train.Settings(steps=6, parts=2, photographs=4, size=32)
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
    with pytest.raises(FitError, match="photographs of bags/red 4, now none; "):
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
    monkeypatch.setattr(train, "balanced", lambda logits, struck, clean: (logits * 0).sqrt().sum())
    training = Training(corpus, SMALL, tmp_path)
    with pytest.raises(FitError, match="not finite at step 0"):
        list(training.run())
    assert all(torch.isfinite(value).all() for value in training.averaged.state_dict().values())


# --- the weights file ---


@pytest.fixture
def few_images_for_ranges(monkeypatch):
    monkeypatch.setattr(export, "RANGE_IMAGES", 1)
    monkeypatch.setattr(export, "SIZE", 64)


@pytest.fixture
def exported(corpus, tmp_path, few_images_for_ranges):
    """A network with unlike batch norms, its file, and what the file holds."""
    trainee = shaken(Trainee(len(corpus.names)), seed=1)
    path = tmp_path / "lite.safetensors"
    export.export(trainee, corpus, path)
    return trainee, path, load_file(path)


def test_the_file_is_small_whole_and_in_half_precision(exported):
    _, path, tensors = exported
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.stat().st_size < 4e6
    for name, value in tensors.items():
        assert value.dtype == (np.float16 if name.endswith(".kernel") else np.float32)
        assert np.isfinite(value).all()
    assert {name: value.shape for name, value in tensors.items()} == state_shapes()


def test_the_file_computes_what_was_trained(exported, corpus):
    trainee, _, tensors = exported
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 96)).astype(np.float32)
    plain = {name: value for name, value in tensors.items() if not name.endswith(".range")}
    entry = op.parameter(list(images.shape), ov.Type.f32)
    (metric,) = Lite(plain, "", None).features(entry.output(0), [None])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(ov.Model([op.result(metric)], [entry], "metric"), "CPU", settings)
    with torch.no_grad():
        expected = trainee.backbone(torch.from_numpy(images)).numpy()
    expected /= export._spread(trainee, np.stack(list(export._range_images(corpus))))
    assert np.abs(compiled([images])[0] - expected).max() < 1e-2 * np.abs(expected).max()


def test_the_embedding_has_a_variance_of_one(exported, corpus):
    trainee, _, _ = exported
    images = np.stack(list(export._range_images(corpus)))
    before = export._spread(trainee, images)
    with torch.no_grad():
        trainee.backbone.metric.weight.mul_(3)
        trainee.backbone.metric.bias.mul_(3)
    assert export._spread(trainee, images) == pytest.approx(3 * before, rel=1e-4)


# --- the command ---


@pytest.fixture
def small(monkeypatch, few_images_for_ranges):
    monkeypatch.setattr(command, "Settings", functools.partial(Settings, parts=2, photographs=4, size=32))
    monkeypatch.setattr(command, "TELL_EVERY", 2)


def pretrain(*arguments):
    return main(["pretrain", *map(str, arguments)])


def test_the_command_trains_exports_and_when_repeated_exports_the_same(folder, tmp_path, capsys, small):
    arguments = (folder, "--out", tmp_path / "run", "--steps", 3, "--threads", 1)
    assert pretrain(*arguments) == 0
    weights = tmp_path / "run" / command.WEIGHTS
    said = capsys.readouterr()
    assert said.out == f"weights: {weights}\n"
    assert "14 photographs of 4 classes" in said.err
    assert "step 2 of 3: distance " in said.err
    before = weights.read_bytes()
    assert pretrain(*arguments) == 0
    assert "continuing after step 3" in capsys.readouterr().err
    assert weights.read_bytes() == before


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
