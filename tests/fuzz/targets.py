"""The doors: each takes any bytes, may raise its documented error (kept in here), and must do no more.

What a target asserts besides is a promise of the module, so that wrong answers count as crashes too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from inspectord.errors import FrameError, MessageError, RecipeError, SettingsError
from inspectord.health import Health
from inspectord.journal import Journal
from inspectord.messages import LARGEST_BYTES, REPLY_SCHEMA, decode, encode
from inspectord.publish import History
from inspectord.recipe import content_hash, file_hash, load_recipe
from inspectord.replay import CHUNK, Replayer
from inspectord.settings import load_settings
from inspectord.sources import files
from tests.fuzz import chunks, mutate, seeds

FEWER_PIXELS = 1 << 22  # to set files.MOST_PIXELS to: the bound is tried, and there is time for the rest
LONGEST_ERROR = 20_000  # characters; an error is for people to read


@dataclass(frozen=True, slots=True)
class Target:
    """run: any bytes in, nothing out. share: of all inputs of a run."""

    run: Callable[[bytes], None]
    seeds: list[bytes]
    mutate: mutate.Mutator
    share: float


def targets(folder: Path) -> dict[str, Target]:
    """All doors; folder takes their files, best in memory."""
    images = {
        suffix: Target(image_target(folder / f"input.{suffix}"), made(), mutator, 0.04)
        for suffix, made, mutator in (
            ("png", seeds.png, chunks.png),
            ("jpg", seeds.jpeg, chunks.jpeg),
            ("bmp", seeds.bmp, chunks.bmp),
            ("tif", seeds.tiff, chunks.tiff),
        )
    }
    return {
        "messages": Target(messages, seeds.messages(), mutate.json_or_msgpack, 0.35),
        "replay": Target(replay_target(folder), seeds.requests(), mutate.json_or_msgpack, 0.25),
        "settings": Target(settings_target(folder / "input.toml"), seeds.settings(), mutate.as_toml, 0.09),
        "recipe": Target(recipe_target(folder / "recipe"), seeds.recipes(), mutate.as_json, 0.1),
        "names": Target(names, seeds.names(), mutate.flipped, 0.05),
        **images,
    }


def messages(data: bytes) -> None:
    """What decodes is a message that survives the wire again, in either encoding."""
    try:
        message = decode(data)
    except MessageError as error:
        _is_readable(error)
        return
    assert decode(encode(message, "json")) == message
    assert decode(encode(message, "msgpack")) == message


def replay_target(folder: Path) -> Callable[[bytes], None]:
    """One bounded JSON reply to anything at all; nothing may raise: it would end the daemon's thread."""
    history = History(10)
    journal = Journal(folder / "journal.sqlite", 100, Health())
    for seq in range(1, 30):
        history.put(seq, encode(seeds.message(seq)))
        journal.put(seeds.message(seq))
        journal.put(seeds.message(seq, boot_id="1" * 32))
    journal.close()
    replayer = Replayer(
        seeds.BOOT_ID, {"cam1": history}, folder / "journal.sqlite", lambda: {"state": "ready"}
    )

    def run(data: bytes) -> None:
        answer = replayer.answer(data)
        assert len(answer) < LARGEST_BYTES
        table = json.loads(answer)
        assert table["schema"] == REPLY_SCHEMA
        assert len(table.get("verdicts", [])) <= CHUNK

    return run


def settings_target(path: Path) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            settings = load_settings(path)
        except SettingsError as error:
            _is_readable(error)
            return
        settings.model_dump(mode="json")  # what `inspectord check` prints

    return run


def recipe_target(folder: Path) -> Callable[[bytes], None]:
    """JSON of "toml" and "scores" is written with the right hashes; other bytes are recipe.toml as it is."""
    (folder / "golden").mkdir(parents=True)
    for name in ("model.xml", "model.bin", "golden/marked.png"):
        (folder / name).write_bytes(b"<")
    hashes = {name: file_hash(folder / name) for name in ("model.xml", "model.bin", "golden/marked.png")}

    def run(data: bytes) -> None:
        _write_recipe(folder, data, hashes)
        try:
            recipe = load_recipe(folder)
            golden = recipe.golden()
            recipe.verified_again().check_untouched()
        except RecipeError as error:
            _is_readable(error)
            return
        assert all((folder / name).resolve().is_relative_to(folder) for name in recipe.spec.files)
        assert all(frame.path.is_relative_to(folder) for frame in golden)
        assert all(np.isfinite([frame.score, *frame.tile_scores]).all() for frame in golden)
        assert np.prod(recipe.spec.frame.shape, dtype=object) <= 3 * 160_000_000

    return run


def _write_recipe(folder: Path, data: bytes, hashes: dict[str, str]) -> None:
    scores = folder / "golden" / "scores.json"
    try:
        whole = json.loads(data)
        scores.write_text(json.dumps(whole["scores"]))
        table = whole["toml"]
        table["files"] = {**table.get("files", {}), **hashes, "golden/scores.json": file_hash(scores)}
        table["content_hash"] = content_hash(table)
        written = tomli_w.dumps(table).encode()
    except Exception:  # whatever is wrong with this input, it can still be tried as it is
        written = data
    (folder / "recipe.toml").write_bytes(written)


def image_target(path: Path) -> Callable[[bytes], None]:
    """Sound pixels of a bounded number, or FrameError."""

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            pixels = files.read_image(path)
        except FrameError as error:
            _is_readable(error)
            return
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] in (1, 3)
        assert 0 < pixels.shape[0] * pixels.shape[1] <= files.MOST_PIXELS

    return run


def names(data: bytes) -> None:
    """Any file names can be put in order; the order does not depend on how they came."""
    found = [name[:255] for name in data.decode("utf-8", "surrogateescape").split("\0")]
    backwards = found[::-1]
    assert sorted(found, key=files.natural_key) == sorted(backwards, key=files.natural_key)


def _is_readable(error: Exception) -> None:
    text = str(error)
    assert text
    assert len(text) < LONGEST_ERROR


def mutated(target: Target, rng: random.Random) -> bytes:
    """A seed with some changes."""
    data = rng.choice(target.seeds)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        data = target.mutate(data, rng)[:100_000]
    return data
