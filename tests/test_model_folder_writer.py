"""The stream into a model folder: order of bytes, the header last, and what may be replaced."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from hostile_files import split
from toy_models import MQA

from cg_local.config import ModelConfig
from cg_local.errors import QuantizeError
from cg_local.model_folder import file_layout, open_model_folder
from cg_local.model_folder_writer import ModelFolderWriter, check_replaceable

CONFIG_BYTES = json.dumps(MQA).encode()
CONFIG = ModelConfig.from_dict(MQA, "toy")
FORMATS = dict.fromkeys((name for name, shape in CONFIG.tensor_shapes().items() if len(shape) == 2), "i8g64")
NUMPY_TYPES = {"I8": np.int8, "U8": np.uint8, "F16": np.float16, "F32": np.float32}


def writer(destination, draft=None, *, keeps_work=False):
    return ModelFolderWriter(
        destination,
        config=CONFIG,
        config_bytes=CONFIG_BYTES,
        tokenizer_bytes=b"tokenizer",
        notices={"NOTICE": b"terms"},
        scheme="q8",
        formats=FORMATS,
        draft={"note": "x" * 100} if draft is None else draft,
        keeps_work=keeps_work,
    )


def arrays():
    rng = np.random.default_rng(0)
    layout = [entry for entry in file_layout(CONFIG, FORMATS) if not entry[0].endswith(".padding")]
    return {name: rng.integers(0, 100, shape).astype(NUMPY_TYPES[dtype]) for name, dtype, shape in layout}


def append_in_turns(stream, tensors, turns=4):
    """All tensors grow side by side."""
    pieces = {name: np.array_split(array, turns) for name, array in tensors.items()}
    for turn in range(turns):
        for name in pieces:
            stream.append(name, pieces[name][turn])


def test_tensors_grown_side_by_side_arrive_whole(tmp_path):
    tensors = arrays()
    with writer(tmp_path / "model") as stream:
        append_in_turns(stream, tensors)
        stream.finish({"note": "short"})
    folder = open_model_folder(tmp_path / "model", verify=True)
    for name, matrix in folder.matrices.items():
        for part, array in matrix.parts.items():
            np.testing.assert_array_equal(array, tensors[f"{name}.{part}"])
    for name, gain in folder.gains.items():
        np.testing.assert_array_equal(gain, tensors[name])
    assert folder.metadata["note"] == "short"
    assert folder.metadata["sha256"]["model.norm.weight"] == hashlib.sha256(tensors["model.norm.weight"]).hexdigest()
    assert (tmp_path / "model" / "NOTICE").read_bytes() == b"terms"


def test_header_is_written_last(tmp_path):
    with writer(tmp_path / "model") as stream:
        append_in_turns(stream, arrays())
        written = (tmp_path / ".model.partial" / "folder" / "model.safetensors").read_bytes()
        stream.finish({})
    finished = (tmp_path / "model" / "model.safetensors").read_bytes()
    payload = split(finished)[1]
    assert written[: len(finished) - len(payload)] == bytes(len(finished) - len(payload))
    assert finished.startswith(b"{", 8)


def test_finish_without_all_bytes_is_a_broken_invariant(tmp_path):
    with pytest.raises(AssertionError), writer(tmp_path / "model") as stream:
        stream.finish({})
    assert list(tmp_path.iterdir()) == []


def test_too_many_bytes_or_details_are_a_broken_invariant(tmp_path):
    tensors = arrays()
    with writer(tmp_path / "model", draft={}) as stream:
        append_in_turns(stream, tensors)
        with pytest.raises(AssertionError):
            stream.append("model.norm.weight", np.zeros(1, np.float32))
        with pytest.raises(AssertionError, match="more metadata than reserved"):
            stream.finish({"note": "x" * 1000})
    assert list(tmp_path.iterdir()) == []


def digest(array):
    return array.nbytes, hashlib.sha256(array).hexdigest()


def test_sound_bytes_of_an_interrupted_stream_are_restored_and_others_not(tmp_path):
    tensors = arrays()
    names = list(tensors)
    with writer(tmp_path / "model", keeps_work=True) as stream:
        append_in_turns(stream, tensors)
    with writer(tmp_path / "model", keeps_work=True) as stream:
        first, second = (tensors[name] for name in names[:2])
        damaged = {names[0]: digest(first), names[1]: (second.nbytes, "0" * 64)}
        assert not stream.restore(damaged)
        assert not stream.restore({names[-1]: digest(np.append(tensors[names[-1]].view(np.uint8), [0] * 4096))})
        halves = np.array_split(first, 2)
        assert all(stream.restore({names[0]: digest(half)}) for half in halves)
        stream.append(names[1], second)
        assert stream.read(names[1]) == second.tobytes()
        assert all(stream.restore({name: digest(tensors[name])}) for name in names[2:])
        stream.finish({"note": "short"})
    folder = open_model_folder(tmp_path / "model", verify=True)
    for name, gain in folder.gains.items():
        np.testing.assert_array_equal(gain, tensors[name])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_cleared_stream_begins_with_nothing(tmp_path):
    with writer(tmp_path / "model", keeps_work=True) as stream:
        append_in_turns(stream, arrays())
        (stream.workspace / "note").write_text("")
    with writer(tmp_path / "model", keeps_work=True) as stream:
        assert stream.found_work
        assert stream.work_bytes > stream.num_bytes
        stream.clear()
        assert not stream.found_work
        assert sorted(path.name for path in stream.workspace.iterdir()) == ["folder"]
        assert stream.work_bytes < stream.num_bytes
        stream.discard()
    assert list(tmp_path.iterdir()) == []


def test_kept_bytes_count_as_free_space(tmp_path, monkeypatch):
    with writer(tmp_path / "model", keeps_work=True) as stream:
        append_in_turns(stream, arrays())
        kept = stream.work_bytes
    usage = shutil.disk_usage(tmp_path)
    needed = stream.num_bytes + (16 << 20)
    # How many blocks a file takes may still change by a few.
    for free, fits in ((needed - kept + 0x10000, True), (needed - kept - 0x10000, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if fits:
            with writer(tmp_path / "model", keeps_work=True):
                pass
        else:
            with pytest.raises(QuantizeError, match="make room"), writer(tmp_path / "model", keeps_work=True):
                pass
    assert [path.name for path in tmp_path.iterdir()] == [".model.partial"]


def test_symbolic_link_is_not_replaceable(tmp_path, toy_folder):
    os.symlink(toy_folder("mqa", "q8"), tmp_path / "link")
    check_replaceable(toy_folder("mqa", "q8"))
    with pytest.raises(QuantizeError, match="not a folder, so it is not overwritten"):
        check_replaceable(tmp_path / "link")
