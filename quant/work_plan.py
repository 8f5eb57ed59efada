"""What interrupted work was about: a file of everything that its result depends on, and what it means that it differs.

This file owns that file and the words for a person. It knows no journal and no weights. Invariant: work is gone on with
only where every member of its plan is the same as now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cg_local import packing
from cg_local.atomic_file import replace_file
from cg_local.errors import QuantizeError

PLAN_FILE = "plan.json"
PACKAGE = Path(packing.__file__).parent
# What this package's kernels take from elsewhere into their own machine code: the loops in LLVM's vectors (`lanes`) and
# the rows of a tile.
COMPILED_IN = (PACKAGE / "packing.py", PACKAGE / "kernels" / "llvm_vectors.py")
# What it means that a member of the plan differs.
OBSTACLES: Mapping[str, str] = {
    "quantizer": "another version of cg-local began it",
    "sources": "the published weights changed since",
    "tensors": "its tensors lie elsewhere",
}


class WorkPlan:
    """The plan of one piece of work.

    Attributes:
        data: bytes of its file.
    """

    def __init__(self, workspace: Path, plan: Mapping[str, object]) -> None:
        """Take note of the plan; nothing is touched.

        Args:
            workspace: folder of the file.
            plan: everything that the result depends on, JSON values; members as in OBSTACLES, "options", and others.
        """
        self._path = workspace / PLAN_FILE
        self.data = json.dumps(plan, indent=1).encode("ascii") + b"\n"

    def obstacle(self) -> str | None:
        """Say why the work in the workspace cannot be gone on with; None: it can, or there is none.

        Raises:
            QuantizeError: the plan cannot be read, which says nothing of what it holds.
        """
        try:
            found = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise QuantizeError(
                f"{self._path}: cannot be read ({cause.strerror}); check the disk, or pass --restart to begin anew"
            ) from cause
        if found == self.data:
            return None
        try:
            theirs, ours = json.loads(found), json.loads(self.data)
            differing = next(key for key in ours if theirs[key] != ours[key])
            if differing == "options":
                return _other_options(theirs[differing], ours[differing])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration):
            return "its plan is damaged"
        return OBSTACLES.get(differing, f"its {differing} differ")

    def write(self) -> None:
        """Write the plan where there is none yet; under its name it is whole.

        Raises:
            QuantizeError: the disk is full or fails.
        """
        if not self._path.exists():
            replace_file(self._path, self.data, error=QuantizeError)


def code_identity() -> dict[str, object]:
    """Return what of cg-local results depend on: two versions in development may bear the same number."""
    sources = [
        *COMPILED_IN,
        PACKAGE / "reference.py",
        *sorted(PACKAGE.glob("checkpoint/*.py")),
        *sorted(Path(__file__).parent.glob("*.py")),
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources if path.is_file()))
    return {"version": package_version(), "code_sha256": digest.hexdigest()}


def package_version() -> str:
    """Return the version of cg-local, "unknown" where it is not installed."""
    try:
        return version("cg-local")
    except PackageNotFoundError:
        return "unknown"


def _other_options(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name the first option that differs, with what it was."""
    name = next(key for key in (*theirs, *ours) if theirs.get(key) != ours.get(key))
    before, now = theirs.get(name), ours.get(name)
    if isinstance(before, dict) and isinstance(now, dict) and "files" in now:
        return _other_texts(name, before, now)
    if name == "importance" and before and now:
        return "it was begun with another importance pack"
    if before is None:
        return f"it was begun without {name}"
    return f"it was begun with {name} {before}" if isinstance(before, str) else f"it was begun with {name}"


def _other_texts(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say how a corpus differs from an earlier one."""
    before, now = ({file["name"]: file["sha256"] for file in found["files"]} for found in (theirs, ours))
    changed = [file for file in now if before.get(file, now[file]) != now[file]]
    added, gone = [file for file in now if file not in before], [file for file in before if file not in now]
    kinds = (("changed", changed), ("new", added), ("gone", gone))
    counts = ", ".join(f"{len(found)} {kind}" for kind, found in kinds if found)
    if not counts:
        return f"its {name} had {theirs['num_tokens']:,} tokens cut in another way: --tokens or --window differ"
    first = [*changed, *added, *gone][0]
    return f"its {name} differs, by --corpus, --tokens or edits: of {len(now)} texts {counts}; first {first}"
