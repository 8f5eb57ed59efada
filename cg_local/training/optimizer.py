"""Learning rates over the run, and the update rule.

Owns the schedule (warm-up, plateau, decay) and the optimizer: AdamW, or Muon for the matrices and AdamW for the rest.
Invariant: the rate depends only on the share of the run that is done, which may be counted in steps or in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import optax
import optax.contrib

from cg_local.training.model import Params


@dataclass(frozen=True)
class OptimizerRecipe:
    """Update rule.

    Attributes:
        method: "muon" for the projections with AdamW for the rest, or "adamw" for all. Muon measured better for nano.
        matrix_rate: peak rate of Muon, in units of an orthogonal update scaled to the matrix' shape.
        adam_rate: peak rate of AdamW.
        weight_decay: decoupled decay of matrices, times the rate.
        warmup_steps: linear rise from 0.
        decay_share: last part of the run over which the rate falls linearly to 0.
        clip_norm: largest global gradient norm.
        average_steps: steps over which the running average of the weights forgets; the average is what is exported.
    """

    method: str = "muon"
    matrix_rate: float = 0.02
    adam_rate: float = 0.004
    weight_decay: float = 0.1
    warmup_steps: int = 60
    decay_share: float = 0.25
    clip_norm: float = 1.0
    average_steps: int = 300


def rate_factor(recipe: OptimizerRecipe, step: int, progress: float) -> float:
    """Share of the peak rate to use.

    Args:
        recipe: warm-up and decay.
        step: number of steps done.
        progress: share of the run that is done, 0..1.

    Returns:
        0..1: a linear rise over the warm-up steps, 1 on the plateau, a linear fall to 0 at progress 1.

    Source: the warm-up-stable-decay schedule of arXiv 2404.06395 (MiniCPM), section 4.
    """
    rise = min(1.0, (step + 1) / recipe.warmup_steps)
    fall = min(1.0, max(0.0, 1.0 - progress) / recipe.decay_share)
    return min(rise, fall)


def average_share(recipe: OptimizerRecipe, step: int) -> float:
    """Weight of the newest weights in the running average: 1 at the first step, then falling to 1 / average_steps."""
    return 1.0 / min(recipe.average_steps, 1 + step / 4)


def is_matrix(name: str) -> bool:
    """Whether Muon updates this weight: the projections, not the embedding and not the norms."""
    return name != "embedding" and not name.endswith("norm")


def make_optimizer(recipe: OptimizerRecipe) -> optax.GradientTransformation:
    """The update rule at peak rate; the caller multiplies the updates by `rate_factor`.

    Args:
        recipe: rates and decay.

    Source: Muon, github.com/KellerJordan/Muon, as implemented by optax.contrib.
    """
    others = optax.adamw(recipe.adam_rate, b1=0.9, b2=0.95, weight_decay=0.0)
    if recipe.method == "muon":
        matrices = optax.contrib.muon(recipe.matrix_rate, beta=0.95, nesterov=True, weight_decay=recipe.weight_decay)
    else:
        matrices = optax.adamw(recipe.adam_rate, b1=0.9, b2=0.95, weight_decay=recipe.weight_decay)

    def labels(params: Params) -> dict[str, str]:
        return {name: "matrix" if is_matrix(name) else "other" for name in params}

    parts = optax.multi_transform({"matrix": matrices, "other": others}, labels)
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), parts)
