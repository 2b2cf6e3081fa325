"""Runs a recipe with vLLM in its process, on a CPU: there vLLM keeps packed copies of the weights when it has loaded
them, and those that are sent to it later, as to a GPU, would be looked at by nobody. So it packs none here."""

import runpy
import sys
from typing import Any

import torch
from vllm.model_executor.layers import utils


def unpacked(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


if __name__ == "__main__":
    utils.dispatch_cpu_unquantized_gemm = unpacked
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
