"""The three frozen configurations: of a model, of sampling, and of the engine.

This file owns reading and judging config.json. It knows no file but that one, and no array. Invariant: a ModelConfig
that exists describes a Gemma 1 / CodeGemma network completely; a key that would change the network and that cg-local
does not implement never passes silently.

Sources: transformers, models/gemma/configuration_gemma.py (keys, defaults); google/gemma_pytorch, gemma/config.py and
gemma/model.py (the network).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cg_local.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20  # published files have about 600 bytes; label maps of fine-tunes a few kilobytes
MAX_DIMENSION, MAX_LAYERS = 1 << 24, 1024  # far above any Gemma; products of two dimensions stay far from overflow
KV_DTYPES = ("float16", "float32", "int8")

# Keys that say how a network is trained, stored or served, not what it computes.
IGNORED_KEYS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    attention_dropout bad_words_ids begin_suppress_tokens cache_implementation chunk_size_feed_forward
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_range
    label2id length_penalty max_length min_length model_max_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()  # noqa: SIM905 (sixty quoted names would be harder to read)
)

# Keys that would change the network: the values under which they change nothing.
NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "add_cross_attention": (None, False),
    "attention_bias": (None, False),
    "attn_logit_softcapping": (None,),
    "cross_attention_hidden_size": (None,),
    "final_logit_softcapping": (None,),
    "is_decoder": (None, False, True),
    "is_encoder_decoder": (None, False),
    "layer_types": (None,),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "sliding_window": (None,),
    "tie_encoder_decoder": (None, False),
    "use_bidirectional_attention": (None, False),
    # Gemma's first configs say "gelu" and mean its tanh approximation: transformers' GemmaConfig and
    # google/gemma_pytorch (F.gelu(..., approximate="tanh")) both compute that for all three spellings.
    "hidden_act": (None, "gelu", "gelu_pytorch_tanh"),
    "hidden_activation": (None, "gelu", "gelu_pytorch_tanh"),
}

# Our field -> the key of config.json.
DIMENSION_KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
}
TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
READ_KEYS = frozenset(
    ("architectures", "model_type", "rms_norm_eps", "tie_word_embeddings", *TOKEN_ID_KEYS, *ROPE_KEYS)
) | frozenset(DIMENSION_KEYS.values())

SUPPORTED = "cg-local runs Gemma 1 and CodeGemma networks: use one of those checkpoints"


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Gemma 1 / CodeGemma network and the constants of its arithmetic.

    Attributes:
        vocab_size: rows of the embedding; 256000 in CodeGemma.
        hidden_size: width of the residual stream; 2048 (2B), 3072 (7B).
        intermediate_size: width inside the MLP; 16384 (2B), 24576 (7B).
        num_layers: transformer blocks; 18 (2B), 28 (7B).
        num_heads: query heads; 8 (2B), 16 (7B).
        num_kv_heads: key/value heads, a divisor of num_heads; 1 (2B, multi-query), 16 (7B, multi-head).
        head_dim: width of a head, even; 256. Not hidden_size / num_heads: in 7B that would be 192.
        max_position_embeddings: tokens of context the model was trained for; 8192.
        rms_norm_eps: added to the mean square in RMSNorm; 1e-6.
        rope_theta: base of the rotary angles; 10000.
        bos_token_id, eos_token_id, pad_token_id: as config.json has them; 2, 1, 0.
        tie_word_embeddings: whether the output head is the embedding (true in every published model).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos_token_id: int = 2
    eos_token_id: int = 1
    pad_token_id: int = 0
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, object], where: str) -> ModelConfig:
        """Judge the keys of a parsed config.json.

        Args:
            values: the JSON object.
            where: what messages call the source, usually the file's path.

        Raises:
            ConfigError: another model type, a key missing, out of range, of the wrong type, unknown, or with a value
                that changes the network in a way cg-local does not compute.
        """
        _check_model_type(values, where)
        _check_foreign_keys(values, where)
        dimensions = {field: _dimension(values, key, where) for field, key in DIMENSION_KEYS.items()}
        token_ids = {key: _token_id(values, key, dimensions["vocab_size"], where) for key in TOKEN_ID_KEYS}
        tie = values.get("tie_word_embeddings", True)
        if not isinstance(tie, bool):
            raise ConfigError(f"{where}: tie_word_embeddings is {_shown(tie)}; it must be true or false")
        config = cls(
            **dimensions,
            **token_ids,
            rms_norm_eps=_positive_number(values.get("rms_norm_eps", 1e-6), "rms_norm_eps", where),
            rope_theta=_rope_theta(values, where),
            tie_word_embeddings=tie,
        )
        config._check_relations(where)
        return config

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> ModelConfig:
        """Parse and judge the bytes of a config.json; `where` names them in messages.

        Raises:
            ConfigError: not one UTF-8 JSON object with distinct keys, or as `from_dict`.
        """
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{where}: {len(data):,} bytes; a config.json has less than {MAX_CONFIG_BYTES:,}")
        try:
            values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not a JSON file ({_one_line(error)}); fetch config.json again") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: holds a JSON {type(values).__name__}, not an object; fetch config.json again")
        return cls.from_dict(values, where)

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a config.json.

        Raises:
            ConfigError: no such file, unreadable, or as `from_bytes`.
        """
        return cls.from_bytes(read_config_bytes(path), str(path))

    @property
    def num_parameters(self) -> int:
        """Weights of the network, the tied embedding counted once: 2,506,172,416 in 2B."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a checkpoint by its Hugging Face name.

        The order is fixed: the embedding, the layers from 0, the final norm. A matrix is [outputs, inputs].

        Source: transformers, models/gemma/modeling_gemma.py; the second norm of a layer stands before its MLP although
        its name is post_attention_layernorm.
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input_layernorm.weight"] = (hidden,)
            shapes[prefix + "self_attn.q_proj.weight"] = (query, hidden)
            shapes[prefix + "self_attn.k_proj.weight"] = (key_value, hidden)
            shapes[prefix + "self_attn.v_proj.weight"] = (key_value, hidden)
            shapes[prefix + "self_attn.o_proj.weight"] = (hidden, query)
            shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
            shapes[prefix + "mlp.gate_proj.weight"] = (inner, hidden)
            shapes[prefix + "mlp.up_proj.weight"] = (inner, hidden)
            shapes[prefix + "mlp.down_proj.weight"] = (hidden, inner)
        shapes["model.norm.weight"] = (hidden,)
        return shapes

    def _check_relations(self, where: str) -> None:
        if self.num_layers > MAX_LAYERS:
            raise ConfigError(f"{where}: num_hidden_layers is {self.num_layers}; at most {MAX_LAYERS} are supported")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{where}: num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads "
                f"{self.num_kv_heads}; fetch config.json again"
            )
        if self.head_dim % 2:
            raise ConfigError(f"{where}: head_dim is {self.head_dim}; rotary embedding needs an even number")


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn and how long a sequence may grow.

    Attributes:
        max_tokens: tokens to generate at most, from 1.
        temperature: divisor of the logits; 0 takes the most probable token (greedy).
        top_k: keep only the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p, in (0, 1]; 1 keeps all.
        min_p: drop tokens less probable than min_p times the most probable one, in [0, 1]; 0 drops none.
        repetition_penalty: divides (positive) or multiplies (negative) logits of tokens seen before; 1 is off.
        seed: of the random source, 0 to 2**64 - 1; None draws one.
        top_logprobs: how many of the most probable tokens to report beside each chosen one.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name, low in (("max_tokens", 1), ("top_k", 0), ("top_logprobs", 0)):
            _check_int(name, getattr(self, name), low)
        _check_float("temperature", self.temperature, "of at least 0", lambda value: value >= 0)
        _check_float("top_p", self.top_p, "above 0 and at most 1", lambda value: 0 < value <= 1)
        _check_float("min_p", self.min_p, "from 0 to 1", lambda value: 0 <= value <= 1)
        _check_float("repetition_penalty", self.repetition_penalty, "above 0", lambda value: value > 0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, 2**64 - 1)


@dataclass(frozen=True)
class EngineConfig:
    """Memory and work division of the engine.

    Attributes:
        max_context: tokens of prompt and answer together; None: the model's max_position_embeddings.
        page_size: token slots of one page of K and V.
        kv_dtype: how K and V are kept, one of KV_DTYPES; None: as `kv_dtype_for` says.
        prefill_chunk: prompt tokens of one step; cancellation is looked at between chunks.
        num_threads: of the kernels, in every step; num_pages: of K and V; None: as the machine and max_context need.
        max_draft_tokens: guesses that a step verifies for each sequence at most; they change no token.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    max_context: int | None = None
    page_size: int = 16
    kv_dtype: str | None = None
    prefill_chunk: int = 512
    num_threads: int | None = None
    num_pages: int | None = None
    max_draft_tokens: int = 0

    def __post_init__(self) -> None:
        for name, low in (("page_size", 1), ("prefill_chunk", 1), ("max_draft_tokens", 0)):
            _check_int(name, getattr(self, name), low)
        for name in ("max_context", "num_threads", "num_pages"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 1)
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise ConfigError(f"kv_dtype is {_shown(self.kv_dtype)}; give one of {', '.join(KV_DTYPES)}")

    def kv_dtype_for(self, scheme: str) -> str:
        """Return how K and V are kept: float32 beside bf16 weights, which one runs for accuracy, else float16."""
        return self.kv_dtype or ("float32" if scheme == "bf16" else "float16")


def read_config_bytes(path: Path) -> bytes:
    """Return the bytes of a config.json as they stand in the file.

    Raises:
        ConfigError: no such file, not a file, or unreadable.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or "unreadable"
        advice = "give a model folder with config.json, tokenizer.model and safetensors files"
        raise ConfigError(f"{path}: {reason}; {advice}") from error


def _check_model_type(values: Mapping[str, object], where: str) -> None:
    model_type = values.get("model_type")
    if model_type != "gemma":
        raise ConfigError(f'{where}: model_type is {_shown(model_type)}, not "gemma"; {SUPPORTED}')
    architectures = values.get("architectures")
    if architectures not in (None, ["GemmaForCausalLM"]):
        raise ConfigError(f'{where}: architectures is {_shown(architectures)}, not ["GemmaForCausalLM"]; {SUPPORTED}')


def _check_foreign_keys(values: Mapping[str, object], where: str) -> None:
    for key, value in values.items():
        if key in NEUTRAL_VALUES:
            # `in` would take 0 for False and 1 for True; those are other JSON values.
            if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL_VALUES[key]):
                expected = " or ".join(_shown(neutral) for neutral in NEUTRAL_VALUES[key])
                raise ConfigError(f"{where}: {key} is {_shown(value)}, not {expected}; {SUPPORTED}")
        elif key not in READ_KEYS and key not in IGNORED_KEYS:
            found = f"unknown key {_shown(key)} (value {_shown(value)}) may change the network"
            raise ConfigError(f"{where}: {found}; {SUPPORTED}, or remove the key if it is known to change nothing")


def _dimension(values: Mapping[str, object], key: str, where: str) -> int:
    if key not in values:
        raise ConfigError(f"{where}: {key} is missing; fetch config.json again")
    value = values[key]
    if type(value) is not int or not 1 <= value <= MAX_DIMENSION:
        raise ConfigError(f"{where}: {key} is {_shown(value)}; it must be a whole number from 1 to {MAX_DIMENSION}")
    return value


def _token_id(values: Mapping[str, object], key: str, vocab_size: int, where: str) -> int:
    default = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}[key]
    value = values.get(key)
    if value is None:
        return default
    # Chat fine-tunes list several end tokens; the first one is the model's, the others are the prompt format's.
    first = value[0] if isinstance(value, list) and value else value
    if type(first) is not int or not -1 <= first < vocab_size:
        raise ConfigError(f"{where}: {key} is {_shown(value)}; it must be a token id below vocab_size {vocab_size}")
    return default if first < 0 else first


def _rope_theta(values: Mapping[str, object], where: str) -> float:
    """Read the base of the rotary angles: old keys rope_theta and rope_scaling, new key rope_parameters."""
    theta = values.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        nested = values.get(key)
        if nested is None:
            continue
        if not isinstance(nested, dict) or not nested.keys() <= {"rope_theta", "rope_type", "type"}:
            raise ConfigError(f"{where}: {key} is {_shown(nested)}, not plain rotary embedding; {SUPPORTED}")
        for kind in ("rope_type", "type"):
            if nested.get(kind, "default") != "default":
                raise ConfigError(f'{where}: {key}.{kind} is {_shown(nested[kind])}, not "default"; {SUPPORTED}')
        inner = nested.get("rope_theta", theta)
        if theta is not None and inner != theta:
            raise ConfigError(f"{where}: rope_theta is {_shown(theta)}, {key}.rope_theta {_shown(inner)}; keep one")
        theta = inner
    return 10000.0 if theta is None else _positive_number(theta, "rope_theta", where)


def _positive_number(value: object, key: str, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e12:
        raise ConfigError(f"{where}: {key} is {_shown(value)}; it must be a number above 0")
    return float(value)


def _check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"{low} to {high}"
        raise ConfigError(f"{name} is {_shown(value)}; give a whole number of {expected}")


def _check_float(name: str, value: object, expected: str, is_in_range: Callable[[float], bool]) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{name} is {_shown(value)}; give a number {expected}")
    if not is_in_range(value):
        raise ConfigError(f"{name} is {value}; give a number {expected}")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a JSON object, refusing a key that stands twice (parsers differ in which one they would take)."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _shown(value: object) -> str:
    """A value as config.json would spell it, for a one-line message: escaped, and cut when long."""
    return text if len(text := json.dumps(value, default=repr)) <= 80 else text[:77] + "..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
