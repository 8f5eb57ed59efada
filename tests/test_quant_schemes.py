"""The formats that each scheme chooses, and the sizes of the published models that follow."""

import pytest
from toy_models import MQA

from cg_local.config import ModelConfig
from cg_local.errors import QuantizeError
from cg_local.quant import plan
from cg_local.quant.schemes import SCHEMES, divisible_format, kind_of, plan_checkpoint

PUBLISHED = {
    "2b": {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8},
    "7b": {
        **{"hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28},
        **{"num_attention_heads": 16, "num_key_value_heads": 16},
    },
}


class PublishedCheckpoint:
    """What a plan asks of a checkpoint, without weights."""

    notices = ()
    has_separate_head = False

    def __init__(self, size):
        self.config = ModelConfig.from_dict({**MQA, **PUBLISHED[size], "vocab_size": 256000, "head_dim": 256}, size)


# Gigabytes: bits a weight of each format times the weights, from the shapes of the published models.
@pytest.mark.parametrize(
    ("size", "scheme", "gigabytes"),
    [
        *[("2b", "bf16", 5.013), ("2b", "q8", 2.585), ("2b", "q4", 1.619), ("2b", "q4s", 1.544)],
        *[("7b", "bf16", 17.076), ("7b", "q8", 8.805), ("7b", "q4", 5.337), ("7b", "q4s", 4.998)],
    ],
)
def test_plan_gives_the_sizes_of_the_published_models(size, scheme, gigabytes):
    planned = plan_checkpoint(PublishedCheckpoint(size), scheme)
    assert planned.num_bytes / 1e9 == pytest.approx(gigabytes, abs=0.001)
    assert planned.num_weights == PublishedCheckpoint(size).config.num_parameters
    assert planned.bits_per_weight == 8 * planned.num_bytes / planned.num_weights


@pytest.mark.parametrize("scheme", SCHEMES)
def test_plan_names_every_tensor_once(toy_checkpoint, scheme):
    planned = plan(toy_checkpoint("mqa"), scheme)
    names = [tensor.name for tensor in planned.tensors]
    assert sorted(names) == sorted(ModelConfig.from_dict(MQA, "toy").tensor_shapes())
    assert planned.notices == ()
    assert all((tensor.format == "f32") == ("norm" in tensor.name) for tensor in planned.tensors)


@pytest.mark.parametrize(
    ("size", "scheme", "expected"),
    [
        ("2b", "q4", {"embedding": "i8g64", "k_proj": "i8g64", "v_proj": "i8g64"}),
        ("7b", "q4", {"embedding": "i8g64", "k_proj": "i8g64", "v_proj": "i8g64"}),
        ("2b", "q4s", {"embedding": "i6g32", "k_proj": "i6g32", "v_proj": "i6g32", "gate_proj": "c4g16"}),
        ("7b", "q4s", {"embedding": "i6g32", "k_proj": "c4g32", "v_proj": "c4g32", "gate_proj": "c4g16"}),
        ("2b", "q8", {}),
    ],
)
def test_sensitive_matrices_get_more_bits(size, scheme, expected):
    formats = plan_checkpoint(PublishedCheckpoint(size), scheme).formats
    others = "i8g64" if scheme == "q8" else "c4g32"
    alike = {"gate_proj": "gate_proj", "up_proj": "gate_proj", "down_proj": "gate_proj"}
    for name, format in formats.items():
        kind = kind_of(name)
        assert format == expected.get(alike.get(kind, kind), others), name


def test_q4s_takes_no_more_bytes_than_the_smallest_file_of_llama_cpp_with_four_bits():
    # Q4_0 with its embedding in Q6_K: 18 bytes for 32 weights and 210 for 256; ggml-org/llama.cpp, ggml-common.h.
    for size in PUBLISHED:
        planned = plan_checkpoint(PublishedCheckpoint(size), "q4s")
        shapes = {tensor.name: tensor.shape for tensor in planned.tensors if tensor.name in planned.formats}
        q4_0 = sum(
            rows * columns * (210 / 256 if "embed" in name else 18 / 32) for name, (rows, columns) in shapes.items()
        )
        assert planned.num_bytes <= q4_0


@pytest.mark.parametrize(
    ("format", "columns", "expected"),
    [
        ("c4g32", 512, "c4g32"),
        ("c4g32", 320, "i8g64"),
        ("c4g32", 100, "bf16"),
        ("c4g16", 528, "bf16"),
        ("c3g32", 576, "i8g64"),
        ("bf16", 1, "bf16"),
    ],
)
def test_format_falls_back_where_its_groups_do_not_divide(format, columns, expected):
    assert divisible_format(format, columns) == expected


def test_unknown_scheme_is_refused(toy_checkpoint):
    with pytest.raises(QuantizeError, match="unknown scheme 'int4'; known are q4, q4s, q8, bf16"):
        plan(toy_checkpoint("mqa"), "int4")
