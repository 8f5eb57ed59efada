"""Requests and texts over the compiled model: what `cg-local complete` and `eval` ask of JAX.

This file owns opening a model for JAX, and following the text of each row. It chooses no token. Invariant: an answer
ends and is cut by the same rules, and from the same prompt, as the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from cg_local.answers import KeepAll, Trimmer
from cg_local.checkpoint import open_checkpoint
from cg_local.config import ModelConfig, SamplingParams
from cg_local.dequantized_folder import DequantizedFolder
from cg_local.errors import CapacityError, TokenizerError
from cg_local.evaluation import Answer, Doubles, params_of, request_prompt
from cg_local.infill.postprocess import MiddleTrimmer
from cg_local.jax_backend.generate import Generator
from cg_local.jax_backend.mesh import MeshShape, Shardings, make_mesh
from cg_local.jax_backend.model import CompiledModel, Network
from cg_local.jax_backend.weights import WeightSource, check_dtype, device_weight_bytes, load_weights
from cg_local.memory import available_bytes, readable_size
from cg_local.model_folder import open_model_folder
from cg_local.model_store import FoundModel, find_model, is_model_folder, ready_folder, refuse_scheme
from cg_local.reference import EmbeddingScale
from cg_local.request_file import Request
from cg_local.tokenizer import Tokenizer

PUBLISHED = "published"


@dataclass(frozen=True)
class OpenedModel:
    """Weights that JAX can read.

    Attributes:
        name: as asked for.
        path: of the checkpoint or model folder.
        source: its tensors.
        scheme: of a model folder, or "published".
        tokenizer_model: a SentencePiece model, serialized; None where a checkpoint has none.
    """

    name: str
    path: Path
    source: WeightSource
    scheme: str
    tokenizer_model: bytes | None

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.source.config

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer.

        Raises:
            TokenizerError: there is none, or it is of another model.
        """
        if self.tokenizer_model is None:
            raise TokenizerError(f"{self.path}: has no tokenizer.model; copy it from the published model")
        tokenizer = Tokenizer.from_bytes(self.tokenizer_model, str(self.path))
        tokenizer.check_rows(self.config.vocab_size, str(self.path))
        return tokenizer


def open_model(
    name_or_path: str | Path, scheme: str | None = None, on_progress: Callable[[int, int, str], None] | None = None
) -> OpenedModel:
    """Open a model for JAX.

    Args:
        name_or_path: as `runtime.load` takes it, or a folder of published weights.
        scheme: for the embedded model: its quantized copy; None: its published weights.
        on_progress: see `cg_local.quant.quantize`.

    Raises:
        ModelFolderError, CheckpointError, ConfigError: no such model, another scheme, or damaged files.
    """
    found: FoundModel = find_model(name_or_path)
    if (found.is_embedded and scheme is not None) or (not found.is_embedded and is_model_folder(found.path)):
        folder = open_model_folder(ready_folder(found, scheme, on_progress))
        refuse_scheme(found, scheme, folder.scheme)
        tokenizer = folder.tokenizer_path.read_bytes()
        return OpenedModel(found.name, folder.path, DequantizedFolder(folder), folder.scheme, tokenizer)
    refuse_scheme(found, scheme, PUBLISHED)
    checkpoint = open_checkpoint(found.path)
    return OpenedModel(found.name, found.path, checkpoint, PUBLISHED, checkpoint.tokenizer_bytes())


def compile_model(
    opened: OpenedModel,
    *,
    mesh: MeshShape,
    dtype: str = "float32",
    vocab_size: int | None = None,
    embedding_scale: EmbeddingScale = "exact",
) -> CompiledModel:
    """Put a model on the devices of a mesh.

    Args:
        opened: from `open_model`.
        mesh: how many devices share sequences and matrices.
        dtype: of the matrices.
        vocab_size: ids from here on are never chosen; None: all rows of the embedding.
        embedding_scale: see `reference.logits`.

    Raises:
        BackendError: an unknown dtype, too few devices, or they cannot share the model evenly.
        CapacityError: the weights do not fit in the memory of the devices.
        CheckpointError: the weights cannot be read.
    """
    check_dtype(dtype)
    shardings = Shardings(make_mesh(mesh), opened.config)
    _check_room(opened, shardings, dtype)
    rows = opened.config.vocab_size
    network = Network(opened.config, dtype, shardings, embedding_scale, min(vocab_size or rows, rows))
    return CompiledModel(network, load_weights(opened.source, shardings, dtype))


def _check_room(opened: OpenedModel, shardings: Shardings, dtype: str) -> None:
    """Refuse weights that do not fit; devices that do not tell their memory are taken at their word."""
    devices = [device for device in shardings.mesh.devices.flat if device.process_index == jax.process_index()]
    if not devices:
        return
    needed = device_weight_bytes(opened.config, shardings, dtype)
    if devices[0].platform == "cpu":
        room, count = available_bytes(), len(devices)  # virtual devices share the machine's memory
    else:
        room, count = (devices[0].memory_stats() or {}).get("bytes_limit"), 1
    if room is not None and needed * count > room:
        raise CapacityError(
            f"{opened.name}: its weights in {dtype} take {readable_size(needed)} on each of {len(devices)} devices "
            f"({devices[0].platform}), {readable_size(room)} are free; give a mesh with more devices behind the x, or "
            "--dtype bfloat16"
        )


class JaxBackend:
    """Answers and losses by JAX; see `evaluation.Backend`.

    Args:
        model: on its devices.
        tokenizer: of the model.
        batch_size: requests at once; rounded up so that the mesh's groups share them evenly.
        max_context: tokens of prompt and answer together; None: as the model was trained.
        infill_order: of the prompts of gaps.
    """

    def __init__(
        self,
        model: CompiledModel,
        tokenizer: Tokenizer,
        batch_size: int,
        max_context: int | None = None,
        infill_order: str = "psm",
    ) -> None:
        groups = model.network.shardings.data
        self.tokenizer, self.batch_size = tokenizer, -(-batch_size // groups) * groups
        trained = model.network.config.max_position_embeddings
        self.max_context = min(max_context or trained, trained)
        self.infill_order = infill_order
        self._generator = Generator(model, self.batch_size)

    def answer(self, requests: Sequence[Request], params: SamplingParams) -> list[Answer]:
        """See `evaluation.Backend`."""
        prompts = [request_prompt(self, each, params.max_tokens) for each in requests]
        rows = [RowText(self.tokenizer, _trimmer(request), params.max_tokens) for request in requests]
        self._generator.run(
            [prompt.token_ids for prompt in prompts],
            [params_of(request, params) for request in requests],
            lambda row, token_id, logprob: rows[row].push(token_id, logprob),
        )
        return [row.finish(len(prompt.token_ids), prompt.truncated) for row, prompt in zip(rows, prompts, strict=True)]

    def losses(self, sequences: Sequence[Sequence[int]]) -> list[Doubles]:
        """See `evaluation.Backend`."""
        return self._generator.losses(sequences)


class RowText:
    """Follows the tokens of one row as `answers.AnswerStream` follows the engine's.

    Args:
        tokenizer: turns tokens into text.
        trimmer: ends and cuts the text.
        max_tokens: of the answer.
    """

    def __init__(self, tokenizer: Tokenizer, trimmer: Trimmer, max_tokens: int) -> None:
        self._tokenizer, self._trimmer = tokenizer, trimmer
        self._decoder = tokenizer.stream_decoder()
        self._logprobs: list[float] = []
        self._num_tokens = 0
        self._stop_reason = "max_tokens"

    def push(self, token_id: int, logprob: float) -> bool:
        """Take the next token; return whether the row goes on."""
        self._logprobs.append(logprob)
        if token_id in self._tokenizer.infill_stop_ids:
            ends = (self._tokenizer.eos_id, self._tokenizer.end_of_turn_id)
            self._stop_reason = "eos" if token_id in ends else "separator"
            return False
        self._num_tokens += 1
        self._trimmer.push(self._decoder.push(token_id))
        if self._trimmer.stop_reason is not None:
            self._stop_reason = self._trimmer.stop_reason
        return self._trimmer.stop_reason is None

    def finish(self, prompt_tokens: int, truncated: bool) -> Answer:
        """Return the answer."""
        self._trimmer.push(self._decoder.flush())
        self._trimmer.finish()
        mean = float(np.mean(self._logprobs)) if self._logprobs else None
        return Answer(self._trimmer.text, self._stop_reason, self._num_tokens, prompt_tokens, mean, truncated)


def _trimmer(request: Request) -> Trimmer:
    if request.suffix is None:
        return KeepAll()
    return MiddleTrimmer(str(request.prefix), request.suffix, "auto", request.path)
