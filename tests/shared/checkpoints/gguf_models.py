"""What a tiny model of each architecture has in its GGUF file: metadata, and tensors with their shapes."""

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS, VOCAB, EXPERTS = 256, 512, 4, 2, 2, 300, 4
HEAD_DIM = HIDDEN // HEADS

Shapes = dict[str, tuple[int, ...]]


def decoder_metadata(**more: object) -> dict[str, object]:
    return {
        "context_length": 512,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": INTERMEDIATE,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 20000.0,
        "vocab_size": VOCAB,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def attention(head_dim: int = HEAD_DIM) -> Shapes:
    return {
        "attn_norm.weight": (HIDDEN,),
        "attn_q.weight": (HEADS * head_dim, HIDDEN),
        "attn_k.weight": (KV_HEADS * head_dim, HIDDEN),
        "attn_v.weight": (KV_HEADS * head_dim, HIDDEN),
        "attn_output.weight": (HIDDEN, HEADS * head_dim),
        "ffn_norm.weight": (HIDDEN,),
    }


def feed_forward() -> Shapes:
    up = (INTERMEDIATE, HIDDEN)
    return {"ffn_gate.weight": up, "ffn_up.weight": up, "ffn_down.weight": (HIDDEN, INTERMEDIATE)}


def experts(width: int = INTERMEDIATE) -> Shapes:
    return {
        "ffn_gate_inp.weight": (EXPERTS, HIDDEN),
        "ffn_gate_exps.weight": (EXPERTS, width, HIDDEN),
        "ffn_up_exps.weight": (EXPERTS, width, HIDDEN),
        "ffn_down_exps.weight": (EXPERTS, HIDDEN, width),
    }


def shared_expert(width: int) -> Shapes:
    return {
        "ffn_gate_inp_shexp.weight": (HIDDEN,),
        "ffn_gate_shexp.weight": (width, HIDDEN),
        "ffn_up_shexp.weight": (width, HIDDEN),
        "ffn_down_shexp.weight": (HIDDEN, width),
    }


def biases(*names: str) -> Shapes:
    sizes = {"attn_q": HIDDEN, "attn_k": KV_HEADS * HEAD_DIM, "attn_v": KV_HEADS * HEAD_DIM, "ffn_up": INTERMEDIATE}
    return {f"{name}.bias": (sizes.get(name, HIDDEN),) for name in names}


def whole(block: Shapes, *, head: bool = True, **outside: tuple[int, ...]) -> Shapes:
    """Return the tensors of a model of LAYERS times `block`, with an own output matrix if `head`."""
    shapes: Shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    shapes |= {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in block.items()}
    shapes |= {name.replace("__", "."): shape for name, shape in outside.items()}
    return shapes | ({"output.weight": (VOCAB, HIDDEN)} if head else {})


LLAMA = (decoder_metadata(rope__dimension_count=HEAD_DIM), whole(attention() | feed_forward()))
QK_NORMS: Shapes = {"attn_q_norm.weight": (128,), "attn_k_norm.weight": (128,)}
SANDWICH: Shapes = {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}
QUERY_KEY_VALUE: Shapes = {"attn_qkv.weight": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)}
PHI3_BLOCK: Shapes = QUERY_KEY_VALUE | {
    "attn_norm.weight": (HIDDEN,),
    "attn_output.weight": (HIDDEN, HIDDEN),
    "ffn_norm.weight": (HIDDEN,),
    "ffn_up.weight": (2 * INTERMEDIATE, HIDDEN),
    "ffn_down.weight": (HIDDEN, INTERMEDIATE),
}
GPT2_BLOCK: Shapes = {
    "attn_qkv.weight": (3 * HIDDEN, HIDDEN),
    "attn_qkv.bias": (3 * HIDDEN,),
    "attn_output.weight": (HIDDEN, HIDDEN),
    "ffn_up.weight": (4 * HIDDEN, HIDDEN),
    "ffn_up.bias": (4 * HIDDEN,),
    "ffn_down.weight": (HIDDEN, 4 * HIDDEN),
    **biases("attn_output", "ffn_down"),
    **{f"{name}.{part}": (HIDDEN,) for name in ("attn_norm", "ffn_norm") for part in ("weight", "bias")},
}
BLOOM_BLOCK = GPT2_BLOCK
STARCODER2_BLOCK: Shapes = (
    {name: shape for name, shape in (attention() | feed_forward()).items() if "gate" not in name}
    | biases("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")
)  # fmt: skip
LFM2_CONV: Shapes = {
    "attn_norm.weight": (HIDDEN,),
    "shortconv.conv.weight": (HIDDEN, 3),
    "shortconv.in_proj.weight": (3 * HIDDEN, HIDDEN),
    "shortconv.out_proj.weight": (HIDDEN, HIDDEN),
    "ffn_norm.weight": (HIDDEN,),
    **feed_forward(),
}
LFM2_ATTENTION: Shapes = attention() | feed_forward() | {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
MAMBA_BLOCK: Shapes = {
    "attn_norm.weight": (HIDDEN,),
    "ssm_in.weight": (2 * INTERMEDIATE, HIDDEN),
    "ssm_conv1d.weight": (INTERMEDIATE, 4),
    "ssm_conv1d.bias": (INTERMEDIATE,),
    "ssm_x.weight": (16 + 2 * 16, INTERMEDIATE),
    "ssm_dt.weight": (INTERMEDIATE, 16),
    "ssm_dt.bias": (INTERMEDIATE,),
    "ssm_a": (INTERMEDIATE, 16),
    "ssm_d": (INTERMEDIATE,),
    "ssm_out.weight": (HIDDEN, INTERMEDIATE),
}
LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
BESIDE_ROPE = (
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "attention.head_count_kv",
)  # what GPT-2 and Bloom do without
UNTURNED = {key: value for key, value in decoder_metadata().items() if key not in BESIDE_ROPE} | LAYER_NORM

# The architectures that transformers can be asked about, each with its metadata and tensors.
MODELS: dict[str, tuple[str, dict[str, object], Shapes]] = {
    "llama": ("llama", *LLAMA),
    "llama-tied": ("llama", LLAMA[0], whole(attention() | feed_forward(), head=False)),
    "qwen2": ("qwen2", decoder_metadata(), whole(attention() | feed_forward() | biases("attn_q", "attn_k", "attn_v"))),
    "qwen3": ("qwen3", decoder_metadata(attention__key_length=128), whole(attention(128) | feed_forward() | QK_NORMS)),
    "qwen2moe": (
        "qwen2moe",
        decoder_metadata(expert_count=EXPERTS, expert_used_count=2, expert_feed_forward_length=1408)
        | {"expert_shared_feed_forward_length": 5632},
        whole(attention() | biases("attn_q", "attn_k", "attn_v") | experts(1408) | shared_expert(5632)),
    ),
    "qwen3moe": (
        "qwen3moe",
        decoder_metadata(expert_count=EXPERTS, expert_used_count=2, attention__key_length=128)
        | {"expert_feed_forward_length": 768},
        whole(attention(128) | QK_NORMS | experts(768)),
    ),
    "gemma2": (
        "gemma2",
        decoder_metadata(attention__key_length=HEAD_DIM, attention__sliding_window=64),
        whole(attention() | feed_forward() | SANDWICH, head=False),
    ),
    "gemma3": (
        "gemma3",
        decoder_metadata(attention__key_length=128, attention__sliding_window=64),
        whole(attention(128) | feed_forward() | SANDWICH | QK_NORMS, head=False),
    ),
    "phi3": ("phi3", decoder_metadata(), whole(PHI3_BLOCK)),
    "gpt2": (
        "gpt2",
        UNTURNED | {"context_length": 1024, "feed_forward_length": 4 * HIDDEN},
        whole(GPT2_BLOCK, position_embd__weight=(1024, HIDDEN), output_norm__bias=(HIDDEN,)),
    ),
    "bloom": (
        "bloom",
        UNTURNED | {"feed_forward_length": 4 * HIDDEN},
        whole(BLOOM_BLOCK, token_embd_norm__weight=(HIDDEN,), token_embd_norm__bias=(HIDDEN,), output_norm__bias=(HIDDEN,)),
    ),
    "starcoder2": (
        "starcoder2",
        decoder_metadata() | LAYER_NORM,
        whole(STARCODER2_BLOCK, head=False, output_norm__bias=(HIDDEN,)),
    ),
    "mamba": (
        "mamba",
        decoder_metadata(ssm__conv_kernel=4, ssm__state_size=16, ssm__time_step_rank=16, ssm__inner_size=INTERMEDIATE)
        | {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": 0, "rope.freq_base": None},
        whole(MAMBA_BLOCK, head=False),
    ),
    "lfm2": (
        "lfm2",
        decoder_metadata(shortconv__l_cache=3) | {"attention.head_count_kv": [0, KV_HEADS]},
        {
            name: shape
            for name, shape in whole(LFM2_CONV | LFM2_ATTENTION, head=False, token_embd_norm__weight=(HIDDEN,)).items()
            if name != "output_norm.weight"
            and not (name.startswith("blk.0.") and name[6:] not in LFM2_CONV)
            and not (name.startswith("blk.1.") and name[6:] not in LFM2_ATTENTION)
        },
    ),
}
