"""Hostile bytes for every door that takes bytes: each may raise its documented error, and nothing else.

    targets.py    the doors: functions from bytes to None, with seeds and a mutator each
    seeds.py      sound inputs, made by code
    mutate.py     changes that keep an input's outer form, so that they get past the first check
    chunks.py     the same for PNG, JPEG, BMP and TIFF
    worker.py     one target under atheris, bounded in time and memory
    run.py        python -m tests.fuzz.run --inputs 1000000 --seed 1

tests/test_fuzz.py runs the same targets for some seconds, without atheris.
"""
