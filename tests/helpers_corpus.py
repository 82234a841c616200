"""A small corpus of photographs for the tests of pre-training."""

from __future__ import annotations

import cv2
import numpy as np

PHOTOGRAPHS = {"bags/blue": 3, "bags/red": 4, "tex_philipk/cork": 3, "wood_screws/good": 5}


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
