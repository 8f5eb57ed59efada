"""What GGUF calls the tensors of Gemma.

This file owns the names alone. Invariant: every tensor of `ModelConfig.tensor_shapes`, and the separate head, has
exactly one name in GGUF, and different tensors different ones.

Source: ggml-org/llama.cpp, gguf-py/gguf/constants.py (MODEL_TENSORS of MODEL_ARCH.GEMMA) and tensor_mapping.py.
"""

from __future__ import annotations

import re

from cg_local.checkpoint.published import EMBEDDING_NAME, HEAD_NAME

_TENSOR_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_NAMES = {
    EMBEDDING_NAME: "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    HEAD_NAME: "output.weight",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def gguf_name(name: str) -> str:
    """Return a tensor's GGUF name for its Hugging Face name."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    found = _LAYER_NAME.fullmatch(name)
    assert found, f"{name} is no tensor of Gemma"
    return f"blk.{found[1]}.{_TENSOR_NAMES[found[2]]}.weight"
