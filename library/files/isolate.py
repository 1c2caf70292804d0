"""Files read in a child process, where a decoder that crashes, hangs or wants all memory harms one file only.

Decoders are large programs in C, and what an archive holds is not always what its names say. The child is spawned once
and kept, since importing the decoders takes longer than using them. It answers in JSON and bare samples: nothing that
a decoder led astray could put into its answer is ever unpickled. Works on POSIX; the memory limit binds on Linux.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import rawpy

from library.errors import ImageFileError, RawFileError, StillgrainError
from library.files.raw import RawImage

if TYPE_CHECKING:
    from library.files.linear_dng import LinearDng
    from library.files.picture import DisplayImage

MEMORY_BYTES = 4 * 2**30
"""What decoding one file may allocate: ten times what 100 megapixels at 16 bits take."""
SECONDS = 120.0
"""How long decoding one file may take, on a machine with other things to do."""

_ROOT = Path(__file__).resolve().parents[2]
# The child ends itself at the limit; this much later it is ended, should it be beyond its own reach.
_GRACE_SECONDS = 10.0
_LARGEST_HEADER = 2**26


def read_raw_isolated(path: str | Path, *, memory_bytes: int = MEMORY_BYTES, seconds: float = SECONDS) -> RawImage:
    """`read_raw` in a child process, one for each thread that calls this.

    memory_bytes  that decoding may allocate beyond what the child has when it begins
    seconds       of the clock that decoding may take
    raises        RawFileError as `read_raw`, and when the decoder crashes, takes too long or too much memory. A child
                  that does not survive a file, but has read others, is not believed: a fresh one tries again.
                  StillgrainError where no child can be started
    """
    return _reader_of_this_thread().read_raw(path, memory_bytes=memory_bytes, seconds=seconds)


class IsolatedReader:
    """A child process that reads files: started for the first, and again after one that it did not survive.

    For one thread at a time. It ends with the `with` block, with this object, or with the process that made it.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """Of the child, whose memory is part of what its owner takes; None before the first file."""
        return self._child.process_id if self._child else None

    def close(self) -> None:
        """End the child. The next file starts another."""
        if self._child:
            self._child.stop()
            self._child = None

    def read_raw(self, path: str | Path, *, memory_bytes: int = MEMORY_BYTES, seconds: float = SECONDS) -> RawImage:
        """As `read_raw_isolated`."""
        values = self._read("raw", RawFileError, path, memory_bytes, seconds)
        return RawImage(**{**values, "path": str(path)})

    def read_image(
        self, path: str | Path, *, memory_bytes: int = MEMORY_BYTES, seconds: float = SECONDS
    ) -> DisplayImage:
        """`read_image` with the limits of `read_raw_isolated`.

        raises  ImageFileError
        """
        # Here, so that who reads raws only does not load the decoders of every other format.
        from library.files.picture import DisplayImage

        return DisplayImage(**self._read("image", ImageFileError, path, memory_bytes, seconds))

    def read_linear_dng(
        self, path: str | Path, *, memory_bytes: int = MEMORY_BYTES, seconds: float = SECONDS
    ) -> LinearDng:
        """`read_linear_dng` with the limits of `read_raw_isolated`.

        raises  ImageFileError
        """
        from library.files.linear_dng import LinearDng

        return LinearDng(**self._read("linear_dng", ImageFileError, path, memory_bytes, seconds))

    def _read(
        self,
        kind: _Kind,
        error: type[RawFileError | ImageFileError],
        path: str | Path,
        memory_bytes: int,
        seconds: float,
    ) -> dict[str, Any]:
        request = {
            "kind": kind,
            "path": os.path.abspath(path),
            "memory_bytes": int(memory_bytes),
            "seconds": float(seconds),
        }
        while True:
            fresh = self._child is None
            self._child = self._child or _Child()
            answer, fault = self._child.ask(request)
            if answer is not None and "fields" in answer:
                return answer["fields"]
            if answer is not None and "refused" in answer:
                raise error(path, answer["refused"], lasting=answer["lasting"])
            self.close()
            # What an earlier file did to the child's memory must not count against this one.
            if fresh or fault.final:
                reason = _what_happened(answer, fault, memory_bytes, seconds)
                raise error(path, reason, lasting=not (fault.final or fault.from_outside))


_Kind = Literal["raw", "image", "linear_dng"]


class _Fault(NamedTuple):
    """How a child ended.

    late       it did not answer in time
    exit_code  negative for a signal, None where it lives
    """

    late: bool = False
    exit_code: int | None = None

    @property
    def final(self) -> bool:
        """Whether a fresh child would only spend the same time again."""
        return self.late or self.exit_code == -signal.SIGALRM

    @property
    def from_outside(self) -> bool:
        """Whether somebody ended it, as the kernel does when memory runs out; no decoder does that to itself."""
        return self.exit_code in {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}


def _what_happened(answer: dict[str, Any] | None, fault: _Fault, memory_bytes: int, seconds: float) -> str:
    if answer is not None and "memory" in answer:
        return (
            f"needs more than the {memory_bytes / 2**20:.0f} MiB that decoding a file may take: it is damaged, or too "
            "large; raise the limit if other programs open it"
        )
    if answer is not None:
        return f"is damaged: its decoder stumbled ({answer['failed']}); copy it again from the card or the backup"
    if fault.final:
        return (
            f"was not decoded within {seconds:g} s: it is damaged, or the disk or the machine is busy; try it alone, "
            "with a longer limit"
        )
    code = fault.exit_code or 0
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if fault.from_outside:
        return f"had its decoder killed ({how}), perhaps for want of memory on this machine: try it alone"
    return f"makes its decoder crash ({how}): it is damaged; copy it again from the card or the backup"


# --- the parent's side ------------------------------------------------------------------------------------------------


class _Child:
    def __init__(self) -> None:
        try:
            self._process, self._socket = _start()
        except OSError as error:
            wanting = _WANTING.get(error.errno or 0)
            remedy = f"there is too little of {wanting}: give fewer workers" if wanting else "see to what it names"
            raise StillgrainError(
                f"the process that reads files cannot be started ({error.strerror or error}): {remedy}, and try again"
            ) from error
        self.stop = weakref.finalize(self, _end, self._process, self._socket)
        self._wait_until_it_is_ready()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def _wait_until_it_is_ready(self) -> None:
        self._socket.settimeout(_GRACE_SECONDS * 6)
        try:
            ready = self._socket.recv(1)
        except TimeoutError:
            ready = b""
        if not ready:
            self.stop()
            raise StillgrainError(
                f"the process that reads files did not start (exit code {self._process.returncode}): what it printed "
                "says why; reading without isolation is still possible"
            )

    def ask(self, request: Mapping[str, Any]) -> tuple[dict[str, Any] | None, _Fault]:
        """The child's answer, None where there came none, and then why."""
        deadline = time.monotonic() + request["seconds"] + _GRACE_SECONDS
        try:
            _send(self._socket, json.dumps(request).encode(), [])
            return self._receive(deadline, request["memory_bytes"]), _Fault()
        except TimeoutError:
            return None, _Fault(late=True)
        except (OSError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
            return None, _Fault(exit_code=self._process.returncode)

    def _receive(self, deadline: float, memory_bytes: int) -> dict[str, Any]:
        size = int.from_bytes(self._read(8, deadline))
        if size > _LARGEST_HEADER:
            return {"failed": "its answer makes no sense"}
        header = json.loads(self._read(size, deadline))
        shapes = [(np.dtype(kind), tuple(shape)) for kind, shape in header.pop("arrays")]
        if any(dtype.kind not in "biuf" for dtype, _ in shapes) or (
            sum(dtype.itemsize * math.prod(shape) for dtype, shape in shapes) > memory_bytes
        ):
            return {"memory": True}
        arrays = [np.empty(shape, dtype) for dtype, shape in shapes]
        for array in arrays:
            if array.size:
                self._fill(array.data.cast("B"), deadline)
        return _unpacked(header, arrays)

    def _read(self, size: int, deadline: float) -> bytearray:
        buffer = bytearray(size)
        self._fill(memoryview(buffer), deadline)
        return buffer

    def _fill(self, view: memoryview, deadline: float) -> None:
        while view:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]


_WANTING = {
    errno.ENOMEM: "memory on this machine",
    errno.EAGAIN: "the processes that one may have (ulimit -u)",
    errno.EMFILE: "the files that a process may open (ulimit -n)",
    errno.ENFILE: "the files that this machine can open",
}


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child, and our end of what leads to it. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is the parent's; the child ends when nobody is left to ask it
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def _end(process: subprocess.Popen[bytes], sock: socket.socket) -> None:
    sock.close()
    process.kill()
    # A process that waits for a dead disk cannot be killed, and must not keep us.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)


_LOCAL = threading.local()


def _reader_of_this_thread() -> IsolatedReader:
    # A forked process must not talk to its parent's child.
    if getattr(_LOCAL, "owner", None) != os.getpid():
        _LOCAL.owner, _LOCAL.reader = os.getpid(), IsolatedReader()
    return _LOCAL.reader


# --- the child's side -------------------------------------------------------------------------------------------------

_READERS: Mapping[str, tuple[str, str]] = {
    "raw": ("library.files.raw", "read_raw"),
    "image": ("library.files.picture", "read_image"),
    "linear_dng": ("library.files.linear_dng", "read_linear_dng"),
}

_WANT_OF_MEMORY = (rawpy.LibRawUnsufficientMemoryError, rawpy.LibRawMemPoolOverflowError, MemoryError)


def _serve(sock: socket.socket) -> None:
    """Answer requests until the other end is gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock.sendall(b"\0")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # decoders print warnings of their own; ours come as errors
    stream = sock.makefile("rb")
    while size := stream.read(8):
        request = json.loads(stream.read(int.from_bytes(size)))
        module, name = _READERS[request["kind"]]
        read = getattr(importlib.import_module(module), name)
        arrays: list[np.ndarray] = []
        answer = _answer(read, request, arrays)
        header = {**answer, "arrays": [(array.dtype.str, array.shape) for array in arrays]}
        _send(sock, json.dumps(header).encode(), arrays)


def _answer(read: Callable[[str], Any], request: Mapping[str, Any], arrays: list[np.ndarray]) -> dict[str, Any]:
    # SIGALRM ends a process in the middle of any decoder, and when nobody is left to end it.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    try:
        with _limited_memory(request["memory_bytes"]):
            image = read(request["path"])
        return {"fields": {field.name: _packed(getattr(image, field.name), arrays) for field in fields(image)}}
    except (RawFileError, ImageFileError) as error:
        if isinstance(error.__cause__, _WANT_OF_MEMORY):
            return {"memory": True}
        return {"refused": error.reason, "lasting": error.lasting}
    except MemoryError:
        return {"memory": True}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _limited_memory(num_bytes: int) -> Iterator[None]:
    """Let this process allocate so much more than it has, which Linux only can tell."""
    statm = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if not statm.exists():
        yield
        return
    limit = int(statm.read_text().split()[0]) * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# --- what goes over the socket ----------------------------------------------------------------------------------------


def _send(sock: socket.socket, header: bytes, arrays: list[np.ndarray]) -> None:
    sock.sendall(len(header).to_bytes(8) + header)
    for array in arrays:
        sock.sendall(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _packed(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value in JSON's types; arrays go behind it, and what JSON would confuse is named."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, bytes):
        arrays.append(np.frombuffer(value, np.uint8))
        return {"bytes": len(arrays) - 1}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_packed(item, arrays) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": {name: _packed(item, arrays) for name, item in value.items()}}
    return value


def _unpacked(header: dict[str, Any], arrays: list[np.ndarray]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        [(kind, content)] = value.items()
        if kind == "array":
            return arrays[content]
        if kind == "bytes":
            return arrays[content].tobytes()
        if kind == "tuple":
            return tuple(plain(item) for item in content)
        return {name: plain(item) for name, item in content.items()}

    if "fields" not in header:
        return header
    return {"fields": {name: plain(value) for name, value in header["fields"].items()}}


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _parent:
        _serve(_parent)
