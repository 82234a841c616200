"""Exports anomalib's EfficientAD-S to OpenVINO IR, the way an anomalib user would, with random weights.

Runs inside the venv that anomalib_padim.py makes, never in the project's own:

    VENV/bin/python _anomalib_efficientad_export.py OUT_DIR

It writes, under OUT_DIR:

    weights/openvino/model.xml, .bin   what anomalib's EfficientAd.to_openvino gives, input (n, 3, 256, 256)
    teacher.safetensors                its teacher, by anomalib's names
    export.json                        versions; written last, so that it marks a complete export
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _anomalib_export import SEED, TEST_IMAGES, import_padim, set_range, textures, write_model


def untrained() -> Any:
    """EfficientAD-S as after a training: its normalisations are set, so that none is left out."""
    import_padim()
    detector = importlib.import_module("anomalib.models").EfficientAd(model_size="small").eval()
    model = detector.model
    model.mean_std["mean"].copy_(torch.zeros_like(model.mean_std["mean"]))
    model.mean_std["std"].copy_(torch.ones_like(model.mean_std["std"]))
    for name, value in {"qa_st": 0.1, "qb_st": 0.2, "qa_ae": 0.1, "qb_ae": 0.2}.items():
        model.quantiles[name].fill_(value)
    return detector


def export(out_dir: Path) -> None:
    """Writes the files that the module's docstring names under out_dir."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        detector = untrained()
    set_range(detector, textures(TEST_IMAGES))
    out_dir.mkdir(parents=True, exist_ok=True)
    save_file = importlib.import_module("safetensors.torch").save_file
    save_file(detector.model.teacher.state_dict(), out_dir / "teacher.safetensors")
    write_model(detector, out_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export anomalib's EfficientAD-S, random weights.")
    parser.add_argument("out_dir", type=Path)
    export(parser.parse_args().out_dir)
