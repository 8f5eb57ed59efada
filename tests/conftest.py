"""Fixtures for all tests: a clean environment, and toy models quantized once per session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples every time; time limits belong to pytest-timeout, because the first example may compile a kernel.
settings.register_profile("cg_local", derandomize=True, deadline=None, database=None)
settings.load_profile("cg_local")

HOME_VARIABLES = (
    *("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that records the screens of the chat anew."""
    parser.addoption("--record-screens", action="store_true", help="write tests/screens anew, instead of comparing")


def pytest_configure() -> None:
    """Let interrupts arrive: what a shell runs in the background inherits that SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


FolderMaker = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point every user folder into a temporary one, work there and remove cg-local's own variables; yields that folder.

    A Python that a test starts must not begin in the repository: there the folder cg_local hides an installed package.
    """
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("CG_LOCAL_")]:
            patch.delenv(name)
        for name in HOME_VARIABLES:
            patch.setenv(name, str(home / name.lower()))
        patch.chdir(home)
        yield home


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from "mqa" or "mha" to a toy checkpoint folder, written at the first call."""
    from toy_models import MHA, MQA, write_toy_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")

    def folder_of(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            write_toy_checkpoint(folder, {"mqa": MQA, "mha": MHA}[family], has_tokenizer=True)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Callable[[str], Path]) -> FolderMaker:
    """A function from ("mqa" or "mha", scheme) to the path of a quantized toy model, made at the first call."""
    from cg_local.quant import quantize

    root = tmp_path_factory.mktemp("models")

    def folder_of(family: str, scheme: str) -> Path:
        folder = root / f"{family}-{scheme}"
        if not folder.exists():
            quantize(toy_checkpoint(family), folder, scheme)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a quantized toy that says of itself that it is tuned for chat; its weights' folder is beside it."""
    from toy_models import MQA, write_toy_checkpoint

    from cg_local.quant import quantize

    root = tmp_path_factory.mktemp("chat")
    values = {**MQA, "max_position_embeddings": 2048}
    source = write_toy_checkpoint(root / "source", values, has_tokenizer=True)
    source.joinpath("tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    quantize(source, root / "toy-it", "q4")
    return root / "toy-it"


@pytest.fixture
def one_blas_thread() -> Iterator[None]:
    """For results by hand that are compared bit by bit: BLAS rounds otherwise by its number of threads."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def no_page_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test, the pages in use of every engine must be exactly those of its unfinished sequences."""
    from cg_local.engine import Engine

    engines: list[Engine] = []
    create = Engine.__init__

    def remember(self: Engine, *arguments: Any, **keywords: Any) -> None:
        create(self, *arguments, **keywords)
        engines.append(self)

    monkeypatch.setattr(Engine, "__init__", remember)
    yield
    for engine in engines:
        held = {page_id for sequence in engine.sequences for page_id in sequence.block_table}
        assert engine.block_manager.num_pages - engine.block_manager.num_free_pages == len(held)
