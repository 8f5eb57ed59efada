"""Loading compiled kernels from Numba's cache without first preparing its compiler.

This file owns one shortcut. Numba initializes all its type registries before it looks into its cache, which takes 0.3
to 0.5 s of a process that then compiles nothing: as long as the rest of a short `cg-local fill`. Invariant: a kernel
that is not in the cache, and a Numba whose internals differ, take Numba's own way.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from numba.core.runtime import rtsys


def load_quickly(kernel: Any) -> None:
    """Make a jitted function with cache=True look into its cache first.

    Args:
        kernel: a Numba dispatcher; anything without the internals that the shortcut needs is left as it is.
    """
    cache: Any = getattr(kernel, "_cache", None)
    needed = "_load_overload", "_guard_against_spurious_io_errors", "load_overload"
    if all(hasattr(cache, name) for name in needed) and hasattr(rtsys, "initialize"):
        cache.load_overload = MethodType(_load_overload, cache)


def _load_overload(cache: Any, signature: Any, target_context: Any) -> Any:
    # Cached code calls into Numba's runtime; that much must be there.
    rtsys.initialize(target_context)
    try:
        with cache._guard_against_spurious_io_errors():
            loaded = cache._load_overload(signature, target_context)
            if loaded is not None:
                return loaded
    except Exception:  # whatever a cut or damaged pickle raises: the kernel is compiled again
        cache.flush()
    target_context.refresh()
    return None
