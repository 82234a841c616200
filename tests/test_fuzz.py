"""Hostile bytes at every door: the documented error or a sound result, and never more memory than allowed.

The long run over the same targets is `make fuzz`.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inspectord.errors import FrameError, MessageError
from inspectord.messages import decode, unpack
from inspectord.replay import Replayer
from inspectord.sources import files
from tests.fuzz.targets import FEWER_PIXELS, Target, mutated, targets

ROOT = Path(__file__).parent.parent
NAMES = ("messages", "replay", "settings", "recipe", "names", "png", "jpg", "bmp", "tif")
FAST = settings(
    deadline=None, derandomize=True, max_examples=400, suppress_health_check=list(HealthCheck), database=None
)
# Of this program alone, in MB: getrusage tells of the larger one that it was forked from.
PEAK = "print([int(line.split()[1]) // 1024 for line in open('/proc/self/status') if 'VmHWM' in line][0])"


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def fewer_pixels(monkeypatch):
    monkeypatch.setattr(files, "MOST_PIXELS", FEWER_PIXELS)


@pytest.mark.parametrize("name", NAMES)
def test_every_seed_is_sound(doors, name):
    """Or the mutators would only try the first check of each door."""
    for seed in doors[name].seeds:
        doors[name].run(seed)


@pytest.mark.parametrize("name", NAMES)
def test_changed_inputs_give_an_answer_or_the_documented_error(doors, fewer_pixels, name):
    @FAST
    @given(st.integers(0, 2**32))
    def each(seed):
        doors[name].run(mutated(doors[name], random.Random(seed)))

    each()


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_give_an_answer_or_the_documented_error(doors, fewer_pixels, name):
    @FAST
    @given(st.binary(max_size=2000))
    @example(b"")
    @example(b"\0" * 5000)
    @example(b"[" * 100_000)
    @example(b"9" * 10_000)
    def each(data):
        doors[name].run(data)

    each()


def test_a_target_notices_what_is_not_documented(doors):
    """The harness itself: a door that raises anything else fails its test."""

    def leaky(data: bytes) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        Target(leaky, [b"seed"], lambda data, rng: data, 1.0).run(mutated(doors["names"], random.Random(1)))


# What the fuzzers found, each once.


@pytest.mark.parametrize("limit", ["1" + "0" * 400, str(2**63)])
def test_a_number_beyond_64_bits_is_no_message(doors, limit):
    payload = doors["messages"].seeds[0].replace(b'"limit":0.5', f'"limit":{limit}'.encode())
    with pytest.raises(MessageError, match="limit"):
        decode(payload)


def test_half_a_surrogate_pair_is_no_text(doors):
    payload = doors["messages"].seeds[0].replace(b'"part-1"', b'"\\ud800"')
    with pytest.raises(MessageError, match="part_id"):
        decode(payload)


def test_a_request_in_msgpack_gets_an_answer_where_msgpack_is_not_installed(tmp_path, monkeypatch):
    """It ended the daemon's replay thread, and so the daemon: one byte from anybody who may connect."""
    monkeypatch.setattr("inspectord.messages.find_spec", lambda name: None)
    answer = json.loads(Replayer("0" * 32, {}, tmp_path / "none", dict).answer(b"\x80"))
    assert "msgpack" in answer["error"]


def test_a_reply_never_repeats_an_endless_request(tmp_path):
    request = json.dumps({"what": "replay", "camera": "cam1", "boot_id": "9" * 900_000}).encode()
    assert unpack(request)["camera"] == "cam1"
    assert len(Replayer("0" * 32, {}, tmp_path / "none", dict).answer(request)) < 1000


def test_superscripts_in_file_names_are_no_numbers():
    assert sorted(["²2.png", "²10.png", "1.png"], key=files.natural_key) == ["1.png", "²2.png", "²10.png"]


def png_chunk(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    size = len(body) if size is None else size
    return struct.pack(">I", size) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def claiming(width: int, height: int) -> dict[str, bytes]:
    """Files of some bytes that claim a size, by format."""
    small = np.zeros((8, 8, 1), np.uint8)
    made = {name: bytearray(cv2.imencode(f".{name}", small)[1].tobytes()) for name in ("jpg", "bmp", "tif")}
    frame = made["jpg"].index(b"\xff\xc0")
    struct.pack_into(">HH", made["jpg"], frame + 5, height % 65_536, width % 65_536)
    struct.pack_into("<ii", made["bmp"], 18, width, height)
    (directory,) = struct.unpack_from("<I", made["tif"], 4)
    for number in range(struct.unpack_from("<H", made["tif"], directory)[0]):
        at = directory + 2 + 12 * number
        (tag,) = struct.unpack_from("<H", made["tif"], at)
        if tag in (256, 257):
            struct.pack_into("<HHII", made["tif"], at, tag, 4, 1, (width, height)[tag - 256])
    header = png_chunk(b"IHDR", struct.pack(">II5B", width, height, 8, 2, 0, 0, 0))
    made["png"] = bytearray(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))
    return {name: bytes(data) for name, data in made.items()}


@pytest.mark.parametrize("name", ["png", "jpg", "bmp", "tif"])
def test_a_file_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, name, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    path = tmp_path / f"bomb.{name}"
    path.write_bytes(claiming(60_000, 50_000)[name])
    with pytest.raises(FrameError, match="60000x50000 pixels, over 160 million"):
        files.read_image(path)


@pytest.mark.parametrize("behind_the_end", [False, True])
def test_a_png_whose_chunk_claims_gigabytes_takes_no_memory(tmp_path, behind_the_end):
    """OpenCV allocated what the chunk claimed: 3.6 GB for 45 bytes."""
    header = png_chunk(b"IHDR", struct.pack(">II5B", 16, 16, 8, 0, 0, 0, 0))
    end = png_chunk(b"IEND", b"")[:-1] + b"\0" if behind_the_end else b""  # a wrong checksum: it reads on
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + end + png_chunk(b"IEND", b"", 0x60000000))
    code = (
        "from pathlib import Path; from inspectord.errors import FrameError; "
        f"from inspectord.sources.files import read_image\ntry: read_image(Path({str(path)!r}))\n"
        f"except FrameError: pass\n{PEAK}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert int(done.stdout) < 300


def test_other_formats_under_the_name_of_an_image_are_refused(tmp_path):
    """Only four decoders are reachable: each more is one more that hostile bytes may break."""
    path = tmp_path / "a.png"
    for suffix in (".webp", ".ppm", ".gif"):
        path.write_bytes(cv2.imencode(suffix, np.zeros((8, 8, 3), np.uint8))[1].tobytes())
        assert cv2.imread(str(path)) is not None
        with pytest.raises(FrameError, match="no image that can be decoded"):
            files.read_image(path)


def test_a_jpeg_of_endless_scans_is_refused(doors, tmp_path):
    progressive = doors["jpg"].seeds[1]
    scan = progressive[progressive.index(b"\xff\xda") : -2]
    path = tmp_path / "a.jpg"
    path.write_bytes(progressive[:-2] + scan * 200 + progressive[-2:])
    with pytest.raises(FrameError, match="scans"):
        files.read_image(path)


def test_settings_can_give_no_orders_to_the_library_that_reads_them(doors, tmp_path):
    """`_cli_parse_args = true` made pydantic-settings read the command line, and exit."""
    doors["settings"].run(b"_cli_parse_args = true\n")


@pytest.mark.parametrize("name", ["settings", "recipe"])
def test_a_table_name_without_end_takes_no_time(doors, name):
    deep = ".".join(["a"] * 30_000)
    lines = "".join(f"k{number}=1\n" for number in range(10_000))
    began_s = time.monotonic()
    doors[name].run(f"[{deep}]\n{lines}".encode())
    assert time.monotonic() - began_s < 2
