"""Converts any array to a checked torch tensor, and results back to the caller's type."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

Grid = tuple[int, int]

MOST_PATCHES = 2**31  # of a graph, whose (N / 64)^2 * 512 bytes then fit a 64-bit number

# The messages of torch and numpy for too little memory, or for more bytes than any machine has.
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: .*tried to allocate (\d+ bytes)"
    r"|Unable to allocate ([\d.]+ \w+) for an array"  # numpy
    "|Storage size calculation overflowed|integer multiplication overflow"
)

FEATURE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _as_it_is(result: Tensor) -> Tensor:
    return result


@dataclass(frozen=True)
class ArrayType:
    """A type of array: how a tensor becomes one, and on which stream the work on one is queued."""

    from_tensor: Callable[[Tensor], Any] = _as_it_is
    queue: Callable[[], AbstractContextManager[Any]] = nullcontext  #: sets torch's current stream
    array: str = "the arrays"  #: which array has this type, for errors

    def stream(self) -> AbstractContextManager[Any]:
        """Sets torch's current stream; a ``MemoryError`` inside names the array it was for."""
        # torch.compile does not support every context, so it sees the stream alone.
        return self.queue() if torch.compiler.is_compiling() else self._work()

    @contextmanager
    def _work(self) -> Iterator[None]:
        try:
            with self.queue():
                yield
        except (MemoryError, RuntimeError) as error:
            match = _NO_MEMORY.search(str(error))
            if match is None and not isinstance(error, MemoryError):
                raise
            size = match and (match[1] or match[2])
            asked = f": {size} could not be allocated" if size else ""
            raise MemoryError(f"not enough memory for {self.array}{asked}") from error


TORCH = ArrayType()


def as_tensor(value: Any, name: str) -> tuple[Tensor, ArrayType]:
    """Returns a tensor that shares memory with ``value`` if possible, and the type of ``value``.

    Accepts torch tensors, numpy arrays and all arrays with DLPack (cupy, jax, tensorflow, ...).
    Raises ``TypeError`` for anything else, and for tensors that are not dense or arrays with a
    mask; ``ValueError`` for tensors without numbers, on the device meta.
    """
    if isinstance(value, Tensor):
        check_dense(value, name)
        check_data(value, name)
        # Simple, for torch.compile traces this.
        compiling = torch.compiler.is_compiling()
        array_type = TORCH if compiling else ArrayType(array=_named(value, name))
        return value.detach().resolve_neg(), array_type  # kernels read the memory as it is
    if isinstance(value, np.ndarray):
        check_unmasked(value, name)
        if not value.dtype.isnative or value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise TypeError(f"`{name}` must hold native numbers: got dtype {value.dtype}")
        # torch refuses negative strides and strides that are no multiple of an element, and warns
        # about read-only memory.
        size = value.dtype.itemsize
        usable = all(stride >= 0 and stride % size == 0 for stride in value.strides)
        array_type = ArrayType(Tensor.numpy, array=_named(value, name))
        with array_type.stream():
            own = value if usable and value.flags.writeable else value.copy()
        return torch.from_numpy(own), array_type
    if hasattr(value, "__dlpack__"):
        tensor = torch.from_dlpack(value)
        package = type(value).__module__.partition(".")[0]
        queue = _cupy_stream(tensor.device) if package == "cupy" else nullcontext
        if hasattr(value, "__array_namespace__"):
            from_tensor = value.__array_namespace__().from_dlpack
        else:
            from_tensor = getattr(__import__(package), "from_dlpack", _as_it_is)
        return tensor, ArrayType(from_tensor, queue, _named(tensor, name))
    raise TypeError(
        f"`{name}` must be a torch tensor, a numpy array or a DLPack array: "
        f"got {type(value).__name__}"
    )


def as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """Returns ``numpy.asarray(value)``; ``value`` may be a tensor on any device.

    Raises ``TypeError`` for tensors that are not dense and arrays with a mask, ``ValueError`` for
    tensors without numbers.
    """
    check_unmasked(value, name)
    if isinstance(value, Tensor):
        check_dense(value, name)
        check_data(value, name)
        value = value.detach().cpu()
    return np.asarray(value)


def check_dense(value: Any, name: str) -> None:
    """Raises ``TypeError`` unless ``value`` is a dense tensor.

    Sparse, nested, MKL-DNN and quantized tensors are not dense.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch tensor: got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"`{name}` must be a dense tensor: got a nested one; pass its parts")
    if value.is_quantized:
        raise TypeError(
            f"`{name}` must be a dense tensor: got a quantized one; call .dequantize() first"
        )
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.").lstrip("_")
        raise TypeError(
            f"`{name}` must be a dense tensor: got the layout {layout}; call .to_dense() first"
        )


def check_data(value: Tensor, name: str) -> None:
    """Raises ``ValueError`` for a tensor on the device meta."""
    if value.device.type == "meta":
        raise ValueError(
            f"`{name}` must be on the CPU or another device that holds numbers: got meta"
        )


def check_unmasked(value: Any, name: str) -> None:
    """Raises ``TypeError`` for a numpy array with a mask, which the kernels would ignore."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must be an array without a mask: got a MaskedArray")


def _named(value: Any, name: str) -> str:
    """Returns the words for an array in an error."""
    return f"`{name}` of shape {tuple(value.shape)}"


def _cupy_stream(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Returns a context in which cupy's current stream is torch's, also for new memory."""

    def current() -> AbstractContextManager[Any]:
        cupy = sys.modules["cupy"].cuda
        with cupy.Device(device.index):
            pointer = cupy.get_current_stream().ptr
        return torch.cuda.stream(torch.cuda.ExternalStream(pointer, device))

    return current


def check_device(tensor: Tensor, name: str, device: torch.device, owner: str) -> None:
    """Raises ``ValueError`` unless ``tensor`` is on the ``device`` of its ``owner``."""
    if tensor.device != device:
        raise ValueError(
            f"`{name}` must be on the device of {owner}, {device}: got {tensor.device}"
        )


@dataclass(frozen=True)
class Features:
    """Checked patch features, and what is needed to return results as the caller expects."""

    tensor: Tensor  # (B, N, d), one of FEATURE_DTYPES; may be strided
    grid: Grid | None  # (h, w) with h * w == N
    batched: bool  # True if the input had a batch axis
    array_type: ArrayType  # the caller's type of array

    def to_caller(self, result: Tensor) -> Any:
        """Returns a (B, ...) result as the caller's type, without B if the features had none."""
        return self.array_type.from_tensor(result if self.batched else result[0])


def as_features(
    features: Any,
    grid: Any = None,
    *,
    needs_grid: bool = False,
    devices: tuple[str, ...] | None = ("cpu", "cuda"),
) -> Features:
    """Checks ``features``: (N, d) or (B, N, d) with ``grid=(h, w)``, or (B, d, h, w).

    ``devices``: the device types that are accepted (None: any). Raises ``TypeError`` for a wrong
    kind of array or dtype and ``ValueError`` for a wrong shape, grid or device.
    """
    tensor, array_type = as_tensor(features, "features")
    if tensor.dtype not in FEATURE_DTYPES:
        raise TypeError(
            "`features` must be float16, bfloat16, float32 or float64: "
            f"got {str(tensor.dtype).removeprefix('torch.')}"
        )
    shape = tuple(tensor.shape)
    if tensor.ndim not in (2, 3, 4):
        raise ValueError(f"`features` must be (N, d), (B, N, d) or (B, d, h, w): got shape {shape}")
    if 0 in shape:
        raise ValueError(f"`features` must not be empty: got shape {shape}")
    if devices is not None and tensor.device.type not in devices:
        raise ValueError(
            "`features` must be on the CPU or a CUDA device, there are kernels for no other: "
            f"got {tensor.device}; call .cpu() first"
        )
    if grid is not None:
        grid = as_grid(grid)
    if tensor.ndim == 4:
        if grid not in (None, shape[2:]):
            raise ValueError(
                f"`grid` must equal the last two axes of (B, d, h, w) features: "
                f"got {grid} for shape {shape}"
            )
        grid = (shape[2], shape[3])
        with array_type.stream():
            tensor = tensor.flatten(2).transpose(1, 2)
    elif grid is not None and grid[0] * grid[1] != shape[-2]:
        raise ValueError(f"`grid` must satisfy h*w == N: got {grid} for N = {shape[-2]}")
    elif grid is None and needs_grid:
        raise ValueError(
            f"`grid` is needed with (N, d) and (B, N, d) features: pass grid=(h, w) with "
            f"h*w == N, here N = {shape[-2]}"
        )
    check_patches(tensor.shape[-2])
    return Features(tensor if tensor.ndim == 3 else tensor[None], grid, len(shape) > 2, array_type)


def check_patches(n: int) -> None:
    """Raises ``ValueError`` if a graph cannot have ``n`` patches."""
    if n > MOST_PATCHES:
        raise ValueError(f"`features` must have at most 2^31 patches of a graph: got N = {n}")


def as_grid(grid: Any) -> Grid:
    """Returns ``grid`` as two positive ints; raises ``ValueError`` otherwise."""
    try:
        h, w = (int(side) for side in grid)
        whole = (h, w) == tuple(grid)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or h < 1 or w < 1:
        raise ValueError(f"`grid` must be two positive integers (h, w): got {grid!r}")
    return h, w
