"""What differs from normal, told apart by small networks that were shown made-up defects; see kind."""
