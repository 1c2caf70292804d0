"""How large a tile may be: as large as memory allows, since every tile computes its surroundings anew.

What a network needs is measured on the network, and what there is is asked of the system, containers' limits included.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from library.models.blocks.image_model import ImageModel

DEFAULT_MEMORY = 4 * 2**30
"""Bytes that a process may come to, whatever the size of the image."""
_HEAP = 2.25
"""What a process grows by for each byte of activations: convolutions rearrange their input, and a heap that keeps what
is freed (library/memory.py) has holes. 1.6 to 2.2 where tests/benchmarks/bench_memory.py measures it."""
_PROBE = 128
"""Model input pixels a side of the image on which a network is measured."""


def activation_bytes(model: ImageModel, *, half: bool = False) -> float:
    """Bytes for each input pixel that a network's activations hold at their worst moment, input and output included.

    Measured in a real run over a small image, by following every tensor from the operation that makes it to the moment
    when nobody holds it any more.

    model  on the CPU
    half   by autocast in bfloat16
    """
    side = -(-_PROBE // model.lattice) * model.lattice
    with torch.no_grad(), _Followed() as followed, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model(torch.zeros(1, model.in_channels, side, side).contiguous(memory_format=torch.channels_last)).float()
    return followed.peak / side**2


class _Followed(TorchDispatchMode):
    """A block that knows how many bytes of tensors it holds, and held at most."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        self.peak = max(self.peak, self.held)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._holders.get(key):
            self._holders[key] = 0
            self.held += size
        # Views share a storage, which lives as long as the last of them.
        self._holders[key] += 1
        finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.held -= size


def available_memory() -> int:
    """Bytes that this process can still take: what the machine has left, or less where a container or a limit of the
    process says so."""
    meminfo = _fields(Path("/proc/meminfo"))
    available = [meminfo["MemAvailable"]] if "MemAvailable" in meminfo else []
    available += cgroup_room()
    if not available:
        # Without /proc: half of the machine's memory is as good a guess as any.
        available = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    return max(0, min(available))


def resident_memory() -> int:
    """Bytes that this process holds now, 0 where the system does not say."""
    return _fields(Path("/proc/self/status")).get("VmRSS", 0)


def _fields(path: Path) -> dict[str, int]:
    """Bytes by name, of lines such as `MemAvailable:  1024 kB`."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    parts = [(name, text.split()) for name, _, text in (line.partition(":") for line in lines)]
    return {name: int(text[0]) * 1024 for name, text in parts if len(text) == 2 and text[1] == "kB"}


def cgroup_room(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes left in each control group with a limit that this process is in, from its own to the outermost.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current), cgroup-v1/memory.rst.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = base / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted there: then the mount itself is the group.
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(base):
                break
            try:
                limit, used = ((folder / name).read_text().strip() for name in names)
            except OSError:
                continue  # of the outermost, which has no limit, there are no such files
            if limit != "max" and int(limit) < 2**60:  # v1 says a number near 2^63 for no limit
                found.append(int(limit) - int(used) + _reclaimable(folder))
    return found


def _reclaimable(group: Path) -> int:
    """Bytes of files' pages that count as a group's, and are dropped when somebody needs the room."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    return stat.get("inactive_file", stat.get("total_inactive_file", 0))


def fitting_tile(
    height: int, width: int, *, halo: int, lattice: int, smallest: int, bytes_per_pixel: float, room: int
) -> int:
    """The tile that computes an image with the least work in the memory there is: all of it at once where it fits.

    height, width    model input pixels, multiples of the lattice
    smallest         pixels a side that a tile must have; taken when nothing fits
    bytes_per_pixel  of a window, such as `activation_bytes`
    room             bytes for one window
    returns          pixels a side, a multiple of the lattice
    """
    smallest = -(-smallest // lattice) * lattice
    largest = max(smallest, -(-max(height, width) // lattice) * lattice)
    pixels = room / (_HEAP * bytes_per_pixel)
    best, least = smallest, None
    for tile in range(smallest, largest + lattice, lattice):
        window = min(tile + 2 * halo, height) * min(tile + 2 * halo, width)
        if window > pixels:
            break
        # As many windows as `plan_tiles` makes, each of one size.
        work = -(-height // tile) * -(-width // tile) * window
        if least is None or work < least:
            best, least = tile, work
    return best
