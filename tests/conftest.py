import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny random checkpoint of a model type, built once; not to be changed."""
    from tests.architectures.tiny import build

    return cache(lambda model_type: build(model_type, tmp_path_factory.mktemp(model_type)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute on one core, in the same order every time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


os.environ["LAYERMESH_ALONE"] = "1"  # tests of the mesh say so themselves
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
