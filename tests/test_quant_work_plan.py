"""What is said of interrupted work that was about something else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import cg_local
from cg_local.errors import QuantizeError
from cg_local.quant import feedback_kernels, lanes, revision_kernels, search, work_plan
from cg_local.quant.work_plan import COMPILED_IN, PLAN_FILE, WorkPlan, code_identity


def corpus(files: dict[str, str], num_tokens: int = 1200) -> dict[str, Any]:
    """The record of a corpus of these files, by name with their digests."""
    told = [{"name": name, "sha256": sha256} for name, sha256 in files.items()]
    return {"digest": f"{files} {num_tokens}", "num_tokens": num_tokens, "files": told}


GPTQ = {"scheme": "q4", "method": "gptq", "corpus": corpus({"a.py": "1", "b.py": "2", "c.py": "3"})}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({**GPTQ, "scheme": "q8"}, "it was begun with scheme q4"),
        ({"scheme": "q4", "method": "fast"}, "it was begun with method gptq"),
        (
            {**GPTQ, "corpus": corpus({"a.py": "1", "c.py": "9", "d.py": "4"})},
            "its corpus differs, by --corpus, --tokens or edits: of 3 texts 1 changed, 1 new, 1 gone; first c.py",
        ),
        (
            {**GPTQ, "corpus": corpus({"a.py": "1", "b.py": "2", "c.py": "3"}, 900)},
            "its corpus had 1,200 tokens cut in another way: --tokens or --window differ",
        ),
        ({**GPTQ, "probes": corpus({})}, "it was begun without probes"),
    ],
)
def test_the_option_that_differs_is_named(tmp_path: Path, options: dict[str, object], reason: str) -> None:
    WorkPlan(tmp_path, {"quantizer": 1, "options": GPTQ, "sources": 2}).write()
    assert WorkPlan(tmp_path, {"quantizer": 1, "options": GPTQ, "sources": 2}).obstacle() is None
    assert WorkPlan(tmp_path, {"quantizer": 1, "options": options, "sources": 2}).obstacle() == reason


def test_another_pack_is_told_without_its_digest(tmp_path: Path) -> None:
    WorkPlan(tmp_path, {"options": {"method": "imp", "importance": "0" * 64}}).write()
    other = WorkPlan(tmp_path, {"options": {"method": "imp", "importance": "1" * 64}})
    assert other.obstacle() == "it was begun with another importance pack"


def test_a_plan_that_cannot_be_read_is_no_other_plan(tmp_path: Path) -> None:
    plan = WorkPlan(tmp_path, {"options": {}})
    plan.write()
    (tmp_path / PLAN_FILE).unlink()
    (tmp_path / PLAN_FILE).mkdir()  # cannot be read, even by the superuser
    with pytest.raises(QuantizeError, match=r"plan.json: cannot be read \(.*\); check the disk, or pass --restart"):
        plan.obstacle()


def test_a_plan_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantizeError, match=r"plan.json: cannot be written \(.*\); make the folder writable"):
        WorkPlan(tmp_path / "file", {"options": {}}).write()


def test_what_is_compiled_in_from_elsewhere_is_known() -> None:
    package = Path(cg_local.__file__).parent
    files = [Path(module.__file__ or "") for module in (feedback_kernels, lanes, revision_kernels, search)]
    found = set[Path]()
    for file in (*files, *COMPILED_IN):
        imports = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        names = [node.module.split(".")[1:] for node in imports if (node.module or "").startswith("cg_local.")]
        found |= {package.joinpath(*name).with_suffix(".py") for name in names if name[0] != "quant"}
    assert found == set(COMPILED_IN)
    trees = [ast.parse(file.read_text("utf-8")) for file in Path(work_plan.__file__).parent.glob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    folders = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "caching_for"]
    assert len(folders) == 2
    assert set(folders) == {"caching_for(Path(__file__).parent, *COMPILED_IN)"}


def test_work_begun_with_other_machine_code_is_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_identity()
    copies = [tmp_path / source.name for source in COMPILED_IN]
    for copy, source in zip(copies, COMPILED_IN, strict=True):
        copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(work_plan, "COMPILED_IN", tuple(copies))
    assert code_identity() == before
    copies[1].write_text("# changed")
    assert code_identity() != before
