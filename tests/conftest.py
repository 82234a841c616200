"""Fixtures of more than one test file."""

from __future__ import annotations

import signal

import pytest
from safetensors.numpy import save_file

from calibrate.backbones.resnet import state_shapes
from calibrate.backbones.weights import random_state
from tests.helpers_corpus import write_corpus
from tests.helpers_parts import write_parts

# What runs in the background of a script ignores these two, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of 24 good parts, 96 x 80."""
    return write_parts(tmp_path_factory.mktemp("good"), range(24))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file of ResNet-18's weights, random ones."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(random_state(state_shapes("resnet18"), 0), path)
    return path


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
