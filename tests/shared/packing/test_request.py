import pytest

from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.packing.request import PackRequest, Source
from layermesh.shared.quant import choosing
from tests.shared.packing.packs import build_llama


@pytest.mark.parametrize(("bits", "num_kinds"), [(4, 2), (8, 1)])
def test_packs_that_depend_on_our_kernel_are_kept_apart(tmp_path, monkeypatch, bits, num_kinds):
    source, keys = Source.of(open_checkpoint(build_llama(tmp_path / "llama"), tmp_path / "unpacked")), set()
    for kernel in (None, object()):
        monkeypatch.setattr(choosing, "native_kernel", lambda found=kernel: found)
        keys.add(source.key(PackRequest(bits)))
    assert len(keys) == num_kinds
