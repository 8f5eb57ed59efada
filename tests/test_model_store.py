"""Where models are found, and the cache of the embedded one."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import command_line
import pytest

from cg_local import model_store, quant
from cg_local.atomic_folder import AtomicFolder
from cg_local.errors import CgLocalError, ConfigError, ModelFolderError, QuantizeError
from cg_local.model_folder import open_model_folder
from cg_local.model_store import (
    FoundModel,
    cached_folder,
    find_model,
    is_model_folder,
    ready_folder,
    refuse_scheme,
    renew,
)
from cg_local.models import EMBEDDED, embedded_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CG_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CG_LOCAL_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def embedded(home: Path) -> FoundModel:
    """A toy that stands where the embedded model does."""
    return FoundModel("nano", command_line.toy_checkpoint(home / "toy"), is_embedded=True)


def test_embedded_name_wins_over_a_folder_of_that_name(home: Path) -> None:
    (home / "nano").mkdir()
    assert find_model("nano") == FoundModel("nano", embedded_checkpoint("nano"), is_embedded=True)
    for path in ("./nano", Path("nano")):
        assert ready_folder(find_model(path)) == Path("nano")


def test_name_is_looked_up_in_the_data_folder_before_the_working_folder(home: Path) -> None:
    (home / "data/models/mine").mkdir(parents=True)
    (home / "mine").mkdir()
    assert find_model("mine").path == home / "data/models/mine"


def test_unknown_name_lists_the_known_ones(home: Path) -> None:
    (home / "data/models/mine").mkdir(parents=True)
    with pytest.raises(ModelFolderError, match=f"known names: {', '.join(EMBEDDED)}, mine"):
        find_model("other")
    with pytest.raises(ModelFolderError, match="some/where: no such folder"):
        find_model("some/where")


def test_embedded_model_is_quantized_once(embedded: FoundModel) -> None:
    calls: list[int] = []
    folder = ready_folder(embedded, on_progress=lambda done, total, tensor: calls.append(done))
    assert calls
    assert open_model_folder(folder, verify=True).scheme == "q4"
    calls.clear()
    assert ready_folder(embedded, on_progress=lambda done, total, tensor: calls.append(done)) == folder
    assert not calls


def test_cached_copies_differ_by_scheme_and_by_weights(embedded: FoundModel) -> None:
    first = cached_folder(embedded, "q4")
    assert cached_folder(embedded, "q8") != first
    with embedded.path.joinpath("config.json").open("a") as file:
        file.write("\n")
    assert cached_folder(embedded, "q4") != first


def test_two_processes_at_once_get_the_same_whole_folder(embedded: FoundModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes while this one still quantizes."""
    folder, real = cached_folder(embedded, "q4"), quant.quantize

    def slow(source: Path, destination: Path, scheme: str, **options: object) -> object:
        report = real(source, destination, scheme)
        shutil.copytree(destination, folder)
        (folder / "winner").touch()
        return report

    monkeypatch.setattr(quant, "quantize", slow)
    assert ready_folder(embedded) == folder
    assert (folder / "winner").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_two_threads_at_once_get_the_same_whole_folder(embedded: FoundModel) -> None:
    found: list[Path] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            found.append(ready_folder(embedded))
        except CgLocalError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert found[0] == found[1]
    assert open_model_folder(found[0], verify=True).scheme == "q4"


def test_leftovers_of_killed_runs_are_removed_and_those_of_running_ones_kept(embedded: FoundModel) -> None:
    folder = cached_folder(embedded, "q4")
    stale = folder.with_name(f".{folder.name}.0badcafe.partial")
    stale.mkdir(parents=True)
    stale.joinpath("model.safetensors").write_bytes(b"half")
    stale.with_suffix(".lock").touch()
    with AtomicFolder(folder.with_name(f"{folder.name}.00000001"), QuantizeError) as running:
        ready_folder(embedded)
        assert running.partial.is_dir()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_damaged_copy_is_made_again(embedded: FoundModel) -> None:
    folder = ready_folder(embedded)
    folder.joinpath("model.safetensors").write_bytes(b"cut")
    assert open_model_folder(renew(embedded), verify=True).scheme == "q4"


def test_cache_that_cannot_be_written_says_how_to_move_it(
    embedded: FoundModel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "cache").write_text("a file where a folder should be")
    with pytest.raises(CgLocalError, match="CG_LOCAL_CACHE"):
        ready_folder(embedded)


def test_folder_of_the_platform_is_used_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CG_LOCAL_CACHE")
    monkeypatch.delenv("CG_LOCAL_DATA")
    assert model_store.cache_folder().name == "cg-local"
    assert model_store.models_folder().parts[-2:] == ("cg-local", "models")


@pytest.mark.parametrize("name", ["cache", "data", "state"])
def test_folders_may_begin_with_a_tilde(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv(f"CG_LOCAL_{name.upper()}", "~/mine")
    assert getattr(model_store, f"{name}_folder")() == home / "mine"


def test_quantized_and_published_weights_are_told_apart(embedded: FoundModel, home: Path) -> None:
    assert is_model_folder(ready_folder(embedded))
    assert not is_model_folder(embedded.path)
    assert not is_model_folder(home / "none")


def test_scheme_that_a_folder_does_not_have_is_refused() -> None:
    found = FoundModel("mine", Path("mine"))
    refuse_scheme(found, None, "q8")
    refuse_scheme(found, "q8", "q8")
    with pytest.raises(ConfigError, match="mine: this model folder is q8, q4 was asked for"):
        refuse_scheme(found, "q4", "q8")
