"""A model folder's weights in float32: whole, and row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy_engines

from cg_local.dequantized_folder import DequantizedFolder
from cg_local.model_folder import open_model_folder


@pytest.mark.parametrize("scheme", ["bf16", "q8", "q4"])
def test_tensors_and_rows_are_what_the_codes_stand_for(scheme: str, toy_folder: Callable[[str, str], Path]) -> None:
    path = toy_folder("mqa", scheme)
    source, expected = DequantizedFolder(open_model_folder(path)), toy_engines.DequantizedFolder(path)
    assert source.tensor_names == tuple(source.config.tensor_shapes())
    for name in source.tensor_names:
        whole = expected.tensor(name)
        assert source.shape(name) == whole.shape
        np.testing.assert_array_equal(source.tensor(name), whole)
        if whole.ndim == 2:
            for start, stop in ((0, 16), (5, 40), (len(whole) - 3, len(whole))):
                np.testing.assert_array_equal(source.rows(name, start, stop), whole[start:stop])
