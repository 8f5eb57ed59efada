"""SafetensorsFile accepts what the safetensors library writes and refuses, in one clear line, everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hostile_files import BREAKAGES, join, split
from numpy.typing import NDArray

from cg_local.errors import CheckpointError, ModelFolderError
from cg_local.safetensors_file import SafetensorsFile, header_bytes

ARRAYS: dict[str, NDArray[Any]] = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.weight": np.arange(10, dtype=np.int8),
    "c": np.array(7, dtype=np.uint16),
    "empty": np.zeros((0, 5), np.float16),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(ARRAYS, file, metadata={"format": "np", "note": "ä\n"})
    return file


def test_safetensors_file_reads_what_the_library_wrote(path: Path) -> None:
    file = SafetensorsFile(path, CheckpointError)

    assert file.metadata == {"format": "np", "note": "ä\n"}
    assert file.entries.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert file.entries[name].shape == array.shape
        assert file.bytes_of(name).tobytes() == file.read(name).tobytes() == array.tobytes()


def test_safetensors_file_entries_stand_in_data_order(path: Path) -> None:
    offsets = [entry.offset for entry in SafetensorsFile(path, CheckpointError).entries.values()]

    assert offsets == sorted(offsets)


def test_safetensors_file_reads_part_of_a_tensor(path: Path) -> None:
    part = SafetensorsFile(path, CheckpointError).read("b.weight", 16, 32)

    assert part.view(np.float32).tolist() == [4, 5, 6, 7]


def test_safetensors_file_maps_without_copy_and_read_only(path: Path) -> None:
    file = SafetensorsFile(path, CheckpointError)

    assert np.shares_memory(file.bytes_of("a.weight"), file.bytes_of("a.weight"))
    assert not file.bytes_of("a.weight").flags.writeable


def test_safetensors_file_mapping_outlives_the_object(path: Path) -> None:
    view = SafetensorsFile(path, CheckpointError).bytes_of("a.weight")

    assert view.tolist() == list(range(10))


def test_safetensors_file_releases_its_descriptor(path: Path) -> None:
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(20):
        SafetensorsFile(path, CheckpointError).read("c")
    after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []

    assert len(after) <= len(before) + 2


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_safetensors_file_refuses_damage(path: Path, breakage: str) -> None:
    damage, words = BREAKAGES[breakage]
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ModelFolderError) as caught:
        SafetensorsFile(path, ModelFolderError, remedy="make it anew")

    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; make it anew")
    assert words in message
    assert "\n" not in message
    assert len(message) < 600


def test_safetensors_file_refuses_a_cut_at_every_byte(path: Path) -> None:
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="fetch or write it again"):
            SafetensorsFile(path, CheckpointError)


def test_safetensors_file_refuses_every_broken_header_byte_or_reads_consistently(path: Path) -> None:
    data = path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    for position in range(header_end):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x15]) + data[position + 1 :])
        try:
            file = SafetensorsFile(path, CheckpointError)
        except CheckpointError:
            continue
        assert sum(entry.num_bytes for entry in file.entries.values()) == len(data) - header_end
        assert all(file.read(name).nbytes == entry.num_bytes for name, entry in file.entries.items())


def test_safetensors_file_escapes_names_out_of_the_file(path: Path) -> None:
    header, payload = split(path.read_bytes())
    header["evil\n\x1b[31m\ud800"] = {**header.pop("b.weight"), "dtype": "nope"}
    path.write_bytes(join(header, payload))

    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path, CheckpointError)

    assert str(caught.value).isprintable()
    assert str(caught.value).encode()


def test_safetensors_file_names_a_missing_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "none", CheckpointError)
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path, CheckpointError)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="not a regular file"):
            SafetensorsFile(tmp_path / "pipe", CheckpointError)


def test_safetensors_file_cut_while_open_is_an_error_not_a_crash(path: Path) -> None:
    file = SafetensorsFile(path, CheckpointError)
    os.truncate(path, path.stat().st_size - 20)

    with pytest.raises(CheckpointError, match=r"ends at byte .*, the file now at"):
        file.read(list(file.entries)[-1])


@pytest.mark.parametrize("metadata", [{}, {"cg_local": '{"a": [1, "ü"]}'}])
def test_header_bytes_is_read_by_the_library_and_by_us(tmp_path: Path, metadata: dict[str, str]) -> None:
    values: dict[str, NDArray[Any]] = {
        "x": np.arange(32, dtype=np.float32).reshape(2, 16),
        "y": np.arange(64, dtype=np.uint8),
    }
    header, offsets = header_bytes([("x", "F32", (2, 16)), ("y", "U8", (64,))], metadata)
    path = tmp_path / "made.safetensors"
    path.write_bytes(header + b"".join(array.tobytes() for array in values.values()))

    loaded = safetensors.numpy.load_file(path)
    file = SafetensorsFile(path, CheckpointError)

    assert all(offset % 64 == 0 for offset in offsets.values())
    assert {name: entry.offset for name, entry in file.entries.items()} == offsets
    assert file.metadata == metadata
    for name, array in values.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert file.bytes_of(name).tobytes() == array.tobytes()
