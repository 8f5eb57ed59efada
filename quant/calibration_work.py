"""What an interrupted calibration leaves beside its pack, and taking it up again.

This file owns the files of that folder, `.NAME.partial`: the plan, the pack as far as it is known, and the residual
stream that the next layer begins with. It computes nothing. Invariant: what is taken up has its digest and was made for
the same plan, so a continued calibration gives the pack of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from cg_local.atomic_file import replace_file
from cg_local.atomic_folder import AtomicFolder
from cg_local.errors import QuantizeError
from cg_local.model_folder import EMBEDDING
from cg_local.quant.importance import ImportancePack, InputStatistics
from cg_local.quant.work_plan import WorkPlan
from cg_local.safetensors_file import SafetensorsFile

Floats = NDArray[np.float32]

PACK_FILE, STREAM_FILE = "pack.safetensors", "stream.safetensors"


class CalibrationWork:
    """Context manager: the work so far, kept when the context is left before `finish`.

    Attributes:
        statistics: of the inputs of all matrices in the layers that are done.
        num_layers: how many layers are done.
        states: the residual stream behind them; None: nothing is done, or everything.
        sensitivities: those that are measured on the texts that are asked for.
    """

    statistics: dict[str, InputStatistics]
    num_layers: int
    states: Floats | None
    sensitivities: dict[str, float]

    def __init__(
        self,
        destination: Path,
        plan: Mapping[str, object],
        *,
        probes: str | None = None,
        restart: bool,
        on_notice: Callable[[str], None],
    ) -> None:
        """Prepare; nothing is touched.

        Args:
            destination: file of the pack that will be made.
            plan: everything that its statistics depend on, as for `work_plan.WorkPlan`.
            probes: digest of the texts that sensitivities are measured on, which statistics do not depend on; None:
                none are asked for.
            restart: discard what an earlier run left.
            on_notice: told that work continues, is begun anew, or is kept.
        """
        self._folder = AtomicFolder(destination, QuantizeError, keeps_work=True)
        self._plan = WorkPlan(self._folder.workspace, plan)
        self._probes, self._restart, self._tell = probes, restart, on_notice
        self._forget()

    @property
    def knows_inputs(self) -> bool:
        """Whether the statistics of all matrices are known."""
        return EMBEDDING in self.statistics

    @property
    def num_bytes(self) -> int:
        """Bytes that the work so far takes on the disk."""
        return self._folder.work_bytes

    def __enter__(self) -> CalibrationWork:
        """Take the destination's lock and read what is there.

        Raises:
            QuantizeError: another process makes this pack, or the folder cannot be read or written.
        """
        self._folder.__enter__()
        try:
            obstacle = None if self._restart else self._plan.obstacle()
            if obstacle is not None:
                place = self._folder.workspace
                self._tell(f"{place}: unfinished work cannot be continued ({obstacle}); it is begun anew")
            if obstacle is not None or self._restart:
                self._folder.clear()
            self._plan.write()
            self._read()
        except BaseException:
            if not self._folder.found_work:  # what an earlier run has done outlives whatever happens here
                self._folder.discard()
            self._folder.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.statistics:
            self._folder.discard()  # nothing that could be gone on with
        elif kind is not None:
            self._tell(
                f"{self._folder.workspace}: the work so far is kept; the same command continues it, "
                "with --restart it begins anew"
            )
        self._folder.__exit__(kind, value, traceback)

    def keep_layer(self, layer: int, statistics: Mapping[str, InputStatistics], states: Sequence[Floats]) -> None:
        """Keep what is known behind a layer.

        Args:
            layer: its number.
            statistics: of this layer and those before it.
            states: the residual stream behind it.

        Raises:
            SettingsError: the disk is full or fails.
        """
        self.statistics, self.num_layers = dict(statistics), layer + 1
        whole = np.concatenate(states)
        self._write_pack()
        told = {"layers": str(self.num_layers), "sha256": _digest(whole)}
        replace_file(self._folder.workspace / STREAM_FILE, save({"states": whole}, told))

    def keep(self, pack: ImportancePack) -> None:
        """Keep a pack with the statistics of all matrices, and the sensitivities measured so far.

        Raises:
            SettingsError: the disk is full or fails.
        """
        self.statistics, self.sensitivities = dict(pack.statistics), dict(pack.sensitivities)
        self._write_pack()
        self.states = None
        (self._folder.workspace / STREAM_FILE).unlink(missing_ok=True)

    def finish(self) -> None:
        """Let leaving the context remove the work: the pack is at its place."""
        self.statistics = {}

    def _forget(self) -> None:
        self.statistics, self.sensitivities, self.num_layers, self.states = {}, {}, 0, None

    def _write_pack(self) -> None:
        pack = ImportancePack(self.statistics, self.sensitivities, "", {})
        document = {"sha256": pack.digest, "probes": self._probes}
        replace(pack, document=document).save(self._folder.workspace / PACK_FILE)

    def _read(self) -> None:
        """Take up what is sound.

        Raises:
            QuantizeError: the disk fails, which says nothing of what is on it.
        """
        try:
            pack = ImportancePack.load(self._folder.workspace / PACK_FILE)
            if pack.document.get("sha256") != pack.digest:
                return
            self.statistics = dict(pack.statistics)
            self.sensitivities = dict(pack.sensitivities) if pack.document["probes"] == self._probes else {}
            if self.knows_inputs:
                done = f"with {len(self.sensitivities)} sensitivities known" if self.sensitivities else ""
                self._tell(f"{self._folder.destination}: continues behind the last layer {done}".rstrip())
                return
            self.num_layers, self.states = _read_stream(self._folder.workspace / STREAM_FILE)
            self._tell(f"{self._folder.destination}: continues behind layer {self.num_layers}")
        except (QuantizeError, KeyError, ValueError) as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                raise
            self._forget()


def _read_stream(path: Path) -> tuple[int, Floats]:
    """Return the number of layers passed and the states.

    Raises:
        QuantizeError, KeyError, ValueError: the file is not as it was written.
    """
    file = SafetensorsFile(path, QuantizeError)
    states: Floats = file.read("states").view("<f4").reshape(file.entries["states"].shape)
    if _digest(states) != file.metadata["sha256"]:
        raise ValueError(path)
    return int(file.metadata["layers"]), states


def _digest(states: Floats) -> str:
    shape = json.dumps(list(states.shape)).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(states, "<f4").data).hexdigest()
