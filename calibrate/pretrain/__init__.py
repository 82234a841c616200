"""Pre-training of the bundled backbone: scenes, defects, photographs, losses. Needs torch."""
