"""cg-local: CodeGemma on a laptop's CPU.

    import cg_local
    model = cg_local.load("nano")
    model.infill("def add(a, b):\\n    return ", "\\n", path="add.py").text

The names of `__all__` are the public API; everything else may change. Importing this package loads neither NumPy nor
Numba: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from os.path import dirname as _dirname
from os.path import isdir as _isdir
from os.path import join as _join
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cg_local import errors, quant, reference
    from cg_local.answers import AnswerStream, Completion, Infill
    from cg_local.config import SamplingParams
    from cg_local.errors import CgLocalError
    from cg_local.runtime import LocalModel, load

# In a checkout, which a Python started in it finds before the installed package, quant/ and cli/ stand beside this one.
if not _isdir(_join(__path__[0], "quant")):
    __path__.append(_dirname(__path__[0]))

__all__ = [
    "AnswerStream",
    "CgLocalError",
    "Completion",
    "Infill",
    "LocalModel",
    "SamplingParams",
    "__version__",
    "errors",
    "load",
    "quant",
    "reference",
]

_MODULES = ("errors", "quant", "reference")
_HOMES = {
    "AnswerStream": "answers",
    "CgLocalError": "errors",
    "Completion": "answers",
    "Infill": "answers",
    "LocalModel": "runtime",
    "SamplingParams": "config",
    "load": "runtime",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("cg-local")
    elif name in _MODULES:
        value = import_module(f"cg_local.{name}")
    elif name in _HOMES:
        value = getattr(import_module(f"cg_local.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'cg_local' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
