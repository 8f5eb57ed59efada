"""Which safetensors files make up a checkpoint folder, and which tensor lies in which of them.

This file owns the single file and the index with its shards. It does not know which tensors a model needs. Invariant:
every tensor name returned lies in exactly one opened file, and every tensor in those files is returned.
"""

from __future__ import annotations

import json
from pathlib import Path

from cg_local.checkpoint.foreign_formats import describe_file, describe_folder, needed_instead_of
from cg_local.errors import CheckpointError
from cg_local.safetensors_file import SafetensorsFile, shown

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 16 << 20
REMEDY = "the file is damaged: download it again"


def find_weight_files(folder: Path) -> tuple[dict[str, SafetensorsFile], tuple[Path, ...]]:
    """Open the safetensors files of a folder.

    As in transformers, model.safetensors is taken where it exists and the index is followed otherwise.

    Returns:
        The file of each tensor by the tensor's name, and the paths read (index included).

    Raises:
        CheckpointError: no weights, another format, a shard missing, or an index that disagrees with its shards.
    """
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    if single.exists():
        file = open_weight_file(single)
        return dict.fromkeys(file.entries, file), (single,)
    if not index.exists():
        raise CheckpointError(f"{folder}: found {describe_folder(folder)}; {needed_instead_of(folder)}")
    weight_map = _read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise CheckpointError(
            f"{folder}: {shown(missing[0])} is missing ({len(shards) - len(missing)} of the index's {len(shards)} "
            "files are there); finish the download"
        )
    files = {shard: open_weight_file(folder / shard) for shard in shards}
    _check_index(index, weight_map, files)
    return {name: files[shard] for name, shard in weight_map.items()}, (index, *(folder / shard for shard in shards))


def open_weight_file(path: Path) -> SafetensorsFile:
    """Open one file of published weights.

    Raises:
        CheckpointError: damaged, a Git LFS pointer or another format under this name, or one of cg-local's own files.
    """
    try:
        file = SafetensorsFile(path, CheckpointError, remedy=REMEDY)
    except CheckpointError as error:
        kind = describe_file(path) if path.is_file() else ""
        if not kind or "safetensors" in kind or "no known" in kind:
            raise
        raise CheckpointError(f"{path}: found {kind}; needed is a safetensors file") from error
    if "cg_local" in file.metadata:
        raise CheckpointError(
            f"{path}: found a model folder that cg-local has already quantized; give the published weights it was made "
            "from, or use the folder as a model"
        )
    return file


def _read_weight_map(index: Path) -> dict[str, str]:
    """Return shard by tensor name; shards are names of files beside the index, never paths."""
    try:
        with index.open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
        document = json.loads(data.decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{index}: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{index}: not a JSON file ({reason}); download it again") from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map of tensor names to files; download it again")
    for name, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or "\\" in shard
            or not shard.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{index}: tensor {shown(name)} lies in {shown(shard)}; needed is the name of a .safetensors "
                "file in the same folder; download the index again"
            )
    return weight_map


def _check_index(index: Path, weight_map: dict[str, str], files: dict[str, SafetensorsFile]) -> None:
    for name, shard in weight_map.items():
        if name not in files[shard].entries:
            raise CheckpointError(
                f"{index}: places tensor {shown(name)} in {shard}, which does not hold it; download both again"
            )
    for shard, file in files.items():
        for name in file.entries:
            if weight_map.get(name) != shard:
                listed = (
                    f"the index places it in {weight_map[name]}" if name in weight_map else "the index does not list it"
                )
                raise CheckpointError(f"{file.path}: holds tensor {shown(name)}, but {listed}; download both again")
