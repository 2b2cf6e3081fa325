"""What a model writes on prompts it is not trained on, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState

from tuner.data.schema import Kind
from tuner.data.tools import given
from tuner.data.turns import said
from tuner.errors import survive
from tuner.loading.generation import generate_texts, room
from tuner.objectives.base import Objective
from tuner.objectives.records import Rows
from tuner.text.chat import generation_prompt
from tuner.text.words import PIECE

# Prompts, and tokens of an answer.
COUNT, LONGEST = 3, 48


def prompts_of(rows: Dataset, kind: Kind, tokenizer: PreTrainedTokenizerBase, count: int = COUNT) -> list[Any]:
    """The opening of some rows: what is shown of it, what the row says next, and the tokens."""
    found: list[Any] = []
    for row in rows:
        if len(found) == count:
            break
        if kind == "text":
            ends = [found.end() for found in PIECE.finditer(row["text"])] or [0]
            cut, end = ends[:12][-1], ends[:40][-1]
            shown, reference = (" ".join(part.split()) for part in (row["text"][:cut], row["text"][cut:end]))
            ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
        else:
            columns = ("prompt", "chosen" if "chosen" in row else "completion")
            turns = row["messages"] if kind == "messages" else [turn for name in columns for turn in row[name]]
            turn = next((i for i, m in enumerate(turns) if m["role"] == "assistant"), 0)
            if not turn:  # the assistant opens: there is nothing to answer
                continue
            shown, reference = " / ".join(m["content"] for m in turns[:turn]), said(turns[turn])
            ids = generation_prompt(tokenizer, turns[:turn], given(row))["input_ids"][0].tolist()
        if ids:  # a blank text is no prompt
            found.append((shown, reference, ids))
    return found


class SampleCallback(TrainerCallback):
    """Lets a causal model answer a few validation prompts at each evaluation, or an encoder-decoder rewrite a few
    sources, into `samples.md` when the run ends. Other models write nothing.

    Attributes:
        conversations: prompt, reference and tokens of each, and answers by step.
    """

    def __init__(self, rows: Rows, objective: Objective):
        self.rows, self.objective = rows, objective
        self.conversations: list[tuple[str, str, Any, dict[int, str]]] = []

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, model: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            survive(lambda: self._sample(model, state.global_step), f"The samples of step {state.global_step}")

    def _sample(self, model: Any, step: int) -> None:
        if not model.can_generate():
            return
        objective, rewrites = self.objective, self.rows.kind == "pair"
        if model.config.is_encoder_decoder != rewrites:
            return
        if not self.conversations:
            if rewrites:
                sources, targets = self.rows.eval[:COUNT]["source"], self.rows.eval[:COUNT]["target"]
                prompts = list(zip(sources, targets, objective.sources(sources), strict=True))  # type: ignore[attr-defined]
            else:
                prompts = prompts_of(self.rows.eval, self.rows.kind, objective.tokenizer)
            self.conversations = [(*prompt, {}) for prompt in prompts if room(model, len(prompt[-1])) > 0]
        if any(step in answers for *_, answers in self.conversations):
            return
        asked = [ids for _, _, ids, _ in self.conversations]
        longest = objective.args.values()["max_target_length"] if rewrites else LONGEST
        # Greedy, so that answers before and after differ by the training alone.
        for number, text in generate_texts(model, objective.tokenizer, asked, max_new_tokens=longest):
            self.conversations[number][-1][step] = text.strip()

    def finish(self, model: Any, step: int, folder: Path) -> None:
        """Sample the saved model, unless that was done; print its answers beside the first, and write `samples.md`."""
        self._sample(model, step)
        parts, console = [], Console(highlight=False)
        for prompt, reference, _, answers in self.conversations:
            written = "".join(f"**step {step}:** {text}\n\n" for step, text in answers.items())
            parts.append(f"**prompt:** {prompt}\n\n{written}*the row says:* {reference}\n")
            console.print(f"\n[bold]prompt[/]     {escape(prompt)}")
            for step in dict.fromkeys((min(answers), list(answers)[-1])):
                name = f"step {step}" if step else "before"
                console.print(f"[bold]{name:10s}[/] {escape(answers[step])}")
        if parts:
            text = "# Answers to validation prompts\n\n" + "\n---\n\n".join(parts)
            (folder / "samples.md").write_text(text, encoding="utf-8")
