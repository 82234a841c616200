"""PaDiM's residuals, told apart by a small network that was shown made-up defects; see kind."""
