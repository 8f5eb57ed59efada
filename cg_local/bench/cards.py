"""What was measured, and on what: the cards that every result carries.

This file owns the description of machine, versions, commit and model. It measures nothing. Invariant: the digest on a
model's card is that of the weights files that were run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("cg-local", "numpy", "numba", "llvmlite", "sentencepiece")
READ_BYTES = 16 << 20


def machine_card() -> dict[str, object]:
    """Describe processor, memory, system, versions and the state of the repository."""
    from cg_local.kernels import instruction_set_name

    return {
        "processor": _processor(),
        "num_cores": usable_cores(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": memory_bytes(),
        "instruction_set": instruction_set_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the size of the machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def last_level_cache_bytes() -> int | None:
    """Return the size of the largest cache of the first core; None where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]] if text[-1] in "KM" else int(text))
    return max(sizes, default=None)


def peak_resident_bytes() -> int | None:
    """Return the most memory this process has had resident, mapped weights included; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux, bytes on macOS


def model_card(folder: Path) -> dict[str, object]:
    """Identify a folder of weights in a result."""
    from cg_local.config import ModelConfig

    config = ModelConfig.from_file(folder / "config.json")
    return {
        "folder": folder.resolve().name,
        "sha256": weights_digest(folder),
        "num_parameters": config.num_parameters,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
    }


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights files in the order of their names, as hexadecimal text."""
    return _digest(sorted(folder.glob("*.safetensors")))


def file_card(path: Path) -> dict[str, object]:
    """Identify a single file of weights in a result."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": _digest([path])}


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this repository, with a plus sign where tracked files differ from it.

    None where this file is not tracked: an installed package may lie in another project's repository.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, check=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
