"""Opening model folders: what a sound one gives, and a clear refusal for every kind of damage."""

import contextlib
import json
import os
import shutil

import numpy as np
import pytest
from hostile_files import BREAKAGES, join, split
from toy_models import MQA

from cg_local.config import ModelConfig
from cg_local.errors import CgLocalError, ConfigError, ModelFolderError
from cg_local.model_folder import ALIGNMENT, file_layout, open_model_folder
from cg_local.packing import FORMATS, part_layout
from cg_local.safetensors_file import SafetensorsFile

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(toy_folder, tmp_path):
    """A copy of a sound q4 folder, to be damaged."""
    return shutil.copytree(toy_folder("mqa", "q4"), tmp_path / "model")


def edit_header(folder, change):
    """Let `change` edit the parsed header of the weights; the data part stays aligned."""
    header, payload = split((folder / WEIGHTS).read_bytes())
    change(header)
    text = json.dumps(header)
    (folder / WEIGHTS).write_bytes(join(text + " " * (-(8 + len(text)) % ALIGNMENT), payload))


def edit_document(folder, change):
    """Let `change` edit the metadata document in place, or return another text for it."""

    def change_header(header):
        document = json.loads(header["__metadata__"]["cg_local"])
        text = change(document)
        header["__metadata__"]["cg_local"] = json.dumps(document) if text is None else text

    edit_header(folder, change_header)


def test_parts_are_aligned_read_only_views_of_the_layout(toy_folder):
    model = open_model_folder(toy_folder("mqa", "q4"))
    for name, matrix in model.matrices.items():
        assert matrix.shape == model.config.tensor_shapes()[name]
        for part, (dtype, shape) in part_layout(matrix.format, matrix.shape).items():
            array = matrix.parts[part]
            assert (array.dtype, array.shape) == (dtype, shape)
            assert array.ctypes.data % 64 == 0
            assert not array.flags.writeable
    assert all(gain.dtype == np.float32 and gain.ctypes.data % 64 == 0 for gain in model.gains.values())


def test_attributes_describe_the_model(toy_folder):
    path = toy_folder("mqa", "q4")
    model = open_model_folder(str(path))
    assert (model.path, model.scheme, model.tokenizer_path) == (path, "q4", path / "tokenizer.model")
    assert model.config == ModelConfig.from_dict(MQA, "toy")
    assert model.metadata["format_version"] == 1
    assert list(model.matrices) == [name for name, shape in model.config.tensor_shapes().items() if len(shape) == 2]
    assert list(model.gains) == [name for name, shape in model.config.tensor_shapes().items() if len(shape) == 1]


def test_arrays_outlive_the_folder_object(toy_folder):
    model = open_model_folder(toy_folder("mqa", "q8"))
    codes = model.matrices["model.embed_tokens.weight"].parts["codes"]
    checksum = int(codes.astype(np.int64).sum())
    del model
    assert int(codes.astype(np.int64).sum()) == checksum


@pytest.mark.parametrize("format", FORMATS)
def test_layout_fills_up_every_part_to_the_alignment(format):
    config = ModelConfig.from_dict({**MQA, "hidden_size": 256, "intermediate_size": 256}, "toy")
    formats = dict.fromkeys((name for name, shape in config.tensor_shapes().items() if len(shape) == 2), format)
    sizes = {"U8": 1, "U16": 2, "I8": 1, "F16": 2, "F32": 4}
    offset = 0
    for name, dtype, shape in file_layout(config, formats):
        if not name.endswith(".padding"):
            assert offset % ALIGNMENT == 0, name
        offset += sizes[dtype] * int(np.prod(shape))


@pytest.mark.parametrize("case", BREAKAGES)
def test_every_breakage_of_the_container_is_refused(folder, case):
    breakage, message = BREAKAGES[case]
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(breakage(data))
    with pytest.raises(ModelFolderError) as refusal:
        open_model_folder(folder)
    text = str(refusal.value)
    assert "\n" not in text
    # A breakage that removes the metadata makes the file one that cg-local did not write.
    assert "cg-local quantize" in text
    if case not in ("metadata of numbers", "metadata not an object"):
        assert message in text


def test_file_cut_at_many_places_is_refused(folder):
    data = (folder / WEIGHTS).read_bytes()
    for length in np.linspace(0, len(data) - 1, 60).astype(int):
        (folder / WEIGHTS).write_bytes(data[:length])
        with pytest.raises(ModelFolderError, match="cg-local quantize"):
            open_model_folder(folder)


def test_every_flipped_bit_is_refused_at_opening_or_by_verify(folder):
    data = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header_length = len(data[:end].rstrip())
    rng = np.random.default_rng(0)
    places = np.concatenate([np.arange(9), rng.integers(9, header_length, 150), rng.integers(end, len(data), 60)])
    # Nothing depends on these figures: sources, options, quality report.
    free = range(data.find(b"quantizer"), data.find(b'sha256\\":{\\"model'))
    accepted = []
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        (folder / WEIGHTS).write_bytes(changed)
        with contextlib.suppress(CgLocalError):
            open_model_folder(folder, verify=True)
            accepted.append(place)
    assert [place for place in accepted if place not in free] == []


@pytest.mark.parametrize("scheme", ["q4", "q8", "bf16"])
def test_flipped_bit_in_each_part_is_found_by_verify(toy_folder, tmp_path, scheme):
    folder = shutil.copytree(toy_folder("mqa", scheme), tmp_path / "model")
    header, payload = split((folder / WEIGHTS).read_bytes())
    data = bytearray((folder / WEIGHTS).read_bytes())
    start = len(data) - len(payload)
    for name in list(header)[1::7]:
        place = start + header[name]["data_offsets"][1] - 1
        data[place] ^= 4
        (folder / WEIGHTS).write_bytes(data)
        open_model_folder(folder)
        with pytest.raises(ModelFolderError, match=f"tensor {name}: its bytes do not match their digest"):
            open_model_folder(folder, verify=True)
        data[place] ^= 4


def set_key(key, value):
    return lambda document: document.__setitem__(key, value)


def drop_key(key):
    return lambda document: document.__delitem__(key)


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: "{not JSON", "is not JSON"),
        (lambda document: "[1]", "is a JSON list, not an object"),
        (lambda document: '{"a":' * 100_000, "is not JSON"),
        (set_key("format_version", 0), "rewrite it: run `cg-local quantize SOURCE DEST --overwrite`"),
        (set_key("format_version", 2), "format version 2, this cg-local reads 1; .* run `pip install --upgrade"),
        (set_key("format_version", True), "format version True"),
        (set_key("format_version", 1.0), r"format version 1\.0"),
        (drop_key("format_version"), "format version None"),
        (set_key("norm_convention", "w"), "norm_convention is w, not 'gain=1"),
        (drop_key("scheme"), "metadata scheme is None, not a short text"),
        (set_key("scheme", "q" * 1000), "metadata scheme is qqq.*, not a short text"),
        (set_key("formats", ["c4g32"]), "metadata formats is not an object of texts"),
        (set_key("sha256", None), "metadata sha256 is not an object of texts"),
        (lambda document: document["formats"].pop(UP) and None, f"has no format for {UP}"),
        (lambda document: document["formats"].update({"model.bias": "bf16"}), "unknown matrix model.bias"),
        (lambda document: document["formats"].update({UP: "q3"}), f"matrix {UP}: unknown weight format 'q3'"),
        (lambda document: document["formats"].update({UP: "i8g64"}), r"tensor model.*up_proj.* is missing|belongs"),
        (lambda document: document["formats"].update({"lm_head.weight": "i8g64"}), r"lm_head.* is missing"),
        (lambda document: document["sha256"].pop(f"{UP}.codes") and None, "digest of tensor .*codes is missing"),
        (lambda document: document["sha256"].update({"x": "0"}), "digest of tensor x belongs to no part"),
        (set_key("config_sha256", "0" * 64), r"config\.json: changed since the model was quantized"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(folder, change, message):
    edit_document(folder, change)
    with pytest.raises(ModelFolderError, match=message) as refusal:
        open_model_folder(folder)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


def rename_tensor(header):
    header["model.layers.0.mlp.up_proj.bias"] = header.pop(f"{UP}.codes")


def swap_dtype(header):
    header[f"{UP}.codes"]["dtype"] = "I8"


def swap_shape(header):
    header[f"{UP}.scales"]["shape"].reverse()


def swap_order(header):
    """Two tensors of equal length exchange their places: every name, dtype and shape still fits."""
    first, second = "model.layers.0.mlp.up_proj.weight.codes", f"{UP}.codes"
    header[first]["data_offsets"], header[second]["data_offsets"] = (
        header[second]["data_offsets"],
        header[first]["data_offsets"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_tensor, r"tensor .* (is missing|belongs to no part of the model)"),
        (swap_dtype, rf"tensor {UP}\.codes is I8 .*, needed U8"),
        (swap_shape, rf"tensor {UP}\.scales is I8 \[16, 8, 32\], needed I8 \[32, 8, 16\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message):
    edit_header(folder, change)
    with pytest.raises(ModelFolderError, match=message):
        open_model_folder(folder)


def test_exchanged_tensors_are_found_by_verify(folder):
    edit_header(folder, swap_order)
    with pytest.raises(ModelFolderError, match="do not match their digest"):
        open_model_folder(folder, verify=True)


def test_misaligned_data_is_refused(folder):
    header, payload = split((folder / WEIGHTS).read_bytes())
    text = json.dumps(header)
    text += " " * (-(8 + len(text)) % ALIGNMENT + 1)
    (folder / WEIGHTS).write_bytes(join(text, payload))
    with pytest.raises(ModelFolderError, match="no multiple of 64"):
        open_model_folder(folder)


def test_changed_config_is_refused(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    with pytest.raises(ModelFolderError, match=r"config\.json: changed since the model was quantized"):
        open_model_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_missing_small_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises((ModelFolderError, ConfigError), match=f"{name}: .*; copy it from the published model"):
        open_model_folder(folder)


def test_changed_tokenizer_is_found_by_verify(folder):
    with (folder / "tokenizer.model").open("ab") as file:
        file.write(b"\0")
    open_model_folder(folder)
    with pytest.raises(ModelFolderError, match=r"tokenizer\.model: changed since"):
        open_model_folder(folder, verify=True)


def test_verify_of_a_file_that_is_cut_meanwhile_is_an_error_and_no_crash(folder, monkeypatch):
    read = SafetensorsFile.read

    def read_once_more(file, *arguments):
        data = read(file, *arguments)
        os.truncate(file.path, 5000)
        return data

    monkeypatch.setattr(SafetensorsFile, "read", read_once_more)
    with pytest.raises(ModelFolderError, match="ends at byte"):
        open_model_folder(folder, verify=True)


def missing(path):
    pass


def empty_folder(path):
    path.mkdir()


def text_file(path):
    path.write_text("x = 1\n")


def gguf_file(path):
    path.write_bytes(b"GGUF\3\0\0\0")


def gguf_folder(path):
    path.mkdir()
    (path / "codegemma-2b.Q4_K_M.gguf").write_bytes(b"GGUF")


def sharded_checkpoint(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model-00001-of-00002.safetensors").write_text("")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "no such folder; give a model folder: `cg-local quantize SOURCE DEST` makes one"),
        (empty_folder, r"not a model folder \(config\.json and model\.safetensors missing\)"),
        (text_file, "a file, not a model folder; `cg-local quantize SOURCE DEST` makes one"),
        (gguf_file, "a GGUF file, not a model folder"),
        (gguf_folder, "a folder of GGUF files, not a model folder"),
        (sharded_checkpoint, "unquantized weights, not a model folder; run `cg-local quantize .*it DEST`"),
    ],
)
def test_what_is_no_model_folder_is_named_with_the_command_that_makes_one(tmp_path, make, message):
    make(tmp_path / "it")
    with pytest.raises(ModelFolderError, match=message):
        open_model_folder(tmp_path / "it")


def test_checkpoint_in_one_file_is_named(toy_checkpoint):
    with pytest.raises(ModelFolderError, match="unquantized weights, not a model folder; run `cg-local quantize"):
        open_model_folder(toy_checkpoint("mqa"))


@pytest.mark.skipif(os.name == "nt", reason="makes a pipe")
def test_pipe_in_place_of_the_weights_is_refused_without_waiting(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(ModelFolderError, match="not a model folder"):
        open_model_folder(folder)
