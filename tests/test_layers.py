"""Imports run one way, and each layer knows only what it may know.

The table LAYERS is the order in which the files can be read: a file imports only from its own layer's folder and from
the layers above it. ARCHITECTURE.md, section "Layers", says what each owns.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from source_tree import SourceFile, imported_modules, source_files

LAYERS = (
    "models",
    "errors",
    "languages",
    "grammars",
    "repository",
    "config",
    "packing",
    "safetensors_file",
    "atomic_file",
    "atomic_folder",
    "model_folder",
    "dequantized_folder",
    "model_folder_writer",
    "tokenizer",
    "checkpoint",
    "gguf_export",
    "reference",
    "kernels",
    "kv_cache",
    "memory",
    "block_manager",
    "workspace",
    "model",
    "sampling",
    "speculation",
    "threads",
    "interrupts",
    "sequence",
    "engine",
    "kv_store",
    "prefix_transfer",
    "generation",
    "prompts",
    "conversation",
    "code_blocks",
    "infill",
    "attachments",
    "quant",
    "model_store",
    "prompt_budget",
    "opened_model",
    "sessions",
    "answers",
    "candidates",
    "runtime",
    "request_file",
    "evaluation",
    "jax_backend",
    "bench",
    "quality",
    "settings",
    "question",
    "templates",
    "cli",
)
# Stands beside the order: nothing else imports it.
TRAINING = "training"

INSTALLED = source_files(installed_only=True)


def layer_of(module: str) -> str:
    """Return the layer of "cg_local.kernels.matmul": "kernels"; of the package itself: ""."""
    return [*module.split("."), ""][1]


def imported_layers(file: SourceFile, **options: bool) -> set[str]:
    """Return the layers that a file imports from; a name of the package itself is the layer it stands for."""
    return {layer_of(name) for name in imported_modules(file, **options) if name.startswith("cg_local.")}


def file_of(module: str) -> SourceFile:
    """Return the file of a module."""
    return next(file for file in INSTALLED if file.module == module)


def files_of(layer: str) -> list[SourceFile]:
    """Return the files of a layer."""
    return [file for file in INSTALLED if layer_of(str(file.module)) == layer]


def external_imports(file: SourceFile, **options: bool) -> set[str]:
    """Return the top-level packages, other than the standard library's and our own, that a file imports."""
    names = {name.split(".")[0] for name in imported_modules(file, **options)}
    return names - set(sys.stdlib_module_names) - {"cg_local"}


def test_every_file_belongs_to_a_layer() -> None:
    known = {*LAYERS, TRAINING, ""}
    strangers = [file.path for file in INSTALLED if layer_of(str(file.module)) not in known]
    assert not strangers, f"place {strangers} in LAYERS"


def test_every_layer_exists() -> None:
    assert set(LAYERS) <= {layer_of(str(file.module)) for file in INSTALLED}


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_only_from_above(layer: str) -> None:
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    # Training stands beside the order; the test below says who may use it.
    upward = {file.path: sorted(imported_layers(file) - allowed - {"", TRAINING}) for file in files_of(layer)}
    assert not {path: layers for path, layers in upward.items() if layers}


def test_quantizer_knows_no_engine() -> None:
    allowed = {"errors", "config", "packing", "safetensors_file", "atomic_folder", "model_folder"}
    allowed |= {"model_folder_writer", "checkpoint", "quant", ""}
    # Texts to calibrate on are read as the product reads and prompts them.
    allowed |= {"languages", "repository", "tokenizer", "prompts"}
    # States are computed by the oracle, not by an engine.
    allowed |= {"reference"}
    # An importance pack is a file of its own.
    allowed |= {"atomic_file"}
    for file in files_of("quant"):
        # Its search is compiled too, kept where the kernels are, and written in the same vectors of LLVM.
        kernels = {module for module in imported_modules(file) if module.startswith("cg_local.kernels")}
        known = ("cg_local.kernels.cache_folder", "cg_local.kernels.llvm_vectors")
        assert all(module.startswith(known) for module in kernels), file.path
        assert imported_layers(file) - {"kernels"} <= allowed, file.path


def test_training_uses_only_errors_and_the_layers_in_jax_and_only_its_command_uses_training() -> None:
    for file in files_of(TRAINING):
        assert imported_layers(file) <= {*LAYERS[1:5], "jax_backend", TRAINING, ""}, file.path
        in_jax = {name for name in imported_modules(file) if layer_of(name) == "jax_backend"}
        assert all(name.startswith("cg_local.jax_backend.layers") for name in in_jax), file.path
    for file in INSTALLED:
        is_allowed = layer_of(str(file.module)) == TRAINING or file.path == "cli/train.py"
        assert is_allowed or TRAINING not in imported_layers(file), file.path


def test_jax_is_imported_by_its_own_folders_alone() -> None:
    """Everything else works without the extra `jax`; a command imports it when it is asked for."""
    for file in INSTALLED:
        if layer_of(str(file.module)) not in ("jax_backend", TRAINING):
            assert not external_imports(file, module_level_only=True) & {"jax", "optax"}, file.path
            assert not {
                name for name in imported_modules(file, module_level_only=True) if layer_of(name) == "jax_backend"
            }, file.path


def test_only_the_command_line_imports_the_command_line() -> None:
    for file in INSTALLED:
        assert layer_of(str(file.module)) == "cli" or "cli" not in imported_layers(file), file.path


def test_kernels_import_only_numpy_numba_and_packing() -> None:
    for file in files_of("kernels"):
        assert imported_layers(file) <= {"kernels", "packing"}, file.path
        assert external_imports(file) <= {"numpy", "numba", "llvmlite"}, file.path


@pytest.mark.parametrize("module", ["cg_local.block_manager", "cg_local.speculation", "cg_local.threads"])
def test_policies_hold_plain_numbers(module: str) -> None:
    assert external_imports(file_of(module)) == set()


def test_model_knows_no_requests() -> None:
    assert "block_manager" not in imported_layers(file_of("cg_local.model"))


def test_engine_knows_no_text() -> None:
    assert not imported_layers(file_of("cg_local.engine")) & {"tokenizer", "prompts", "generation", "infill"}


def test_command_line_calls_no_kernel_and_loads_nothing_slow_at_its_start() -> None:
    slow = {"numpy", "numba", "llvmlite", "sentencepiece", "jax"}
    for file in files_of("cli"):
        assert not imported_layers(file) & {"kernels", "model", "kv_cache"}, file.path
        assert not external_imports(file, module_level_only=True) & slow, file.path


@pytest.mark.parametrize("module", ["cg_local", "cg_local.errors", "cg_local.quant", "cg_local.cli.app"])
def test_import_loads_neither_numpy_nor_numba(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'numpy', 'numba', 'sentencepiece'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def private_names_defined(file: SourceFile) -> set[str]:
    """Return the private names that a file defines, as functions, classes, variables or attributes."""
    names: set[str] = set()
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def is_private(name: str) -> bool:
    """Tell whether a name has a leading underscore and is no special method."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def test_no_private_name_crosses_a_file() -> None:
    files = source_files()
    defined = {file.path: private_names_defined(file) for file in files}
    ours = set().union(*defined.values())
    crossings: list[str] = []
    for file in files:
        used = {node.attr for node in ast.walk(file.tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
        crossings += [f"{file.path}: {name}" for name in sorted((used & ours) - defined[file.path])]
        for name in imported_modules(file):
            if any(is_private(part) for part in name.split(".")) and name.startswith("cg_local"):
                crossings.append(f"{file.path}: {name}")
    assert not crossings
