"""`cg-local cache`: what is kept to be quick, and clearing it."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from cg_local.cli import options
from cg_local.cli.render import notice, print_json, write_stdout

if TYPE_CHECKING:
    from cg_local.kv_store import StoreEntry

_DAY_SECONDS = 86_400
# What other commands keep in folders of their own.
_CONTENTS = {
    "quality": "what published weights computed, for `eval quality`",
    "peers": "llama.cpp's files, for `bench --peers`",
}


class Use(str, Enum):
    """What K and V are kept for."""

    conversations = "conversations"
    fills = "fills"


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove the K and V of all conversations and fills.")] = False,
    only: Annotated[Optional[Use], typer.Option("--only", help="Show and clear these alone.")] = None,  # noqa: UP045
    json: options.Json = False,
) -> None:
    """Show what the cache folder holds: K and V of conversations and fills, quantized copies of embedded models, and
    what other commands keep there.

    Nothing in it is needed: what is missing is computed again. K and V go by themselves, those used longest ago first;
    `cg-local config set kv_cache_size 1GiB` sets how much they may take, never more than a tenth of the free disk.
    Conversations and source files can be read off them; `cg-local sessions rm` does not reach them, --clear does.

    \b
    Examples:
      cg-local cache
      cg-local cache --clear
      cg-local cache --clear --only fills
    """
    from cg_local.kv_store import KVStore
    from cg_local.memory import readable_size
    from cg_local.model_store import cache_folder, kv_folder

    store = KVStore(kv_folder())
    if clear:
        notice(f"{store.folder}: {readable_size(store.clear(only.value if only else None))} freed")
    entries = [entry for entry in store.entries() if only is None or entry.use == only.value]
    folders = [path for path in sorted(cache_folder().glob("*")) if path.is_dir() and path != store.folder]
    others = {path: content for path in folders if (content := _content(path.name)) is not None}
    copies = [path for path in folders if path not in others]
    if json:
        print_json(_document(store.folder, entries, copies, others))
        return
    lines = [f"K and V in {store.folder}"]
    for entry in entries:
        age = (time.time() - entry.used_at) / _DAY_SECONDS
        used = "used today" if age < 1 else f"used {age:.0f} days ago"
        of_what = f"{entry.num_segments:>4} files of {entry.use:<13}"
        lines.append(f"  {readable_size(entry.num_bytes):>10}  {of_what}  {entry.label}, {used}")
    total = sum(entry.num_bytes for entry in entries)
    lines.append(f"  {readable_size(total):>10}  {sum(entry.num_segments for entry in entries):>4} files in all")
    if copies:
        lines.append(f"quantized copies of embedded models in {cache_folder()}")
        lines += [f"  {readable_size(_folder_bytes(path)):>10}  {path.name}" for path in copies]
    if others:
        lines.append(f"other folders in {cache_folder()}")
        lines += [f"  {readable_size(_folder_bytes(path)):>10}  {path.name}: {what}" for path, what in others.items()]
    write_stdout("\n".join(lines) + "\n")


def _content(name: str) -> str | None:
    """Tell what a folder in the cache holds; None: a quantized copy of an embedded model."""
    if name.startswith("kernels-"):
        return "compiled kernels"
    if name.endswith(".partial"):
        return "a copy that is not finished"
    return _CONTENTS.get(name)


def _document(folder: Path, entries: list[StoreEntry], copies: list[Path], others: dict[Path, str]) -> dict[str, Any]:
    return {
        "kv": {
            "path": str(folder),
            "num_bytes": sum(entry.num_bytes for entry in entries),
            "entries": [
                {
                    "label": entry.label,
                    "use": entry.use,
                    "path": str(entry.folder),
                    "num_files": entry.num_segments,
                    "num_bytes": entry.num_bytes,
                    "used_at": round(entry.used_at, 3),
                }
                for entry in entries
            ],
        },
        "models": [{"name": path.name, "path": str(path), "num_bytes": _folder_bytes(path)} for path in copies],
        "others": [
            {"name": path.name, "holds": what, "path": str(path), "num_bytes": _folder_bytes(path)}
            for path, what in others.items()
        ],
    }


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
