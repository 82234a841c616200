"""Exports anomalib's PaDiM to OpenVINO IR, the way an anomalib user would, with random weights.

Runs inside the venv that anomalib_padim.py makes, never in the project's own:

    VENV/bin/python _anomalib_export.py OUT_DIR

It writes, under OUT_DIR:

    weights/openvino/model.xml, .bin   what anomalib's Padim.to_openvino gives, input (n, 3, 256, 256)
    backbone.safetensors               ResNet-18 up to layer3; the names are torchvision's
    reference.npz                      what a parity test needs, see reference_arrays
    export.json                        versions; written last, so that it marks a complete export
"""

import argparse
import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

SIDE_PX = 256
FIT_IMAGES = 120  # more than the 100 features, so that a covariance has full rank before it is regularised
TEST_IMAGES = 4
FIT_BATCH = 20
SEED = 20260
PACKAGES = ("anomalib", "torch", "torchvision", "timm", "onnx", "onnxscript", "openvino", "numpy")


def import_padim() -> Any:
    """anomalib's Padim class; raises ImportError if the venv is not as anomalib_padim.py makes it.

    torchvision's compiled operators are linked to the CUDA torch and do not load beside the CPU torch, and
    its import then fails on the two operators below. PaDiM calls neither, so a bare signature is enough.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
    return importlib.import_module("anomalib.models").Padim


def textures(count: int) -> torch.Tensor:
    """Random colour textures, smooth with a little noise, uint8 of shape (count, 256, 256, 3)."""
    coarse = torch.rand(count, 3, 16, 16)
    smooth = F.interpolate(coarse, size=(SIDE_PX, SIDE_PX), mode="bicubic", align_corners=False)
    noisy = smooth + 0.05 * torch.randn_like(smooth)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_model_input(images: torch.Tensor) -> torch.Tensor:
    """What anomalib's own inferencer feeds: float32 of shape (n, 3, 256, 256), 0 to 1."""
    return images.permute(0, 3, 1, 2).float() / 255


def randomise_norms(backbone: torch.nn.Module, batch: torch.Tensor) -> None:
    """Gives every batch norm a random scale and shift and the statistics of batch, (n, 3, h, w) normalised.

    timm starts the last norm of each block at zero, which would leave half of the network without effect.
    """
    for norm in (module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0, 0.1)
        norm.momentum = None  # None: the running statistics become those of the batch, not a moving average
    backbone.train()
    backbone(batch)
    backbone.eval()


def fit(padim: Any, images: torch.Tensor) -> None:
    """Fits the backbone's norms and the Gaussians to images, uint8 (n, 256, 256, 3)."""
    with torch.no_grad():
        normalised = padim.pre_processor(to_model_input(images))
        randomise_norms(padim.model.feature_extractor.feature_extractor, normalised[:FIT_BATCH])
        padim.model.train()
        for batch in normalised.split(FIT_BATCH):
            padim.model(batch)
        padim.fit()
    padim.eval()


def set_range(padim: Any, images: torch.Tensor) -> None:
    """Sets scale and threshold of the post-processor from unseen images, as a validation epoch would."""
    with torch.no_grad():
        raw = padim.model(padim.pre_processor(to_model_input(images)))
    for level, values in (("image", raw.pred_score), ("pixel", raw.anomaly_map)):
        getattr(padim.post_processor, f"{level}_min").copy_(values.min())
        getattr(padim.post_processor, f"{level}_max").copy_(values.max())
        getattr(padim.post_processor, f"_{level}_threshold").copy_(values.median())


def reference_arrays(padim: Any, fit_images: torch.Tensor, images: torch.Tensor) -> dict[str, Any]:
    """Inputs, state and raw results of anomalib's torch model; n images, c channels, p = 64 * 64 patches.

    fit_images, images    uint8 (n, 256, 256, 3)
    channel_index         int64 (c,), chosen among the 448 channels of layer1, layer2, layer3 in that order
    mean, inv_covariance  float32 (c, p) and (p, c, c); the covariance had 0.01001 added to its diagonal
    distance              float32 (n, 64, 64), Mahalanobis distance of each patch, not scaled up, not blurred
    anomaly_map           float32 (n, 256, 256), distance scaled up bilinearly, then blurred with sigma 4
    pred_score            float32 (n,), the maximum of anomaly_map
    ranged_anomaly_map, ranged_pred_score   the same after the post-processor, 0 to 1: what the IR returns
    """
    model = padim.model
    with torch.no_grad():
        normalised = padim.pre_processor(to_model_input(images))
        embedding = model.generate_embedding(model.feature_extractor(normalised))
        stats = [model.gaussian.mean, model.gaussian.inv_covariance]
        distance = model.anomaly_map_generator.compute_distance(embedding, stats)
        raw = model(normalised)
        ranged = padim.post_processor(raw)
    tensors = {
        "fit_images": fit_images,
        "images": images,
        "channel_index": model.idx,
        "mean": stats[0],
        "inv_covariance": stats[1],
        "distance": distance[:, 0],
        "anomaly_map": raw.anomaly_map[:, 0],
        "pred_score": raw.pred_score[:, 0],
        "ranged_anomaly_map": ranged.anomaly_map[:, 0],
        "ranged_pred_score": ranged.pred_score[:, 0],
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def write_model(detector: Any, out_dir: Path, **more: Any) -> None:
    """Writes a detector's IR under out_dir and last, with more said of it, export.json."""
    # anomalib asks for opset 14, fails to convert PaDiM to it, warns at length and keeps 18: the same model.
    xml = detector.to_openvino(out_dir, input_size=(SIDE_PX, SIDE_PX), onnx_kwargs={"opset_version": 18})
    facts = {
        "model": str(xml.relative_to(out_dir)),
        "seed": SEED,
        **more,
        "versions": {name: version(name) for name in PACKAGES},
    }
    (out_dir / "export.json").write_text(json.dumps(facts, indent=2) + "\n")


def export(out_dir: Path) -> None:
    """Writes the files that the module's docstring names under out_dir."""
    torch.manual_seed(SEED)
    padim_class = import_padim()
    padim = padim_class(
        backbone="resnet18", layers=["layer1", "layer2", "layer3"], pre_trained=False, n_features=100
    )
    fit_images, images = textures(FIT_IMAGES), textures(TEST_IMAGES)
    fit(padim, fit_images)
    set_range(padim, images)
    out_dir.mkdir(parents=True, exist_ok=True)
    np.savez(out_dir / "reference.npz", **reference_arrays(padim, fit_images, images))
    save_file = importlib.import_module("safetensors.torch").save_file
    save_file(padim.model.feature_extractor.feature_extractor.state_dict(), out_dir / "backbone.safetensors")
    write_model(padim, out_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export anomalib's PaDiM, random weights, to OpenVINO IR.")
    parser.add_argument("out_dir", type=Path)
    export(parser.parse_args().out_dir)
