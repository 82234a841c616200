"""Pre-training of the bundled backbone: scenes, photographs, training; defects to test it. Needs torch."""
