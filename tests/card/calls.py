"""Calls of torch's Python functions, before torch's own code sees them: what it would look up in a CUDA library."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tests.card import tensor
from tests.card.tensor import CARD, CPU, CardTensor

# torch.amp's lists for CUDA (https://docs.pytorch.org/docs/stable/amp.html): in the lower precision, and in float32.
LOWER = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d"}
LOWER |= {"scaled_dot_product_attention"}
FLOAT32 = {"pow", "__pow__", "__rpow__", "exp", "expm1", "log", "log1p", "rsqrt", "reciprocal", "prod", "sum", "norm"}
FLOAT32 |= {"cumsum", "cumprod", "softmax", "log_softmax", "softplus", "layer_norm", "cross_entropy", "nll_loss"}
FLOAT32 |= {"mse_loss", "kl_div", "cosine_similarity", "binary_cross_entropy_with_logits", "normalize"}
MADE_OF_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)


class Generator(torch.Generator):
    """One that says which device it is for; its numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    device = property(lambda self: self.place)


class Calls(TorchFunctionMode):
    """`cuda` is `cuda:0`; new tensors of Python's numbers, autocast, generators."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        args = tuple(_indexed(word) for word in args)
        kwargs = {name: _indexed(word) for name, word in (kwargs or {}).items()}
        own = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if function is torch.Tensor.pin_memory:
            if isinstance(own, CardTensor):
                raise RuntimeError("cannot pin a tensor of the card: only dense CPU tensors can be pinned")
            own.is_pinned = lambda: True
            return own
        if function is torch.Tensor.backward:
            return _backward(*args, **kwargs)
        if function is torch.Tensor.cuda:
            function, args, kwargs = torch.Tensor.to, (own, CARD), {}
        if function is torch.Tensor.to and isinstance(own, CardTensor) and args[1:] == (CARD,) and not kwargs:
            return own
        if (generator := kwargs.get("generator")) is not None:
            place = torch.device(kwargs.get("device") or (CPU if own is None else own.device))
            if place.type != generator.device.type:
                raise RuntimeError(f"Expected a '{place}' device type for generator but found '{generator.device}'")
        if function in MADE_OF_DATA:
            return _made_of_data(function, args, kwargs, own)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(function, args, kwargs)
        asks = any(isinstance(word, (str, torch.device)) and str(word) == "meta" for word in (*args, *kwargs.values()))
        tensor.without_storage += asks
        try:
            return function(*args, **kwargs)
        finally:
            tensor.without_storage -= asks


def _backward(
    loss: torch.Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    """By autograd's engine: the mode is off while it handles a call, and checkpoints call in the backward pass."""
    if gradient is None and loss.numel() != 1:
        raise RuntimeError("grad can be implicitly created only for scalar outputs")
    keeps = create_graph if retain_graph is None else retain_graph
    given = torch.ones_like(loss) if gradient is None else gradient
    options = {"allow_unreachable": True, "accumulate_grad": True}
    with Calls():
        _engine_run_backward((loss,), (given,), keeps, create_graph, inputs or (), **options)


def _indexed(word: Any) -> Any:
    is_card = (
        word.type == "cuda" if isinstance(word, torch.device) else type(word) is str and word in ("cuda", "cuda:0")
    )
    return CARD if is_card else word


def _made_of_data(function: Any, args: Any, kwargs: dict[str, Any], own: Any) -> Any:
    """Made on the CPU and copied, for which a card is waited for."""
    if function is torch.Tensor.new_tensor:
        function, args, kwargs = torch.tensor, args[1:], {"dtype": own.dtype, "device": own.device, **kwargs}
    if isinstance(args[0], CardTensor) and function is not torch.tensor:
        return args[0].to(**kwargs) if kwargs else args[0]
    on_card = kwargs.get("device") == CARD
    made = function(*args, **{**kwargs, "device": CPU} if on_card else kwargs)
    return made.to(CARD) if on_card else made


def _autocast(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = getattr(function, "__name__", "")
    if name not in LOWER | FLOAT32 or kwargs.get("dtype") is not None:
        return args, kwargs
    dtype = torch.get_autocast_dtype("cuda") if name in LOWER else torch.float32

    def cast(word: Any) -> Any:
        fits = isinstance(word, CardTensor) and word.is_floating_point() and word.dtype != torch.float64
        return word.to(dtype) if fits and word.dtype != dtype else word

    return tree_map(cast, args), tree_map(cast, kwargs)
