"""Eight virtual devices give the tokens of one, send what the shardings say and no more, and hold their share."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_jax import EIGHT_HEADS, compiled
from toy_models import write_toy_checkpoint

from cg_local.errors import BackendError
from cg_local.jax_backend.mesh import MeshShape, join_processes

MESHES = ("1x1", "8x1", "1x8", "1x4", "2x4")
LAYERS, HIDDEN, BATCH, FLOAT = 2, 256, 8, 4


def environment(num_devices: int) -> dict[str, str]:
    """Return that of a process with virtual devices, in which the tests' modules are found."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module", params=["mqa", "mha"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mesh") / request.param
    write_toy_checkpoint(folder, EIGHT_HEADS[request.param], has_tokenizer=True)
    program = Path(__file__).with_name("jax_mesh_program.py")
    # Compiling is most of the time, so multi-head attention takes one mesh of each kind of axis.
    meshes = MESHES if request.param == "mqa" else ("1x1", "2x4")
    done = subprocess.run(
        [sys.executable, str(program), str(folder), *meshes], env=environment(8), capture_output=True, timeout=280
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return {"family": request.param, **json.loads(done.stdout)}


def test_every_mesh_gives_the_tokens_of_one_device(found: dict[str, Any]) -> None:
    meshes = [mesh for mesh in MESHES if mesh in found]
    assert len(meshes) >= 2
    assert len({tuple(answer) for answer in found["1x1"]["answers"]}) > 1
    for mesh in meshes:
        assert found[mesh]["answers"] == found["1x1"]["answers"], mesh


def test_groups_of_sequences_send_each_other_no_activation(found: dict[str, Any]) -> None:
    """Only the chosen tokens and their log-probabilities are brought together."""
    assert found["1x1"]["collectives"] == {}
    if "8x1" not in found:
        return
    sent = found["8x1"]["collectives"]
    assert sum(num_bytes for _, num_bytes in sent.values()) <= 4 * BATCH * FLOAT


def test_devices_that_share_matrices_add_up_twice_a_layer_and_gather_no_weight(found: dict[str, Any]) -> None:
    for mesh in ("1x8", "1x4", "2x4"):
        if mesh not in found:
            continue
        sent, rows = found[mesh]["collectives"], BATCH // int(mesh[0])
        count, num_bytes = sent["all-reduce"]
        # After o and after down in each layer, and the embedding's rows; then a few numbers a row to choose a token.
        sums = (2 * LAYERS + 1) * rows * HIDDEN * FLOAT
        assert found[mesh]["is_exact"]
        assert 2 * LAYERS + 1 <= count <= 2 * LAYERS + 5
        assert sums <= num_bytes <= sums + 8 * rows * FLOAT
        others = sum(total for kind, (_, total) in sent.items() if kind != "all-reduce")
        assert others <= 64 * BATCH * FLOAT, sent


def test_devices_hold_their_share_of_the_matrices_and_the_cache(found: dict[str, Any]) -> None:
    alone = found["1x1"]
    assert alone["aliased_bytes"] > 0  # the donated cache
    for mesh in ("8x1", "1x4", "2x4"):
        if mesh not in found:
            continue
        data, tensor = int(mesh[0]), int(mesh[2])
        heads = tensor if found["family"] == "mha" else 1
        assert found[mesh]["aliased_bytes"] == alone["aliased_bytes"] // (data * heads)
        weights, shared = (each["argument_bytes"] - each["aliased_bytes"] for each in (alone, found[mesh]))
        # All but the norms and multi-query K and V is shared out; of the tokens a device holds its group's, some bytes.
        assert weights / tensor - 128 <= shared <= weights / tensor * 1.15


@pytest.mark.slow
def test_processes_that_share_a_mesh_give_the_tokens_of_one(tmp_path: Path) -> None:
    checkpoint = write_toy_checkpoint(tmp_path / "model", EIGHT_HEADS["mqa"], has_tokenizer=True)
    lines = [json.dumps({"prompt": text}) + "\n" for text in ("def add(a, b):\n", "import ", "x = [")]
    (tmp_path / "requests.jsonl").write_text("".join(lines))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "cg_local.cli", "complete", "-i", "requests.jsonl", "--model", str(checkpoint)]
    command += ["--backend", "jax", "--max-tokens", "6", "--batch-size", "4"]
    alone = subprocess.run([*command, "-o", "alone"], env=environment(1), cwd=tmp_path, capture_output=True)
    assert alone.returncode == 0, alone.stderr.decode()
    command += ["--mesh", "2x2", "--coordinator", address, "--num-processes", "2", "-o", "together"]
    processes = [
        subprocess.Popen(
            [*command, "--process-id", str(number)],
            env=environment(2),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    errors = [process.communicate(timeout=200)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert (tmp_path / "together").read_text() == (tmp_path / "alone").read_text()


@pytest.mark.parametrize("text", ["2", "0x4", "2x", "2x4x1", "-1x2", "2 x 4"])
def test_mesh_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match="write DATAxTENSOR, such as 2x4"):
        MeshShape.parse(text)


def test_mesh_of_more_devices_than_there_are_says_how_many_were_found(tmp_path: Path) -> None:
    checkpoint = write_toy_checkpoint(tmp_path / "model", EIGHT_HEADS["mqa"])
    with pytest.raises(BackendError, match=r"mesh 64x64 is for 4096 devices, JAX found \d+ \(\w+, 1 process\)"):
        compiled(checkpoint, "64x64")


def test_mesh_that_cannot_share_the_heads_is_refused(tmp_path: Path) -> None:
    write_toy_checkpoint(tmp_path / "model", EIGHT_HEADS["mqa"])
    code = f"import toy_jax; toy_jax.compiled({str(tmp_path / 'model')!r}, '1x3')"
    done = subprocess.run([sys.executable, "-c", code], env=environment(3), capture_output=True, text=True)
    assert "mesh 1x3: 3 devices cannot share num_heads 8 evenly; give a divisor of it after the x" in done.stderr


def test_process_without_a_coordinator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    assert join_processes(None, None, None) is False
    with pytest.raises(BackendError, match="need --coordinator HOST:PORT"):
        join_processes(None, 2, 0)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(BackendError, match="JAX_NUM_PROCESSES is 'two'; it must be a whole number from 0"):
        join_processes("localhost:1", None, 0)
