import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from layermesh.shared.checkpoints.mxfp4 import decode_mxfp4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_byte_under_every_scale_is_what_transformers_makes_of_it(dtype):
    scales = torch.arange(255, dtype=torch.uint8)
    groups = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(255, -1, -1).contiguous()
    made = torch.empty(255, 512, dtype=dtype)
    decode_mxfp4(groups.view(-1, 16), scales.repeat_interleave(16), made)
    expected = convert_moe_packed_tensors(groups[None], scales[None, :, None].expand(1, 255, 16), dtype=dtype)[0].t()
    kind = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(made.view(kind), expected.contiguous().view(kind))
    assert len(made.unique()) > 50


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="255"):
        decode_mxfp4(torch.zeros(2, 16, dtype=torch.uint8), torch.tensor([127, 255], dtype=torch.uint8), torch.empty(64))
