"""What an update holds in memory: neither logits of all its tokens, nor the activations of two models, nor a batch as
long as its longest prompt."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rl.models import policy, scorer, trainer
from tuner.rl.update import micro_batches


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize(
    "settings", [{}, {"value": "separate"}, {"entropy_coef": 0.01}, {"advantage": "rloo"}], ids=str
)
def test_no_tensor_has_the_vocabulary_for_every_token(tmp_path, settings):
    """64 completions of 32 tokens and 20,000 words are 41 million logits, 160 MB: nothing is near it."""
    words, tokens = 20_000, 32
    value = {"value_model": scorer(vocab_size=words)} if settings.get("value") else {}
    made = trainer(
        tmp_path, policy(vocab_size=words, spread=0.02), response_length=tokens, per_device_train_batch_size=64,
        gradient_accumulation_steps=1, total_episodes=64, num_ppo_epochs=1, eval_strategy="no", **settings, **value,
    )  # fmt: skip
    with Largest() as seen:
        made.train()
    # A step of sampling has 64 rows of logits; the embeddings are 32 x 20,000.
    assert words * 64 <= seen.elements <= 4 * words * 64 < words * 64 * tokens / 4


class Saved:
    """Bytes that autograd keeps for the backward pass, now and at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        return _Kept(self, tensor)

    def __enter__(self):
        self.hooks = saved_tensors_hooks(self.pack, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


class _Kept:
    def __init__(self, owner, tensor):
        self.owner, self.tensor, self.bytes = owner, tensor, tensor.numel() * tensor.element_size()
        owner.now += self.bytes
        owner.most = max(owner.most, owner.now)

    def __del__(self):
        self.owner.now -= self.bytes


def test_two_models_activations_are_not_there_at_once(tmp_path):
    """With a value model of its own an update holds what it would without one."""
    most = []
    for more in ({"advantage": "grpo"}, {"value": "separate", "value_model": scorer()}):
        made = trainer(tmp_path, policy(), total_episodes=8, num_generations=2, eval_strategy="no", **more)
        with Saved() as saved:
            made.train()
        most.append(saved.most)
    assert most[1] <= 1.1 * most[0]


def test_one_long_prompt_does_not_make_every_batch_large():
    lengths = [10] * 31 + [200]
    for joined in (True, False):
        batches = list(micro_batches(range(32), lengths, 8, joined))
        assert sorted(row for batch in batches for row in batch) == list(range(32))
        sizes = [sum(lengths[row] for row in batch) for batch in batches]
        assert max(sizes) == 200 and len(batches) <= 4  # 310 tokens beside it
    assert [len(batch) for batch in micro_batches(range(8), [10] * 8, 4, False)] == [4, 4]
