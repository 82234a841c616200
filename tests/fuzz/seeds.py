"""Sound inputs, made by code."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import tomli_w

from inspectord.messages import Reason, Verdict, VerdictMessage, encode

BOOT_ID = "0" * 32


def message(seq: int = 1, **changes: Any) -> VerdictMessage:
    values: dict[str, Any] = {
        "station": "s1",
        "camera": "cam1",
        "boot_id": BOOT_ID,
        "seq": seq,
        "part_id": f"part-{seq}",
        "trigger_id": seq,
        "frame_id": seq,
        "encoder": 100 * seq,
        "verdict": Verdict.REJECT,
        "reason": Reason.OVER_LIMIT,
        "score": 0.75,
        "limit": 0.5,
        "boxes": ((1, 2, 3, 4), (5, 6, 7, 8)),
        "recipe": "demo/0001",
        "recipe_hash": "a" * 64,
        "model_hash": "b" * 64,
        "t_exposure_ns": 0,
        "t_fetch_ns": 1_000,
        "t_decided_ns": 2_000,
        "decided_at": "2026-01-02T03:04:05.678+00:00",
        "inference_ms": 1.5,
        "latency_ms": 2.5,
        "deadline_ms": 200.0,
        "simulated": True,
    }
    return VerdictMessage(**(values | changes))


def messages() -> list[bytes]:
    sound = [message(), message(2, boxes=(), score=None, inference_ms=None, part_id="Ü😀")]
    return [encode(each, encoding) for each in sound for encoding in ("json", "msgpack")]


def requests() -> list[bytes]:
    tables: list[dict[str, Any]] = [
        {"what": "status"},
        {"what": "snapshot"},
        {"what": "replay", "camera": "cam1", "boot_id": None, "from_seq": 1, "to_seq": None},
        {"what": "replay", "camera": "cam1", "boot_id": BOOT_ID, "from_seq": 2, "to_seq": 5},
        {"what": "replay", "camera": "cam1", "boot_id": "1" * 32, "from_seq": 1, "to_seq": 2**62},
    ]
    return [json.dumps(table).encode() for table in tables]


def settings() -> list[bytes]:
    camera = {"name": "cam1", "recipe": "demo", "deadline_ms": 100.0, "ring_slots": 4}
    sources: list[dict[str, Any]] = [
        {"kind": "line", "seed": 1, "rate_hz": 10.0, "defect_rate": 0.1},
        {"kind": "folder", "path": "images", "loop": True},
        {"kind": "video", "path": "a.avi", "rate_hz": 5.0},
        {"kind": "genicam", "cti": "a.cti", "features": {"Gain": 1.5}, "trigger": {"source": "Line1"}},
    ]
    tables = {
        "publish": {"verdicts": "tcp://127.0.0.1:5570", "heartbeat_ms": 100, "encoding": "json"},
        "journal": {"quota_mb": 100, "keep_days": 30.0, "durability": "before_publish"},
        "security": {"mode": "plain", "keys_dir": "keys", "trusted_key": "a.pem"},
        "inference": {"device": "CPU", "threads": 2},
    }
    return [
        tomli_w.dumps({"station": "s1", "cameras": [camera | {"source": source}], **tables}).encode()
        for source in sources
    ]


def recipe_table() -> dict[str, Any]:
    """recipe.toml, less the hashes of its files and its own."""
    return {
        "schema_version": 1,
        "product": "demo",
        "frame": {"width": 64, "height": 64, "pixel_format": "Mono8"},
        "region": {"roi": [0, 0, 64, 64]},
        "tiles": {
            "rows": 2,
            "columns": 2,
            "height": 32,
            "width": 32,
            "overlap": 0,
            "scale": 1.0,
            "cell_px": 8.0,
        },
        "model": {"kind": "k", "backbone": "b", "backbone_hash": "", "layers": ["a"], "parameters": {"a": 1}},
        "runtime": {"device": "CPU", "precision": "f32", "openvino": "1"},
        "limits": {
            "score": 0.5,
            "wanted_false_reject_rate": 0.01,
            "estimated_false_reject_rate": 0.01,
            "proven_false_reject_rate": 0.1,
            "confidence": 0.95,
            "good_parts": 30,
            "folds": "none",
            "method": "by hand",
        },
        "golden": {"frames": 1, "tolerance": 0.001},
        "files": {},
    }


def recipes() -> list[bytes]:
    """JSON of recipe.toml and golden/scores.json: the target hashes both, so that changes go further in."""
    scores = [{"file": "marked.png", "score": 0.75, "tile_scores": [0.1, 0.2, 0.3, 0.75]}]
    whole = {"toml": recipe_table(), "scores": scores}
    return [json.dumps(whole).encode(), tomli_w.dumps(recipe_table()).encode()]


def _pictures() -> list[np.ndarray]:
    grey = np.random.default_rng(0).integers(0, 255, (24, 33, 1), np.uint8)
    colour = np.ascontiguousarray(np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (16, 40, 3)))
    return [grey, colour]


def _encoded(suffix: str, *options: list[int]) -> list[bytes]:
    pictures = [*_pictures(), np.dstack([_pictures()[1], np.full((16, 40), 255, np.uint8)])]
    if suffix == ".jpg":
        pictures.pop()
    return [
        cv2.imencode(suffix, picture, option)[1].tobytes()
        for picture in pictures
        for option in options or [[]]
    ]


def png() -> list[bytes]:
    wide = (_pictures()[0].astype(np.uint16)) * 200
    return [*_encoded(".png"), cv2.imencode(".png", wide)[1].tobytes()]


def jpeg() -> list[bytes]:
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    return _encoded(".jpg", [], progressive)


def bmp() -> list[bytes]:
    return _encoded(".bmp")


def tiff() -> list[bytes]:
    compressions = (1, 5, 8, 32773)  # none, LZW, deflate, PackBits
    return _encoded(".tif", *([cv2.IMWRITE_TIFF_COMPRESSION, number] for number in compressions))


def names() -> list[bytes]:
    return [b"good/1.png\0good/10.png\0good/2.png", "²1.png\0٣.png\0Ⅷ.png".encode()]
