"""ModelConfig accepts every published spelling of the network and refuses, by name, whatever would change it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from toy_models import MQA

from cg_local.config import EngineConfig, ModelConfig, SamplingParams
from cg_local.errors import ConfigError

SHAPE_2B = {
    "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 8192,
}  # fmt: skip
SHAPE_7B = {
    **SHAPE_2B, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16,
}  # fmt: skip

# What transformers 5 writes for a Gemma model.
NEW_STYLE = {
    "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
    "dtype": "bfloat16", "eos_token_id": 1, "hidden_act": "gelu_pytorch_tanh", "initializer_range": 0.02,
    "model_type": "gemma", "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": True,
    "transformers_version": "5.23.0", "use_bidirectional_attention": None, "use_cache": True, **SHAPE_2B,
}  # fmt: skip


def read(values: Mapping[str, object]) -> ModelConfig:
    return ModelConfig.from_dict(values, "config.json")


@pytest.mark.parametrize(("shape", "count"), [(SHAPE_2B, 2_506_172_416), (SHAPE_7B, 8_537_680_896)])
def test_model_config_counts_the_published_parameters(shape: dict[str, object], count: int) -> None:
    assert read({**MQA, **shape}).num_parameters == count


def test_model_config_lists_the_published_tensors() -> None:
    shapes = read({**MQA, **SHAPE_7B}).tensor_shapes()

    assert len(shapes) == 9 * 28 + 2
    assert next(iter(shapes)) == "model.embed_tokens.weight"
    assert list(shapes)[-1] == "model.norm.weight"
    assert shapes["model.layers.27.self_attn.q_proj.weight"] == (4096, 3072)
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == (3072, 4096)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (3072, 24576)
    assert read({**MQA, **SHAPE_2B}).tensor_shapes()["model.layers.0.self_attn.k_proj.weight"] == (256, 2048)


def test_model_config_reads_old_and_new_style_alike() -> None:
    old = read({**MQA, **SHAPE_2B})

    assert read(NEW_STYLE) == old
    assert old.rope_theta == 10000.0
    assert old.rms_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("act", "activation"),
    [("gelu", None), ("gelu", "gelu_pytorch_tanh"), ("gelu_pytorch_tanh", "gelu_pytorch_tanh"), (None, "gelu")],
)
def test_model_config_takes_every_spelling_of_tanh_gelu(act: str | None, activation: str | None) -> None:
    assert read({**MQA, "hidden_act": act, "hidden_activation": activation}) == read(MQA)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, 'model_type is "llama"'),
        ({"model_type": "gemma2"}, 'model_type is "gemma2"'),
        ({"model_type": None}, "model_type is null"),
        ({"architectures": ["GemmaForSequenceClassification"]}, "architectures is"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, 'rope_parameters.rope_type is "yarn"'),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "keep one"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": float("nan")}, "rope_theta is NaN"),
        ({"rms_norm_eps": "1e-6"}, 'rms_norm_eps is "1e-6"'),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ({"hidden_act": "silu"}, 'hidden_act is "silu"'),
        ({"hidden_activation": "relu"}, 'hidden_activation is "relu"'),
        ({"num_experts": 8}, 'unknown key "num_experts"'),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is"),
        ({"head_dim": 63}, "head_dim is 63"),
        ({"head_dim": 64.0}, "head_dim is 64.0"),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_size": 10**30}, "hidden_size is 1000"),
        ({"vocab_size": "768"}, 'vocab_size is "768"'),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"bos_token_id": 768}, "bos_token_id is 768"),
        ({"eos_token_id": ["1"]}, "eos_token_id is"),
    ],
)
def test_model_config_refuses_by_name(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({**MQA, **change})

    assert str(caught.value).startswith("config.json: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_key_value_heads", "head_dim"])
def test_model_config_names_a_missing_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        read({name: value for name, value in MQA.items() if name != key})


def test_model_config_takes_the_first_of_several_end_tokens() -> None:
    assert read({**MQA, "eos_token_id": [1, 107]}).eos_token_id == 1
    assert read({**MQA, "pad_token_id": None}).pad_token_id == 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a JSON file"),
        (b"[1]", "not an object"),
        (b"{", "not a JSON file"),
        (b'{"model_type": "gemma", "model_type": "gemma"}', "a key stands twice"),
        (b"\xff\xfe{}", "not a JSON file"),
        (b'{"a":' * 100_000, "not a JSON file"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not a JSON file"),
        (b" " * (1 << 20) + b"{}", "bytes"),
        (b'{"model_type": "gem\\u001b[31m\\nma\\ud800"}', "model_type is"),
    ],
)
def test_model_config_refuses_a_malformed_file(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)

    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_file(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_model_config_reads_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("\ufeff" + json.dumps(dict(MQA)), encoding="utf-8")

    assert ModelConfig.from_file(path) == read(MQA)


def test_model_config_names_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; give a model folder"):
        ModelConfig.from_file(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="give a model folder"):
        ModelConfig.from_file(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is NaN"),
        ({"temperature": "hot"}, 'temperature is "hot"'),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_sampling_params_refuse_by_name(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match="; give a ") as caught:
        SamplingParams(**values)  # type: ignore[arg-type]

    assert words in str(caught.value)


def test_sampling_params_default_to_greedy_without_penalty() -> None:
    params = SamplingParams()

    assert (params.temperature, params.repetition_penalty, params.top_k, params.top_p) == (0.0, 1.0, 0, 1.0)
    assert SamplingParams(temperature=1, seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"page_size": 0}, "page_size is 0"),
        ({"kv_dtype": "int4"}, 'kv_dtype is "int4"; give one of float16, float32, int8'),
        ({"max_context": 0}, "max_context is 0"),
        ({"num_threads": -2}, "num_threads is -2"),
        ({"num_pages": 1.0}, "num_pages is 1.0"),
        ({"prefill_chunk": None}, "prefill_chunk is null"),
    ],
)
def test_engine_config_refuses_by_name(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**values)  # type: ignore[arg-type]

    assert words in str(caught.value)
