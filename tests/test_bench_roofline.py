"""The machine's limits: the kernels compute what they claim to compute, and failures are named."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest

from cg_local.bench import roofline
from cg_local.bench.int8_peak import NUM_CHAINS, OFFSETS, PORTABLE_LENGTH, dot_chain, portable_chain
from cg_local.bench.read_bandwidth import measure_read_bandwidth, sum_parts
from cg_local.bench.roofline import Roofline
from cg_local.errors import BenchmarkError
from cg_local.kernels.instruction_set import select_instruction_set

CODES = np.ones(PORTABLE_LENGTH + OFFSETS, np.int8)


@pytest.mark.parametrize("num_passes", [1, 7])
def test_every_dot_product_of_the_loop_is_computed(num_passes: int) -> None:
    set_ = select_instruction_set()
    if set_ is None:
        pytest.skip("the portable path has no dot product")
    assert dot_chain(set_)(num_passes, CODES) == num_passes * NUM_CHAINS * set_.register_rows * 4


def test_dot_products_of_the_loop_are_in_the_machine_code() -> None:
    set_ = select_instruction_set()
    if set_ is None or set_.name not in ("avx2", "avx512vnni", "avxvnni"):
        pytest.skip("no name of the instruction is known")
    chain = dot_chain(set_)
    chain(2, CODES)
    assembly = "".join(chain.inspect_asm().values())
    # At least one for each sum: none was taken out of the loop or joined with another.
    assert assembly.count("vpmaddubsw" if set_.name == "avx2" else "vpdpbusd") >= NUM_CHAINS


def test_portable_loop_multiplies_every_pair() -> None:
    codes = np.arange(PORTABLE_LENGTH + OFFSETS, dtype=np.int64).astype(np.int8)
    expected = sum(int(codes[:PORTABLE_LENGTH].astype(int) @ codes[n : PORTABLE_LENGTH + n]) for n in range(3))
    assert portable_chain(3, codes) == expected


def test_bandwidth_reads_every_value() -> None:
    totals = np.zeros(2, np.uint64)
    sum_parts(np.arange(1 << 10, dtype=np.uint64), totals)
    assert totals.tolist() == [511 * 512 // 2, 512 * (512 + 1023) // 2]
    found = measure_read_bandwidth([1], 1 << 20)
    assert found["1"]["min"] > 0


def test_failed_measurement_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise subprocess.CalledProcessError(3, "python", "", "first\nlast words\n")

    monkeypatch.setattr(roofline.subprocess, "run", fail)
    with pytest.raises(BenchmarkError, match=r"int8_peak: ended with status 3: last words"):
        Roofline().int8_peak()
    with pytest.raises(BenchmarkError, match="read_bandwidth: ended"):
        Roofline().read_bandwidth()
