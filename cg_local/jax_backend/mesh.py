"""Devices, the mesh over them, and which axis of each array lies on which axis of the mesh.

This file owns shardings and nothing that computes: XLA places every transfer that follows from them. Invariant: a mesh
always has the axes "data" and "tensor", 1x1 for a single device, so there is one code path for one device and many.

    array                                     on "data"     on "tensor"
    embedding [vocab, hidden]                 -             vocabulary rows
    q [layers, hidden, heads * head_dim]      -             heads
    k, v                                      -             heads, or whole (multi-query: one head serves all)
    o [layers, heads * head_dim, hidden]      -             heads (its inputs)
    gate, up [layers, hidden, intermediate]   -             intermediate
    down [layers, intermediate, hidden]       -             intermediate (its inputs)
    norms                                     -             -
    K/V cache [layers, B, kv heads, S, dim]   sequences     kv heads, or whole
    residual stream [B, T, hidden]            sequences     -
    logits [B, T, vocab]                      sequences     vocabulary rows

So a layer ends twice in a sum over "tensor" (after o and after down), and nothing crosses "data".

Source of the cut of the matrices: Shoeybi et al., Megatron-LM, arXiv 1909.08053, section 3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from cg_local.config import ModelConfig
from cg_local.errors import BackendError

DATA, TENSOR = "data", "tensor"

# What a launcher may set instead of the options; JAX reads the first one itself.
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True)
class MeshShape:
    """How many devices share the sequences of a batch, and how many share each matrix."""

    data: int = 1
    tensor: int = 1

    @classmethod
    def parse(cls, text: str) -> MeshShape:
        """Read "2x4": data x tensor.

        Raises:
            BackendError: written in another way.
        """
        found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
        if not found:
            raise BackendError(f"mesh {text!r}: write DATAxTENSOR, such as 2x4: 2 groups of 4 devices each")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """Write as `parse` reads."""
        return f"{self.data}x{self.tensor}"


def join_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> bool:
    """Join the other processes of a run, before anything else asks JAX for devices.

    Args:
        coordinator: HOST:PORT of process 0; None takes JAX_COORDINATOR_ADDRESS. Without either the run has one process.
        num_processes: of the run; None takes JAX_NUM_PROCESSES, or what JAX finds out about a cluster.
        process_id: from 0; None takes JAX_PROCESS_ID, or what JAX finds out.

    Returns:
        Whether the run has several processes.

    Raises:
        BackendError: a number that is none, or the processes did not find each other.
    """
    address, *numbers = (os.environ.get(name) for name in PROCESS_VARIABLES)
    address = coordinator or address
    if address is None:
        if num_processes is not None or process_id is not None:
            raise BackendError(
                "--num-processes and --process-id need --coordinator HOST:PORT, the address of process 0"
            )
        return False
    found = [_number(name, text) for name, text in zip(PROCESS_VARIABLES[1:], numbers, strict=True)]
    num_processes = found[0] if num_processes is None else num_processes
    process_id = found[1] if process_id is None else process_id
    try:
        jax.distributed.initialize(address, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise BackendError(
            f"coordinator {address}: the processes of the run did not meet ({' '.join(str(error).split())[:200]}); "
            "start each with the same --coordinator and --num-processes, and an own --process-id from 0"
        ) from error
    return True


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit():
        raise BackendError(f"{name} is {text!r}; it must be a whole number from 0")
    return int(text)


def found_devices() -> list[jax.Device]:
    """Return all devices of the run, those of other processes included.

    Raises:
        BackendError: the platform that was asked for (JAX_PLATFORMS) is not there.
    """
    try:
        devices: list[jax.Device] = jax.devices()
    except RuntimeError as error:
        raise BackendError(f"JAX finds no devices: {' '.join(str(error).split())[:200]}") from error
    return devices


def describe_devices() -> str:
    """Return what JAX found in words: "8 x cpu (cpu)", "4 x gpu (NVIDIA A100-SXM4-80GB)"."""
    kinds = [f"{device.platform} ({device.device_kind})" for device in found_devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds)))


def is_first_process() -> bool:
    """Whether this process is the one that writes results."""
    return bool(jax.process_index() == 0)


def number_of_first_process(number: int) -> int:
    """Return the first process's number in every process, so that all go on from the same place."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def make_mesh(shape: MeshShape) -> Mesh:
    """Arrange the first data * tensor devices.

    Neighbouring devices share matrices: they sum twice a layer, the groups never.

    Raises:
        BackendError: JAX found fewer devices, or fewer than all of several processes' devices would be used.
    """
    devices = found_devices()
    needed = shape.data * shape.tensor
    if needed > len(devices) or (jax.process_count() > 1 and needed != len(devices)):
        virtual = ", XLA_FLAGS=--xla_force_host_platform_device_count=N makes virtual ones of a processor"
        raise BackendError(
            f"mesh {shape} is for {needed} devices, JAX found {len(devices)} ({devices[0].platform}, "
            f"{jax.process_count()} process{'es' * (jax.process_count() > 1)}); give a mesh for these"
            f"{virtual if devices[0].platform == 'cpu' else ''}"
        )
    return Mesh(np.array(devices[:needed]).reshape(shape.data, shape.tensor), (DATA, TENSOR))


class Shardings:
    """Where each array of a model lies.

    Args:
        mesh: with the axes "data" and "tensor".
        config: of the model.

    Raises:
        BackendError: "tensor" does not divide the model's heads, inner width or vocabulary.
    """

    def __init__(self, mesh: Mesh, config: ModelConfig) -> None:
        self.mesh = mesh
        self.data, self.tensor = mesh.shape[DATA], mesh.shape[TENSOR]
        for name in ("num_heads", "intermediate_size", "vocab_size"):
            if getattr(config, name) % self.tensor:
                raise BackendError(
                    f"mesh {self.data}x{self.tensor}: {self.tensor} devices cannot share {name} "
                    f"{getattr(config, name):,} evenly; give a divisor of it after the x"
                )
        # A single K/V head serves all query heads, so every device needs all of it.
        self.kv_heads = TENSOR if config.num_kv_heads % self.tensor == 0 else None

    def place(self, *axes: str | None) -> NamedSharding:
        """Return the sharding of an array whose dimensions lie on these axes of the mesh; none given: replicated."""
        return NamedSharding(self.mesh, Spec(*axes))

    @property
    def embedding(self) -> NamedSharding:
        """Of the embedding and of a separate head, [vocab_size, hidden_size]."""
        return self.place(TENSOR, None)

    def layer(self, name: str) -> NamedSharding:
        """Of one layer's weight without the axis of layers; `name` of LAYER_NAMES."""
        return self.place(*self._layer_axes()[name])

    def stack(self, name: str) -> NamedSharding:
        """Of one weight of all layers, stacked."""
        return self.place(None, *self._layer_axes()[name])

    @property
    def cache(self) -> NamedSharding:
        """Of K and of V, [num_layers, B, num_kv_heads, num_slots, head_dim]."""
        return self.place(None, DATA, self.kv_heads)

    @property
    def replicated(self) -> NamedSharding:
        """Of what every device holds."""
        return self.place()

    def _layer_axes(self) -> Mapping[str, tuple[str | None, ...]]:
        columns, rows = (None, TENSOR), (TENSOR, None)
        shared = (None, self.kv_heads)
        return {
            "input_norm": (None,),
            "mlp_norm": (None,),
            **{"q": columns, "k": shared, "v": shared, "o": rows},
            **{"gate": columns, "up": columns, "down": rows},
        }
