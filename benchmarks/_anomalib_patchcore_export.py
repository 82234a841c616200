"""Exports anomalib's PatchCore to OpenVINO IR, the way an anomalib user would, with random weights.

Runs inside the venv that anomalib_padim.py makes, never in the project's own:

    VENV/bin/python _anomalib_patchcore_export.py OUT_DIR [--members N]

The bank is a random draw of patches instead of anomalib's coreset, which takes minutes to choose and changes
no time: what is compared is the search in one and the same bank.

It writes, under OUT_DIR:

    weights/openvino/model.xml, .bin   what anomalib's Patchcore.to_openvino gives, input (n, 3, 256, 256)
    backbone.safetensors               ResNet-18 up to layer3; the names are torchvision's
    reference.npz                      what a comparison needs, see reference_arrays
    export.json                        versions; written last, so that it marks a complete export
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _anomalib_export import (
    FIT_BATCH,
    SEED,
    TEST_IMAGES,
    import_padim,
    randomise_norms,
    set_range,
    textures,
    to_model_input,
    write_model,
)

FIT_IMAGES = 40
MEMBERS = 4096  # as many as calibrate fit keeps unless asked for more
NEIGHBOURS = 9  # anomalib's own


def import_patchcore() -> Any:
    """anomalib's Patchcore class."""
    import_padim()
    return importlib.import_module("anomalib.models").Patchcore


def fit(patchcore: Any, images: torch.Tensor, members: int) -> None:
    """Fits the backbone's norms to images, uint8 (n, 256, 256, 3), and draws the bank from their patches."""
    with torch.no_grad():
        normalised = patchcore.pre_processor(to_model_input(images))
        randomise_norms(patchcore.model.feature_extractor.feature_extractor, normalised[:FIT_BATCH])
        patchcore.model.train()
        patchcore.model.feature_extractor.eval()
        patches = torch.cat([patchcore.model(batch) for batch in normalised.split(FIT_BATCH)])
        patchcore.model.embedding_store.clear()
        patchcore.model.memory_bank = patches[torch.randperm(len(patches))[:members]].clone()
    patchcore.eval()


def reference_arrays(patchcore: Any, images: torch.Tensor) -> dict[str, Any]:
    """Inputs, bank and raw results of anomalib's torch model; n images, 32 x 32 patches of d features.

    images          uint8 (n, 256, 256, 3)
    memory_bank     float32 (members, d), the features of layer2 before those of layer3
    distance        float32 (n, 32, 32), of each patch to its nearest member, not scaled up, not blurred
    anomaly_map     float32 (n, 256, 256), distance scaled up (nearest), then blurred with sigma 4
    pred_score      float32 (n,), of the farthest patch, re-weighted (Roth et al. 2022, eq. 7)
    """
    model = patchcore.model
    with torch.no_grad():
        normalised = patchcore.pre_processor(to_model_input(images))
        features = model.feature_extractor(normalised)
        pooled = {layer: model.feature_pooler(feature) for layer, feature in features.items()}
        embedding = model.generate_embedding(pooled)
        rows, columns = embedding.shape[-2:]
        distance, _ = model.nearest_neighbors(model.reshape_embedding(embedding), n_neighbors=1)
        raw = model(normalised)
    tensors = {
        "images": images,
        "memory_bank": model.memory_bank,
        "distance": distance.reshape(len(images), rows, columns),
        "anomaly_map": raw.anomaly_map[:, 0],
        "pred_score": raw.pred_score,
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def export(out_dir: Path, members: int) -> None:
    """Writes the files that the module's docstring names under out_dir."""
    torch.manual_seed(SEED)
    patchcore = import_patchcore()(
        backbone="resnet18",
        layers=["layer2", "layer3"],
        pre_trained=False,
        num_neighbors=NEIGHBOURS,
    )
    images = textures(TEST_IMAGES)
    fit(patchcore, textures(FIT_IMAGES), members)
    set_range(patchcore, images)
    out_dir.mkdir(parents=True, exist_ok=True)
    np.savez(out_dir / "reference.npz", **reference_arrays(patchcore, images))
    save_file = importlib.import_module("safetensors.torch").save_file
    save_file(
        patchcore.model.feature_extractor.feature_extractor.state_dict(), out_dir / "backbone.safetensors"
    )
    write_model(patchcore, out_dir, members=members, neighbours=NEIGHBOURS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Export anomalib's PatchCore, random weights, to OpenVINO IR."
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--members", type=int, default=MEMBERS)
    arguments = parser.parse_args()
    export(arguments.out_dir, arguments.members)
