"""Names of models to folders: the embedded model's quantized copy, the user's own models, plain paths.

This file owns where models are looked for and the cache of the embedded model. It opens no model. Invariant: a folder
in the cache is complete from the moment it has its name, whoever wrote it and however many processes wrote at once.

Environment: CG_LOCAL_CACHE is the folder for quantized copies (default: the user's cache folder of the platform),
CG_LOCAL_DATA the folder whose `models` holds named models (default: the user's data folder), CG_LOCAL_STATE the folder
of the history and the journal of writes (default: the user's state folder).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cg_local.errors import CgLocalError, ConfigError, ModelFolderError, QuantizeError
from cg_local.models import EMBEDDED, embedded_checkpoint

DEFAULT_SCHEME = "q4"
_CHECKPOINT_FILES = ("config.json", "tokenizer.model", "model.safetensors")
# The largest header that safetensors allows.
_MAX_HEADER_BYTES = 100_000_000

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FoundModel:
    """Where a model lies.

    Attributes:
        name: what messages and results call it.
        path: a model folder, or published weights that are yet to be quantized.
        is_embedded: it is the package's own; a path that reads like an embedded name ("./nano") is not.
    """

    name: str
    path: Path
    is_embedded: bool = False


def cache_folder() -> Path:
    """Return the folder for quantized copies of embedded models."""
    return _folder("CG_LOCAL_CACHE", "user_cache_path")


def kv_folder() -> Path:
    """Return the folder of K and V that lets conversations go on quickly."""
    return cache_folder() / "kv"


def models_folder() -> Path:
    """Return the folder in which a model's name is its folder's name."""
    return data_folder() / "models"


def data_folder() -> Path:
    """Return the folder of what belongs to the user: named models and saved conversations."""
    return _folder("CG_LOCAL_DATA", "user_data_path")


def state_folder() -> Path:
    """Return the folder of what was done: the history of the questions typed, the journal of writes."""
    return _folder("CG_LOCAL_STATE", "user_state_path")


def config_path() -> Path:
    """Return where config.toml lies, or would lie; CG_LOCAL_CONFIG names another file."""
    if value := os.environ.get("CG_LOCAL_CONFIG"):
        return Path(value).expanduser()
    return _folder("", "user_config_path") / "config.toml"


def known_models() -> list[str]:
    """Return the names of models: the embedded ones and those in `models_folder`."""
    return [*EMBEDDED, *sorted(path.name for path in models_folder().glob("*") if path.is_dir())]


def find_model(name_or_path: str | Path) -> FoundModel:
    """Find a model without opening or quantizing it.

    Args:
        name_or_path: an embedded name, the name of a folder in `models_folder`, or a path. A text with a path separator
            is always a path.

    Raises:
        ModelFolderError: there is no such model.
    """
    text = str(name_or_path)
    is_name = isinstance(name_or_path, str) and not any(mark and mark in text for mark in (os.sep, os.altsep))
    if is_name and text in EMBEDDED:
        return FoundModel(text, embedded_checkpoint(text), is_embedded=True)
    if is_name and text not in ("", ".", "..") and (models_folder() / text).is_dir():
        return FoundModel(text, models_folder() / text)
    if Path(name_or_path).exists():
        return FoundModel(text, Path(name_or_path))
    if not is_name:
        raise ModelFolderError(f"{text}: no such folder; give a model folder or the name of a model")
    raise ModelFolderError(
        f"{text}: no such model or folder; known names: {', '.join(known_models())}; published weights "
        "become a model by `cg-local quantize SOURCE DEST`"
    )


def ready_folder(found: FoundModel, scheme: str | None = None, on_progress: Progress | None = None) -> Path:
    """Return the model folder of a found model; an embedded one is quantized into the cache when first asked for.

    Args:
        found: from `find_model`.
        scheme: for an embedded model, how to quantize it; default DEFAULT_SCHEME.
        on_progress: see `cg_local.quant.quantize`; not called when nothing is to be quantized.

    Raises:
        QuantizeError: the cache cannot be written.
    """
    if not found.is_embedded:
        return found.path
    folder = cached_folder(found, scheme or DEFAULT_SCHEME)
    if not folder.exists():
        _fill_cache(found.path, folder, scheme or DEFAULT_SCHEME, on_progress)
    return folder


def temporary_folder(found: FoundModel, scheme: str | None = None, on_progress: Progress | None = None) -> Path:
    """Return a copy of an embedded model that lasts as long as this process, for where the cache cannot be written.

    Raises:
        QuantizeError: the folder of temporary files cannot be written either.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="cg-local-"))
    except OSError as error:
        raise QuantizeError(f"{tempfile.gettempdir()}: no temporary copy can be written ({error.strerror})") from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _fill_cache(found.path, folder / found.name, scheme or DEFAULT_SCHEME, on_progress)
    return folder / found.name


def cached_folder(found: FoundModel, scheme: str) -> Path:
    """Return where the quantized copy of an embedded model lies, or will lie.

    The name holds a digest of the weights and the version of the format, so a newer package never meets an older copy.
    """
    from cg_local.model_folder import FORMAT_VERSION

    digest = hashlib.sha256()
    for name in _CHECKPOINT_FILES:
        try:
            digest.update(found.path.joinpath(name).read_bytes())
        except OSError as error:
            raise ModelFolderError(
                f"{found.path / name}: the embedded model cannot be read ({error.strerror}); install cg-local again"
            ) from error
    return cache_folder() / f"{found.name}-{scheme}-v{FORMAT_VERSION}-{digest.hexdigest()[:16]}"


def renew(found: FoundModel, scheme: str | None = None, on_progress: Progress | None = None) -> Path:
    """Quantize an embedded model again, in place of a damaged copy in the cache."""
    folder = cached_folder(found, scheme or DEFAULT_SCHEME)
    shutil.rmtree(folder, ignore_errors=True)
    return ready_folder(found, scheme, on_progress)


def model_digest(found: FoundModel) -> str:
    """Return what tells a model's content from others', wherever it lies, without reading gigabytes.

    The weights of a model folder are known by the digests in its header. Published ones have none: they are known by
    their headers, sizes and times.
    """
    if found.is_embedded:
        return cached_folder(found, DEFAULT_SCHEME).name
    digest, is_ours = hashlib.sha256(), is_model_folder(found.path)
    for file in sorted(found.path.glob("*")):
        if file.name in _CHECKPOINT_FILES[:2]:
            digest.update(file.read_bytes())
        elif file.suffix == ".safetensors":
            digest.update(_header(file))
            status = file.stat()
            digest.update(b"" if is_ours else f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds (possibly damaged) quantized weights, not published ones."""
    from cg_local.model_folder import METADATA_KEY, WEIGHTS_FILE

    try:
        return f'"{METADATA_KEY}"'.encode() in _header(path / WEIGHTS_FILE)
    except OSError:
        return False


def _header(weights: Path) -> bytes:
    """Return the header of a safetensors file, or what stands in its place."""
    with weights.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), _MAX_HEADER_BYTES))


def refuse_scheme(found: FoundModel, scheme: str | None, actual: str) -> None:
    """Refuse a scheme that a model folder does not have.

    Raises:
        ConfigError: another scheme was asked for.
    """
    if scheme is not None and scheme != actual:
        raise ConfigError(
            f"{found.name}: this model folder is {actual}, {scheme} was asked for; leave the scheme out, or run "
            f"`cg-local quantize SOURCE DEST --scheme {scheme}`"
        )


def _folder(variable: str, function: str) -> Path:
    if value := os.environ.get(variable):
        return Path(os.path.expanduser(value))  # where no shell has done it, as in a service's environment
    import platformdirs

    path: Path = getattr(platformdirs, function)("cg-local", appauthor=False)
    return path


def _fill_cache(checkpoint: Path, folder: Path, scheme: str, on_progress: Progress | None) -> None:
    """Quantize beside the place and move there at once: of two processes, the later one takes the winner's."""
    from cg_local.quant import quantize

    own = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        quantize(checkpoint, own, scheme, is_resumable=False, on_progress=on_progress)
        try:
            own.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    except OSError as error:
        raise QuantizeError(
            f"{folder.parent}: the quantized copy cannot be written ({error.strerror}); make room there, or set "
            "CG_LOCAL_CACHE to a folder that can be written"
        ) from error
    except CgLocalError as error:
        raise type(error)(f"{error} (CG_LOCAL_CACHE can name another folder than {folder.parent})") from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left beside the place; a run that still goes on holds its lock and keeps its own."""
    from cg_local.atomic_folder import AtomicFolder

    for partial in folder.parent.glob(f".{folder.name}.*.partial"):
        destination = folder.with_name(partial.name[1 : -len(".partial")])
        with contextlib.suppress(QuantizeError), AtomicFolder(destination, QuantizeError):
            pass  # entering cleans up, leaving takes its own away
