"""One process of `test_split_adamw.py`: six steps on rows of its own, and then its weights beside the first process's.

Usage: torchrun --nproc_per_node 2 weights_worker.py
"""

from __future__ import annotations

import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.model.helpers import tiny_decoder
from tuner.optim.split_adamw import SplitAdamW, halve_parameters

if __name__ == "__main__":
    distributed.init_process_group("gloo")
    model = tiny_decoder().train()
    halve_parameters(model)
    start = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    parallel, optimizer = DistributedDataParallel(model), SplitAdamW(model.parameters(), lr=1e-4)
    for step in range(6):
        torch.manual_seed(2 * step + distributed.get_rank())  # as in training: dropout differs between processes
        ids = torch.randint(3, model.config.vocab_size, (2, 12))
        parallel(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    first = weights.clone()
    distributed.broadcast(first, 0)
    assert torch.equal(weights, first), f"{int((weights != first).sum())} weights of {len(weights)} differ"
    assert not torch.equal(weights, start), "nothing moved"
    print("same\n", end="", flush=True)
    distributed.barrier()
    os._exit(0)  # gloo's threads abort an interpreter's exit now and then
