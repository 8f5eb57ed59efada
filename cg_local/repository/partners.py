"""Which file tests which.

Owns the spellings of a test's name. Invariant: a file is never its own partner.

Source: arXiv 2406.11409, section on multi-file packing: a test beside its implementation, TestFoo.java beside Foo.java.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from cg_local.languages import language_of
from cg_local.repository.imports import FAMILIES, shared_folders

# test_x, x_test, x_tests, x.test, x.spec, x_spec, TestX, XTest, XTests
TEST_NAME = re.compile(r"^(?:tests?_(.+)|(.+)[._-](?:tests?|spec)|Tests?([A-Z].*)|(.+[a-z0-9])Tests?)$")


def tested_name(path: str) -> str | None:
    """The name, without ending, of what a test file tests by its own name; None where it is no test."""
    found = TEST_NAME.match(PurePosixPath(path).stem)
    return next(group for group in found.groups() if group) if found else None


def partners_of(path: str, paths: Iterable[str]) -> list[str]:
    """The files that test `path`, or that it tests, or (C, C++) the header of a source and the source of a header.

    Args:
        path: a file of the repository.
        paths: all of them.

    Returns:
        The nearest first.
    """
    stem, tested, language = PurePosixPath(path).stem, tested_name(path), language_of(path)
    found = [
        other
        for other in paths
        if other != path
        and are_related(language, language_of(other))
        and (tested_name(other) == stem or tested == PurePosixPath(other).stem or is_header_pair(path, other))
    ]
    return sorted(found, key=lambda other: (-shared_folders(other, path), other))


def are_related(one: str | None, other: str | None) -> bool:
    """Whether files of the two languages speak of each other."""
    return one is not None and (one == other or any(one in family and other in family for family in FAMILIES))


def is_header_pair(one: str, other: str) -> bool:
    """Whether two C or C++ files differ in their ending alone: a source and its header."""
    is_c = {language_of(one), language_of(other)} <= {"c", "cpp"}
    return is_c and PurePosixPath(one).stem == PurePosixPath(other).stem
