"""Matrix products whose factors are rounded to bfloat16 where the run's precision asks for it, sums in float32.

Owns the rounding and its gradient. It does not choose the precision: that is `train.matmul_precision`, read here from
`jax.default_matmul_precision` while a function is traced.
Invariant: weights, gradients and results stay float32; in float32 runs the products are jnp.matmul's, bit for bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

ROUNDED_PRECISION = "BF16_BF16_F32"
"""The precision under which factors are rounded here, before XLA sees them. What is kept for the gradient is then half
as large, and both products of the gradient take bfloat16 as well; a precision alone leaves all of it in float32."""


def rounds_factors() -> bool:
    """Whether the precision in force, while tracing, asks for factors in bfloat16."""
    return jax.config.jax_default_matmul_precision == ROUNDED_PRECISION  # type: ignore[no-any-return]


def bfloat16_matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """Product of bfloat16 arrays with sums and result in float32."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def rounded_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """left @ right with factors rounded to bfloat16, in the gradient's products too.

    Args:
        left: float32 [..., m, k].
        right: float32 [..., k, n], the same leading sizes.

    Returns:
        float32 [..., m, n].
    """
    return bfloat16_matmul(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16))


Factors = tuple[jax.Array, jax.Array]


def forward(left: jax.Array, right: jax.Array) -> tuple[jax.Array, Factors]:
    """The product, and the rounded factors that its gradient needs."""
    factors = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return bfloat16_matmul(*factors), factors


def backward(factors: Factors, gradient: jax.Array) -> Factors:
    """The gradients of both factors, float32."""
    left, right = (jnp.swapaxes(factor, -1, -2) for factor in factors)
    rounded = gradient.astype(jnp.bfloat16)
    return bfloat16_matmul(rounded, right), bfloat16_matmul(left, rounded)


rounded_matmul = jax.custom_vjp(rounded_product)
rounded_matmul.defvjp(forward, backward)


def matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """left @ right in the precision of the run.

    Args:
        left: float32 [..., m, k].
        right: float32 [k, n], or [..., k, n] with the leading sizes of `left`.

    Returns:
        float32 [..., m, n].
    """
    if not rounds_factors():
        return jnp.matmul(left, right)
    if right.ndim == left.ndim:
        product: jax.Array = rounded_matmul(left, right)
        return product
    rows = rounded_matmul(left.reshape(-1, left.shape[-1]), right)
    return rows.reshape(*left.shape[:-1], right.shape[-1])
