"""A card made of this machine's memory: tensors that say they are on `cuda:0`, and do not mix with the CPU's.

Each holds a CPU tensor, on which everything is computed. Torch's own code, which has no CUDA in it here, is told that
they are on its device without storage (`meta`); Python code sees `cuda:0`. What a card refuses is refused: operands on
two devices, a generator of another device, numpy. What commonly makes the host wait for a card is counted, with the
line that asked. Random numbers are drawn from a state of the card's own, as there.

It knows nothing of kernels: neither their speed nor their rounding nor their order of summation.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# Their result's shape, or itself, is for the host to know.
READ = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.equal}
READ |= {aten.unique_consecutive, aten.bincount, aten.repeat_interleave}
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm}
JOINED = {aten.cat, aten.stack}  # of these operands all are to be on the card


class CardTensor(torch.Tensor):
    """A tensor on the card; `held` is what it is made of."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> CardTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device="meta",
        )  # fmt: skip
        tensor.held = held
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CARD)
    is_cuda, is_cpu, is_meta = (property(lambda self, answer=answer: answer) for answer in (True, False, False))

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    @property
    def data(self) -> CardTensor:
        return self.detach()

    @data.setter
    def data(self, value: CardTensor) -> None:
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = self.detach().clone()
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"on the card: {self.held!r}"


class Card(TorchDispatchMode):
    """The card as a whole: while it is on, `device="cuda"` is it.

    Attributes:
        waits: how often the host waited for it, by line.
        repeats: whether its products are to give the same bits again; not known before the first of them.
        state: of its random numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = Counter[str]()
        self.repeats: bool | None = None
        self.seed(0)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})

    def seed(self, seed: int) -> None:
        self.state = torch._C.Generator().manual_seed(seed).get_state()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """The process's random numbers are the card's."""
        own = torch.default_generator.get_state()
        torch.default_generator.set_state(self.state)
        try:
            yield
        finally:
            self.state = torch.default_generator.get_state()
            torch.default_generator.set_state(own)

    def multiply(self) -> None:
        """Looked up once, as CUDA's products do it.

        Raises:
            RuntimeError: products are to repeat, and at the first one the variable for that was not set.
        """
        if self.repeats is None:
            self.repeats = os.environ.get("CUBLAS_WORKSPACE_CONFIG") in (":4096:8", ":16:8")
        if torch.are_deterministic_algorithms_enabled() and not self.repeats:
            raise RuntimeError("Deterministic behavior was enabled, but CUBLAS_WORKSPACE_CONFIG was not set in time.")

    def wait(self, what: str) -> None:
        """Count a wait for the line in the project, and in the library that it called, which brought it about."""
        lines = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        lines = [frame for frame in lines if Path(frame.filename).parent != Path(__file__).parent]
        own = [frame for frame in lines if "site-packages" not in frame.filename and frame.name != "<module>"]
        names = []
        for frame in (*own[-1:], *lines[-1:]):
            path = frame.filename.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/")
            names.append(f"{path}:{frame.lineno}")
        self.waits[" ".join(dict.fromkeys([*names, what]))] += 1


card = Card()
# Above 0: Python code asks for tensors without storage. Otherwise torch's own code asks for one beside a card's.
without_storage = 0


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation of torch: on the card, where an operand or the device that is asked for is."""
    kind, operands = operation.overloadpacket, list(tree_iter((args, kwargs)))
    there = [operand for operand in operands if isinstance(operand, CardTensor)]
    here = [
        operand for operand in operands if isinstance(operand, torch.Tensor) and not isinstance(operand, CardTensor)
    ]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if asked is not None and asked.type == "meta" and not without_storage and not any(x.is_meta for x in here):
        kwargs, asked = {**kwargs, "device": CARD}, CARD
    if not there and (asked is None or asked.type != "cuda"):
        return operation(*args, **kwargs)
    refuse_two_devices(operation, args, there, here)
    leaves = kind is aten._to_copy and asked is not None and asked.type != "cuda"
    leaves |= kind is aten.copy_ and not isinstance(args[0], CardTensor)
    comes = kind in COPIES and not leaves and any(operand.is_cpu for operand in here)
    masked = kind in INDEXED and any(x.dtype == torch.bool for x in tree_iter(args[1]) if isinstance(x, torch.Tensor))
    pinned = kwargs.get("non_blocking") and all(operand.is_pinned() for operand in here)
    if kind in READ or masked or leaves or (comes and not pinned):
        card.wait(kind.__name__)
    held_args, held_kwargs = tree_map(_held, args), tree_map(_held, kwargs)
    held_kwargs.pop("pin_memory", None)
    if kind is aten.histc and not held_args[0].is_floating_point():  # a card takes integers
        held_args = (held_args[0].double(), *held_args[1:])
    draws = torch.Tag.nondeterministic_seeded in operation.tags and kwargs.get("generator") is None
    if kind in PRODUCTS:
        card.multiply()
    if kind is aten.cumsum and held_args[0].is_floating_point() and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
    with card.drawing() if draws else nullcontext():
        result = operation(*held_args, **held_kwargs)
    if leaves:
        return args[0] if kind is aten.copy_ else result
    return return_and_correct_aliasing(operation, args, kwargs, tree_map(_on_card, result))


def refuse_two_devices(operation: Any, args: Any, there: list[Any], here: list[torch.Tensor]) -> None:
    """As a card does: a CPU tensor of one element may stand beside the card's, and one of indices.

    Raises:
        RuntimeError: others.
    """
    kind = operation.overloadpacket
    if kind in INDEXED:  # what is indexed, and what is put there
        here = [operand for operand in (args[0], *args[2:3]) if _is_plain(operand)]
    if there and kind not in COPIES and any(operand.dim() or kind in JOINED for operand in here):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two: {CARD}, cpu ({kind})"
        )


def _held(operand: Any) -> Any:
    if isinstance(operand, CardTensor):
        return operand.held
    return CPU if isinstance(operand, torch.device) and operand.type == "cuda" else operand


def _on_card(result: Any) -> Any:
    return CardTensor(result) if _is_plain(result) else result


def _is_plain(operand: Any) -> bool:
    return isinstance(operand, torch.Tensor) and not isinstance(operand, CardTensor)
