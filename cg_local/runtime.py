"""The front door: `load` a model, and what can be asked of it.

This file owns how the parts are put together: folder, tokenizer, prompts, engine, stops. It computes nothing itself.
Invariant: every text that a method returns has no control token in it, and every prompt is cut to the model's context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from cg_local import kernels
from cg_local.answers import AnswerStream, Completion, Infill, KeepAll
from cg_local.candidates import Candidates, candidate_params
from cg_local.config import EngineConfig, SamplingParams
from cg_local.conversation import Conversation
from cg_local.engine import Engine
from cg_local.errors import CapacityError
from cg_local.generation import TextStream, stream_text
from cg_local.infill.parse_errors import num_added_errors
from cg_local.infill.postprocess import MiddleTrimmer
from cg_local.kv_store import CONVERSATIONS, FILLS, KVStore
from cg_local.memory import available_bytes, check_memory, memory_need
from cg_local.model import Model
from cg_local.model_folder import ModelFolder
from cg_local.model_store import Progress, find_model, refuse_scheme
from cg_local.models import infill_order
from cg_local.opened_model import open_model
from cg_local.prompts import Prompt, chat_prompt, complete_prompt, infill_prompt
from cg_local.sequence import Sequence as Running
from cg_local.speculation import MAX_DRAFT_TOKENS
from cg_local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cg_local.prefix_transfer import PrefixKeeper

Notice = Callable[[str], None]
Messages = Sequence[Mapping[str, str]] | Conversation


class LocalModel:
    """A loaded model.

    It belongs to one thread, and a stream must end (or be closed) before the next question is asked.

    Attributes:
        name: as asked for.
        path: the model folder.
        config: of the network.
        scheme: "q4", "q8" or "bf16".
        max_context: tokens of prompt and answer together.
        tokenizer: text to token ids and back.
        is_chat_model: it is tuned to answer questions; base models only continue texts.
        load_seconds: what loading took.
    """

    def __init__(self, name: str, folder: ModelFolder, engine: Engine, tokenizer: Tokenizer) -> None:
        """Bind loaded parts together; use `load` instead."""
        self.name, self.path, self.config, self.scheme = name, folder.path, folder.config, folder.scheme
        self.tokenizer = tokenizer
        self.max_context = engine.max_context
        self.is_chat_model = folder.is_chat_model
        self.load_seconds = 0.0
        self._engine = engine
        self._prefixes: PrefixKeeper | None = None

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each token, float32 [num_tokens, vocab_size].

        Args:
            token_ids: at least one id; `<bos>` is not added.

        Raises:
            PromptError, CapacityError: no token, an unknown one, or too many.
        """
        return self._engine.logits(token_ids)

    @property
    def infill_order(self) -> str:
        """The order of the parts of a fill-in-the-middle prompt where none is asked for."""
        return infill_order(self.name)

    @overload
    def infill(
        self,
        prefix: str,
        suffix: str,
        path: str | None = ...,
        *,
        mode: str = ...,
        order: str | None = ...,
        context: Sequence[tuple[str, str]] = ...,
        params: SamplingParams | None = ...,
        max_prompt_tokens: int | None = ...,
        stream: Literal[False] = ...,
    ) -> Infill: ...

    @overload
    def infill(
        self,
        prefix: str,
        suffix: str,
        path: str | None = ...,
        *,
        mode: str = ...,
        order: str | None = ...,
        context: Sequence[tuple[str, str]] = ...,
        params: SamplingParams | None = ...,
        max_prompt_tokens: int | None = ...,
        stream: Literal[True],
    ) -> AnswerStream[Infill]: ...

    def infill(
        self,
        prefix: str,
        suffix: str,
        path: str | None = None,
        *,
        mode: str = "auto",
        order: str | None = None,
        context: Sequence[tuple[str, str]] = (),
        params: SamplingParams | None = None,
        max_prompt_tokens: int | None = None,
        stream: bool = False,
    ) -> Infill | AnswerStream[Infill]:
        """Write the text between two texts.

        Args:
            prefix: text before the gap, lines ending with "\\n".
            suffix: text after the gap.
            path: the file's path, relative to its repository; the model reads it, and its suffix names the language.
            mode: "line", "block" or "auto"; see `infill.postprocess`.
            order: "psm" or "spm"; default what the model was measured to fill best in, else "psm".
            context: path and text of other files, the nearest last.
            params: how to sample; default greedy, at most 128 tokens.
            max_prompt_tokens: bound on the prompt beside the context's.
            stream: return a stream of text pieces, whose `result` is the Infill, instead of the Infill.

        Raises:
            PromptError: nothing to go on, or an unknown order.
            CapacityError: the context leaves no room for a prompt.
            ValueError: an unknown mode.
        """
        params, trimmer = params or SamplingParams(), MiddleTrimmer(prefix, suffix, mode, path)
        room = self._room(params, max_prompt_tokens)
        prompt = self._infill_prompt(prefix, suffix, path, order=order, context=context, max_prompt_tokens=room)
        sequence = self._engine.add(prompt.token_ids, params, self.tokenizer.infill_stop_ids)
        answers = self._infill_stream(sequence, prompt, trimmer)
        return answers if stream else answers.run()

    def infill_candidates(
        self,
        prefix: str,
        suffix: str,
        path: str | None = None,
        *,
        num_candidates: int = 3,
        mode: str = "auto",
        order: str | None = None,
        context: Sequence[tuple[str, str]] = (),
        params: SamplingParams | None = None,
        max_prompt_tokens: int | None = None,
    ) -> Candidates:
        """Write several texts between two texts, side by side; the prompt is computed once.

        Arguments and errors are those of `infill`. Without `load(spare_tokens=...)` there may be room for fewer.
        """
        all_params = candidate_params(params or SamplingParams(), num_candidates)
        trimmers = [MiddleTrimmer(prefix, suffix, mode, path) for _ in all_params]
        room, stop_ids = self._room(all_params[0], max_prompt_tokens), self.tokenizer.infill_stop_ids
        prompt = self._infill_prompt(prefix, suffix, path, order=order, context=context, max_prompt_tokens=room)
        return Candidates(
            self._engine,
            (prompt.token_ids, stop_ids),
            all_params,
            lambda sequence: self._infill_stream(sequence, prompt, trimmers.pop()),
            lambda texts: num_added_errors(prefix, suffix, path, texts),
        )

    def _infill_prompt(
        self, prefix: str, suffix: str, path: str | None, *, order: str | None, **options: Any
    ) -> Prompt:
        """Build a prompt, and bring what the store knows of it."""
        order = order or self.infill_order
        prompt = infill_prompt(self.tokenizer, prefix, suffix, path=path, order=order, **options)
        if self._prefixes is not None:
            self._prefixes.restore(FILLS, prompt.token_ids)
        return prompt

    def _infill_stream(self, sequence: Running, prompt: Prompt, trimmer: MiddleTrimmer) -> AnswerStream[Infill]:
        def finish(answer: Completion) -> Infill:
            fields = vars(_with_prompt(answer, prompt))
            return Infill(**fields, mode=trimmer.mode, trimmed=trimmer.trimmed, untrimmed=trimmer.raw)

        return AnswerStream(TextStream(self._engine, self.tokenizer, sequence), trimmer, self._end_ids, finish)

    @overload
    def complete(
        self, text: str, *, params: SamplingParams | None = ..., stream: Literal[False] = ...
    ) -> Completion: ...

    @overload
    def complete(
        self, text: str, *, params: SamplingParams | None = ..., stream: Literal[True]
    ) -> AnswerStream[Completion]: ...

    def complete(
        self, text: str, *, params: SamplingParams | None = None, stream: bool = False
    ) -> Completion | AnswerStream[Completion]:
        """Continue a text.

        Args:
            text: what comes before.
            params: how to sample; default greedy, at most 128 tokens.
            stream: return a stream of text pieces instead of the whole.

        Raises:
            PromptError, CapacityError: there is no room for the text.
        """
        params = params or SamplingParams()
        prompt = complete_prompt(self.tokenizer, text, max_prompt_tokens=self._room(params, None))
        answers = self._answer(prompt, params, self.tokenizer.infill_stop_ids)
        return answers if stream else answers.run()

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        params: SamplingParams | None = ...,
        max_prompt_tokens: int | None = ...,
        stream: Literal[False] = ...,
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        params: SamplingParams | None = ...,
        max_prompt_tokens: int | None = ...,
        stream: Literal[True],
    ) -> AnswerStream[Completion]: ...

    def chat(
        self,
        messages: Messages,
        *,
        params: SamplingParams | None = None,
        max_prompt_tokens: int | None = None,
        stream: bool = False,
    ) -> Completion | AnswerStream[Completion]:
        """Answer the last message of a conversation; for instruction-tuned models (`is_chat_model`).

        Args:
            messages: mappings with "role" ("system", "user", "assistant") and "content", oldest first; or a
                Conversation that waits for an answer.
            params: how to sample; default greedy, at most 128 tokens.
            max_prompt_tokens: bound on the prompt, in place of the context's without `params.max_tokens`: the answer
                then ends where the context does.
            stream: return a stream of text pieces instead of the whole.

        Raises:
            PromptError, CapacityError: a malformed conversation, or no room for the last question.
        """
        params = params or SamplingParams()
        room = self._room(params, None) if max_prompt_tokens is None else min(max_prompt_tokens, self.max_context - 1)
        if isinstance(messages, Conversation):
            prompt = messages.prompt(self.tokenizer, max_prompt_tokens=room)
        else:
            prompt = chat_prompt(self.tokenizer, messages, max_prompt_tokens=room)
        if self._prefixes is not None:
            self._prefixes.restore(CONVERSATIONS, prompt.token_ids, lambda: [*prompt.token_ids, *answers.token_ids])
        answers = self._answer(prompt, params, self.tokenizer.chat_stop_ids)
        return answers if stream else answers.run()

    def use_kv_store(self, store: KVStore) -> None:
        """Let prompts of chats and fills find the K and V that an earlier process left on disk; answers stay the same.

        Args:
            store: where they lie; `save_prefix` writes there.
        """
        from cg_local.prefix_transfer import PrefixKeeper

        self._prefixes = PrefixKeeper(self._engine, store, self.name)

    def save_prefix(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Write K and V of the last prompt to the store, as far as they are computed and new there.

        A chat's answer goes with it. To be called when it has been shown; nothing else may use the model meanwhile.

        Args:
            should_stop: asked before each page of 16 tokens; what is written until then is kept.

        Returns:
            Bytes written; 0 without a store, and where the disk could not be written.
        """
        return self._prefixes.save(should_stop) if self._prefixes is not None else 0

    @property
    def _end_ids(self) -> frozenset[int]:
        return frozenset((self.tokenizer.eos_id, self.tokenizer.end_of_turn_id))

    def _answer(self, prompt: Prompt, params: SamplingParams, stop_ids: frozenset[int]) -> AnswerStream[Completion]:
        stream = stream_text(self._engine, self.tokenizer, prompt.token_ids, params, stop_ids)
        return AnswerStream(stream, KeepAll(), self._end_ids, lambda answer: _with_prompt(answer, prompt))

    def _room(self, params: SamplingParams, max_prompt_tokens: int | None) -> int:
        room = self.max_context - params.max_tokens
        if room < 1:
            raise CapacityError(
                f"max_tokens is {params.max_tokens:,} and the context holds {self.max_context:,} tokens, prompt "
                f"included; ask for {self.max_context // 2:,} or fewer, which leaves room for a prompt"
            )
        return room if max_prompt_tokens is None else min(room, max_prompt_tokens)


def load(
    name_or_path: str | Path = "nano",
    *,
    scheme: str | None = None,
    max_context: int | None = None,
    num_threads: int | None = None,
    activations: str = "int8",
    kv_dtype: str | None = None,
    speculation: bool = True,
    spare_tokens: int = 0,
    num_sequences: int = 1,
    on_notice: Notice | None = None,
    on_progress: Progress | None = None,
) -> LocalModel:
    """Load a model.

    An embedded model is quantized into the user's cache when it is first loaded; `model_store` tells where that is.

    Args:
        name_or_path: "nano", the name of a model in the user's data folder, or the path of a model folder.
        scheme: how to quantize "nano" ("q4", "q8", "bf16"; default "q4"); another than a model folder's is refused.
        max_context: tokens of prompt and answer together at most; a model that was trained for fewer uses those.
        num_threads: of the kernels; default one for each core that this process may use, fewer where that is faster.
        activations: how the inputs of products with 8-bit weights are rounded, "int8" or the finer "int16".
        kv_dtype: how keys and values are kept: "float16", "float32", or "int8", which takes half of float16's memory;
            default float16, float32 beside bf16 weights.
        speculation: guess next tokens and compute several at once where that saves time; answers are the same.
        spare_tokens: K/V room beside the context's, for answers that are computed side by side.
        num_sequences: answers that may be under way at the same time, each with a whole context of its own.
        on_notice: called with each one-line thing that a user should be told.
        on_progress: called with bytes done, bytes in all and tensor name while the embedded model is quantized.

    Raises:
        ModelFolderError: no such model, or its folder is damaged.
        TokenizerError: tokenizer.model is unusable.
        ConfigError: another scheme than the folder's, or a value that is out of range or unknown.
        CapacityError: the memory that is free does not hold the model.
        QuantizeError: the cache cannot be written.
    """
    started = time.perf_counter()
    found = find_model(name_or_path)
    folder, tokenizer = open_model(found, scheme, on_progress, on_notice)
    refuse_scheme(found, scheme, folder.scheme)
    if on_notice is not None:
        for notice in tokenizer.notices:
            on_notice(notice)
    trained = folder.config.max_position_embeddings
    context = trained if max_context is None else min(max_context, trained)
    config = EngineConfig(
        max_context=context,
        num_pages=num_sequences * _pages(context) + _pages(spare_tokens),
        num_threads=num_threads,
        kv_dtype=kv_dtype,
        max_draft_tokens=MAX_DRAFT_TOKENS if speculation else 0,
    )
    _check_memory(found.name, folder, config, is_fused=bool(kernels.FUSED_FORMATS) and activations == "int8")
    engine = Engine(Model(folder, activations=activations), config, vocab_size=tokenizer.vocab_size)
    model = LocalModel(found.name, folder, engine, tokenizer)
    model.load_seconds = time.perf_counter() - started
    return model


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // EngineConfig.page_size)


def _check_memory(name: str, folder: ModelFolder, config: EngineConfig, *, is_fused: bool) -> None:
    weight_bytes = sum(matrix.num_bytes for matrix in folder.matrices.values())
    need = memory_need(weight_bytes, folder.scheme, folder.config, config, is_fused=is_fused)
    check_memory(name, need, available_bytes())


def _with_prompt(answer: Completion, prompt: Prompt) -> Completion:
    return replace(answer, truncated=prompt.truncated, notice=prompt.notice, omitted_turns=prompt.omitted_turns)
