"""Completions that something else than our own sampler writes: `--rollout copy`, `continuous` or `vllm`.

What wrote them has other kernels or another precision than what learns, so that its probabilities are not quite the
policy's. The policy's own are computed in a forward pass; by how much they differ, a completion's loss is weighted
(truncated importance sampling: Ionides 2008, https://doi.org/10.1198/106186008X320456).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tuner.data.collate import pad
from tuner.errors import ModelError, first_line, one_line
from tuner.hardware import many_shapes
from tuner.model import TunerDecoderConfig
from tuner.rl.actor import ActorCritic
from tuner.rl.rollout import Rollout, sample, uniforms
from tuner.rl.update import micro_batches

# Tokens of a page of continuous batching's cache on CPUs.
PAGE = 64
# Devices on which vLLM keeps other copies of its weights; characters of its errors, which list all it knows.
PACKING, SAID = ("cpu",), 300


@dataclass
class Written:
    """Completions with their end tokens, and the log-probabilities that they were sampled with."""

    completions: list[list[int]]
    logprobs: list[list[float]]


class Copy:
    """Our own sampler on a copy of the policy in bfloat16 with its adapter folded in, made anew at every update: each
    step of decoding reads half the bytes, and nothing of the adapter."""

    def __init__(self, policy: Any, dtype: torch.dtype = torch.bfloat16):
        self.policy, self.dtype = policy, dtype

    def __call__(
        self, prompts: Sequence[Sequence[int]], args: Any, ends: Sequence[int], episodes: list[int]
    ) -> Written:
        """Sample, with the random numbers of the episodes."""
        model = copy.deepcopy(self.policy)
        model = (model.merge_and_unload() if hasattr(model, "merge_and_unload") else model).to(self.dtype)
        with torch.autocast(model.device.type, enabled=False):
            found = sample(
                model, prompts, uniforms(args.seed, episodes, args.response_length), ends=ends,
                temperature=args.temperature, batch_size=args.local_rollout_forward_batch_size,
            )  # fmt: skip
        lengths = found.lengths.tolist()
        logprobs = [row[:length] for row, length in zip(found.logprobs.tolist(), lengths, strict=True)]
        return Written(found.completions(), logprobs)


class ContinuousBatching:
    """transformers' own: a paged cache, and a new prompt as soon as a completion ends. It has random numbers of its
    own, led by the seed and the update."""

    def __init__(self, policy: Any):
        self.model = policy.get_base_model() if hasattr(policy, "get_base_model") else policy

    def __call__(
        self, prompts: Sequence[Sequence[int]], args: Any, ends: Sequence[int], episodes: list[int]
    ) -> Written:
        """Sample. Raises a ModelError for a model that it cannot run."""
        from transformers.generation import ContinuousBatchingConfig

        model, attention = self.model, self.model.config._attn_implementation
        was_training = model.training
        model.eval()
        how = GenerationConfig(
            do_sample=True, temperature=args.temperature, top_k=0, top_p=1.0, max_new_tokens=args.response_length,
            eos_token_id=list(ends) or None, pad_token_id=model.config.get_text_config().pad_token_id,
        )  # fmt: skip
        sizes: dict[str, int] = {}
        if model.device.type == "cpu":  # elsewhere by what memory is free, which here would be all of the machine's
            pages = sum(-(-(len(prompt) + args.response_length) // PAGE) for prompt in prompts)
            sizes = {"page_size": PAGE, "num_blocks": pages, "max_batch_tokens": max(256, *map(len, prompts))}
        seed = (args.seed + episodes[0]) % 2**32
        config = ContinuousBatchingConfig(return_logprobs=True, seed=seed, **sizes)
        try:
            model.set_attn_implementation("sdpa")
            outputs = _generate(model, prompts, how, config)
        except Exception as error:  # whatever a model's own code raises there
            raise ModelError(f"--rollout continuous: {type(error).__name__}: {first_line(error)}") from error
        finally:
            model.set_attn_implementation(attention)
            model.train(was_training)
        if len(outputs) != len(prompts) or any(output.error for output in outputs):
            said = next((output.error for output in outputs if output.error), "some completions are missing")
            raise ModelError(f"--rollout continuous: {type(model).__name__} cannot be run by it: {said}")
        return Written([o.generated_tokens for o in outputs], [o.logprobs for o in outputs])


@many_shapes()
def _generate(model: Any, prompts: Sequence[Sequence[int]], how: GenerationConfig, config: Any) -> list[Any]:
    """What `generate_batch` does, but that all prompts are there before it starts: handed over while it runs, as that
    does, they would be in batches, and get random numbers, by the clock."""
    from transformers.generation.continuous_batching.utils import WorkloadHints

    hints = WorkloadHints(max(map(len, prompts)), how.max_new_tokens, len(prompts))
    manager = model.init_continuous_batching(how, config, hints)
    found: dict[str, Any] = {}
    try:
        manager.warmup()
        asked = manager.add_requests([list(p) for p in prompts], max_new_tokens=how.max_new_tokens)
        manager.start()
        while len(found) < len(asked):
            output = manager.get_result(timeout=1)
            if output is not None and output.is_finished():
                found[output.request_id] = output
            elif output is None and not manager.is_running():
                break
    finally:
        manager.stop(block=True)
        manager.destroy()
    return [found[name] for name in asked if name in found]


class VLLM:
    """vLLM, in this process or as a server, by the class that TRL's GRPO and RLOO have for it: the weights are sent
    before each update's completions."""

    def __init__(
        self, policy: Any, args: Any, accelerator: Any, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
    ):
        if args.vllm_mode == "colocate" and policy.device.type in PACKING:
            raise ModelError(
                "--rollout vllm needs an accelerator: on a CPU vLLM packs the weights that it has loaded, and does not "
                "look at those that are sent later."
            )
        if args.vllm_mode == "colocate" and policy.config.model_type == TunerDecoderConfig.model_type:
            # It would change the class that learns here too, so that its forward pass fails.
            raise ModelError(
                "--rollout vllm cannot run a model of this project's own classes in the process that trains it: leave "
                "--own_model out, or write it as another family's (tuner convert)."
            )
        try:
            from trl.generation.vllm_generation import VLLMGeneration

            self.engine = VLLMGeneration(
                policy, accelerator, tokenizer, mode=args.vllm_mode, server_base_url=args.vllm_server_base_url,
                gpu_memory_utilization=args.vllm_gpu_memory_utilization, temperature=args.temperature,
                max_completion_length=args.response_length, logprobs=0,
                generation_kwargs={"stop_token_ids": list(ends), "ignore_eos": True},
            )  # fmt: skip
        except Exception as error:  # whatever vLLM says of a model or a machine
            raise ModelError(f"--rollout vllm: {one_line(error)[:SAID]}") from error

    def __call__(
        self, prompts: Sequence[Sequence[int]], args: Any, ends: Sequence[int], episodes: list[int]
    ) -> Written:
        """Send the weights, and sample."""
        self.engine.sync_weights()
        group = args.num_generations or 1
        _, completions, logprobs, _ = self.engine.generate([list(p) for p in prompts], None, group)
        # TRL's class says None for NaN, which ends the run where the gradient is looked at.
        known = [[math.nan if token[0] is None else token[0] for token in said] for said in logprobs]
        return Written(completions, known)


def make_engine(args: Any, policy: Any, accelerator: Any, tokenizer: Any, ends: Sequence[int]) -> Any:
    """What `--rollout` names; None where the policy itself samples."""
    if args.rollout == "copy":
        return Copy(policy)
    if args.rollout == "continuous":
        return ContinuousBatching(policy)
    return VLLM(policy, args, accelerator, tokenizer, ends) if args.rollout == "vllm" else None


@torch.no_grad()
def as_rollout(
    actor: ActorCritic, prompts: Sequence[Sequence[int]], written: Written, ends: Sequence[int], size: int
) -> Rollout:
    """Completions with what the policy says of their tokens, and by how much the program that wrote them differs."""
    count, device = len(prompts), actor.bare.device
    lengths = torch.tensor([len(ids) for ids in written.completions], device=device)
    if not int(lengths.min()):
        raise ModelError("A completion has no token, not even an end.")
    tokens = pad(written.completions, 0).to(device)
    theirs = pad_sequence([torch.tensor(said) for said in written.logprobs], batch_first=True).to(device)
    ended = torch.tensor([ids[-1] in ends for ids in written.completions], device=device)
    logprobs, entropies, values = (torch.zeros(tokens.shape, device=device) for _ in range(3))
    found = Rollout([list(p) for p in prompts], tokens, lengths, ended, logprobs, entropies, values, theirs)
    shared, whole = actor.shares, found.whole_lengths()
    for batch in micro_batches(range(count), whole, size, actor.layout.padding_free):
        rows = torch.as_tensor(batch, device=device)
        scores = actor(found, batch, entropy=True, value=shared)
        for into, values_ in ((logprobs, scores.logprobs), (entropies, scores.entropies), (values, scores.values)):
            if values_ is not None:
                into[rows] = found.unflat(values_, batch)
    found.drift = logprobs - theirs  # both are 0 behind a completion
    return found
