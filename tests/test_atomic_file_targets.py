"""What `replace_file` refuses to take the place of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cg_local.atomic_file import replace_file
from cg_local.errors import SettingsError


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on this platform")
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    place, path = tmp_path / "place", tmp_path / "name"
    place.mkdir() if kind == "folder" else os.mkfifo(place)
    path.symlink_to(place) if kind.startswith("link") else place.rename(path)
    before = path.stat()
    with pytest.raises(SettingsError, match="is a folder, a device or a pipe; name a file"):
        replace_file(path, b"new")
    assert os.path.samestat(before, path.stat())
