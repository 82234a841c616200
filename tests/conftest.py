"""Fixtures of more than one test file."""

from __future__ import annotations

import signal

import cv2
import pytest

from inspectord.sources.parts import render_part
from tests.helpers_corpus import write_corpus

# What runs in the background of a script ignores these two, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of 24 good parts, 96 x 80."""
    folder = tmp_path_factory.mktemp("good")
    for number in range(24):
        cv2.imwrite(str(folder / f"{number:03d}.png"), render_part(1, number, 96, 80, 0.0).pixels)
    return folder


@pytest.fixture(scope="module")
def one_torch_thread():
    """Small tensors: on a busy machine threads that wait for each other took a hundred times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of photographs to pre-train on, of the caller's own; see helpers_corpus."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def corpus(folder):
    """What pre-training reads of it; needs torch."""
    from calibrate.pretrain.corpus import read_corpus

    return read_corpus(folder)
