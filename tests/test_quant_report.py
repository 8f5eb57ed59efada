"""The figures of a quantization and the room that the metadata reserves for them."""

import json
import math

import numpy as np
import pytest

from cg_local.quant.report import TensorReport, quality_document, quality_draft


def test_report_sums_up_the_errors_of_rows():
    errors = np.array([[1.0, 50.0, 0.3], [2.0, 250.0, 0.9]])
    report = TensorReport.from_errors("x", "i8g64", errors)
    assert report.relative_error == 0.01
    assert report.sqnr_db == pytest.approx(20.0)
    assert report.max_abs_error == 0.9


@pytest.mark.parametrize("weights", [0.0, 7.0])
def test_exact_copy_has_infinite_signal_to_noise(weights):
    report = TensorReport.from_errors("x", "bf16", np.array([[0.0, weights, 0.0]]))
    assert report.relative_error == 0
    assert report.sqnr_db == math.inf
    assert quality_document((report,))["x"]["sqnr_db"] is None


def test_sum_does_not_depend_on_the_order_of_rows():
    errors = np.random.default_rng(0).lognormal(0, 20, (500, 3))
    report = TensorReport.from_errors("x", "c4g32", errors)
    assert TensorReport.from_errors("x", "c4g32", errors[::-1]) == report


@pytest.mark.parametrize("exponent", [-250, -7, 0, 7, 250])
def test_draft_is_never_shorter_than_the_document(exponent):
    errors = np.array([[0.123456789, 9.87654321, math.pi * 10.0**exponent]])
    errors[0, 0] *= 10.0 ** min(exponent, 0)
    document = quality_document((TensorReport.from_errors("x", "c4g32", errors),))
    assert len(json.dumps(document)) <= len(json.dumps(quality_draft(("x",))))
