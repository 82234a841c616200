"""Pre-training of the bundled networks: scenes, photographs, training; defects to test it. Needs torch."""
