"""Conversations with the model as it now is, on prompts it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from tuner.data.schema import Kind
from tuner.text.chat import generation_prompt


def sample_conversations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    kind: Kind,
    count: int = 3,
    max_new_tokens: int = 48,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Let the model answer the opening of `count` validation rows.

    Returns:
        For each: `prompt`, `answer` (the model's) and `reference` (what the row says).
    """
    set_seed(seed)
    model.eval()
    samples: list[dict[str, str]] = []
    for row in rows:
        if len(samples) == count:
            break
        if kind == "messages":
            turn = next(i for i, m in enumerate(row["messages"]) if m["role"] == "assistant")
            opening, reference = row["messages"][:turn], row["messages"][turn]["content"]
            prompt = " / ".join(m["content"] for m in opening)
            inputs = generation_prompt(tokenizer, opening)
        else:
            words = row["text"].split()
            prompt, reference = " ".join(words[:12]), " ".join(words[12:40])
            inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            if inputs["input_ids"].shape[1] == 0:  # a blank text is no prompt
                continue
        inputs = {k: v.to(model.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=True, temperature=0.8, top_p=0.9, use_cache=True
            )
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        samples.append({"prompt": prompt, "answer": answer, "reference": reference})
    return samples


class SampleCallback(TrainerCallback):
    """After each evaluation, lets a causal model go on from the beginning of validation documents: `samples.md` in the
    run's folder grows by them. Other models write nothing.

    Args:
        tokenizer: of the model.
        documents: rows of `text`.
        count: how many documents.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, documents: Dataset, count: int = 2):
        self.tokenizer, self.documents, self.count = tokenizer, documents, count

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        encodes = getattr(model.config, "is_encoder_decoder", False)
        if not state.is_world_process_zero or encodes or not model.can_generate():
            return
        was_training = model.training
        samples = sample_conversations(model, self.tokenizer, self.documents, "text", self.count)
        model.train(was_training)
        lines = [f"- {s['prompt']} **{' '.join(s['answer'].split())}**" for s in samples]
        with (Path(args.output_dir) / "samples.md").open("a", encoding="utf-8") as file:
            file.write(f"\n## Step {state.global_step}\n\n" + "\n".join(lines) + "\n")
