"""Runs a recipe with vLLM in its process, on a CPU, which is refused otherwise: there vLLM keeps packed copies of the
weights that it has loaded, and does not look at those that are sent later. So it packs none here."""

import runpy
import sys
from typing import Any

import torch
from vllm.model_executor.layers import utils

from tuner.rl import engines


def unpacked(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


if __name__ == "__main__":
    engines.PACKING = ()
    utils.dispatch_cpu_unquantized_gemm = unpacked
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
