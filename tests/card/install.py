"""Puts the card where torch and the libraries look for one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.cuda.random
import torch.optim.optimizer

import tuner.hardware
import tuner.train.callbacks
from tests.card.calls import Calls, Generator
from tests.card.tensor import CARD, card

MEMORY = 2 << 30
SAID = {
    "is_available": True,
    "is_initialized": True,
    "_is_in_bad_fork": False,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": "a card of this machine's memory",
    "get_device_capability": (9, 0),
    "is_bf16_supported": True,
    "get_device_properties": SimpleNamespace(total_memory=MEMORY, major=9, minor=0, multi_processor_count=1),
    "mem_get_info": (MEMORY, MEMORY),
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "memory_reserved": 0,
    "max_memory_reserved": 0,
    **dict.fromkeys(("_lazy_init", "set_device", "empty_cache", "reset_peak_memory_stats")),
}


def install() -> None:
    """For the rest of this process."""
    for name, answer in SAID.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name, answer in {"is_available": True, "device_count": 1}.items():
        setattr(torch.accelerator, name, lambda *_, answer=answer, **__: answer)
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device(CARD.type)
    for module in (torch.cuda, torch.cuda.random):
        module.manual_seed = module.manual_seed_all = card.seed
        module.get_rng_state = lambda device=None: card.state.clone()
        module.set_rng_state = lambda state, device=None: _set_state(state)
        module.get_rng_state_all = lambda: [card.state.clone()]
        module.set_rng_state_all = lambda states: _set_state(*states)
    torch.cuda.synchronize = torch.accelerator.synchronize = lambda device=None: card.wait("synchronize")
    torch.Generator = Generator
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda self: None
    # Its product is of a size for a card.
    tuner.hardware.measure_peak = tuner.train.callbacks.measure_peak = lambda dtype, size=None: 1e12
    # A parameter that moves stays the same object, so that two modules go on sharing it.
    torch.__future__.set_swap_module_params_on_conversion(True)
    card.__enter__()
    Calls().__enter__()


def _set_state(state: Any) -> None:
    if type(state) is not torch.Tensor:
        raise TypeError(f"the state of a card's random numbers is a CPU tensor, not {type(state).__name__}")
    card.state = state.clone()
