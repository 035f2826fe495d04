import pytest

from layermesh.shared.quant.native.building import built_library
from layermesh.shared.quant.native.kernel import NativeKernel, load_kernel
from tests.shared.quant.kernels import COMPILER


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> NativeKernel:
    assert COMPILER is not None
    loaded = load_kernel(built_library(tmp_path_factory.mktemp("native") / "kernel", COMPILER))
    if loaded is None:
        pytest.skip("it is not clear which OpenMP torch uses")
    return loaded
