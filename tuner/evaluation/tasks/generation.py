"""What a model writes after prompts, beside what the rows say.

The prompt of a conversation is all before its last answer, of a text its beginning, of a pair its source. Texts are
compared with what follows by sacrebleu's BLEU and chrF, ROUGE and exact match; how varied they are needs no reference.
"""

from __future__ import annotations

from typing import Any

from tuner.config.evaluation import EvaluationArguments
from tuner.data.schema import Kind
from tuner.data.tools import given
from tuner.errors import ArgumentError
from tuner.evaluation.metrics import METRICS, load_metric
from tuner.evaluation.subject import Subject
from tuner.evaluation.tasks.base import Baselines, Data, Figures, Row, Samples, Task, without_interval
from tuner.loading.generation import generate_texts, room
from tuner.text.chat import generation_prompt, require_chat_template
from tuner.text.pairs import encode_texts
from tuner.text.words import bleu_tokenizer, pieces

# Tokens of a text that are its prompt, at most half of it.
PROMPT = 32
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ROWWISE = ("chrf", *ROUGE, "exact_match", "self_repetition")
DISTINCT = ("distinct_1", "distinct_2", "distinct_3")


class Generation(Task):
    """Texts that a model writes."""

    name = "generation"
    models = ("causal", "seq2seq")
    kinds = ("messages", "text", "pair")
    default = "builtin:chitchat-small"
    figures = {
        **dict.fromkeys(("chrf", "bleu", *ROUGE, "exact_match"), "higher"),
        **dict.fromkeys(DISTINCT, ""),
        "self_repetition": "lower",
        "words": "",
    }
    by_row = {name: name for name in ("chrf", "rougeL", "exact_match", "self_repetition")}

    def __init__(self, args: EvaluationArguments, data: Data):
        super().__init__(args, data)
        self.more_figures = bool(args.metrics)

    @classmethod
    def kinds_of(cls, models: set[str]) -> tuple[Kind, ...]:
        return ("pair",) if "seq2seq" in models else cls.kinds

    @classmethod
    def default_of(cls, models: set[str]) -> str:
        return "builtin:chitchat-punctuation" if "seq2seq" in models else cls.default

    def check(self) -> None:
        for name in self.args.metrics:
            if name in ("bleu", "chrf", "rouge", "exact_match", "distinct_n", "self_repetition"):
                raise ArgumentError(f"--metrics {name} is measured anyway.")
            metric: Any = load_metric(name)
            if name in METRICS and metric.columns != METRICS["exact_match"].columns:
                raise ArgumentError(f"--metrics {name} is no metric of texts beside references.")

    def begin(self, subject: Subject) -> None:
        if self.data.kind != "text" and subject.kind == "causal":
            require_chat_template(subject.tokenizer)

    def score(self, subject: Subject, rows: list[Row]) -> list[Row]:
        samples = [self._prompt(subject, row) for row in rows]
        asked = [number for number, sample in enumerate(samples) if "left_out" not in sample]
        args = self.args
        written = generate_texts(
            subject.model, subject.tokenizer, [samples[number].pop("ids") for number in asked],
            max_new_tokens=args.max_new_tokens, batch_size=args.per_device_eval_batch_size,
            temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed + rows[0]["source_row"],
        )  # fmt: skip
        for number, text in written:
            sample = samples[asked[number]]
            sample |= {"prediction": text.strip(), "scores": {"words": len(pieces(text))}}
        return samples

    def _prompt(self, subject: Subject, row: Row) -> Row:
        """A sample with its prompt's tokens, or why it has none."""
        tokenizer, kind = subject.tokenizer, self.data.kind
        if kind == "text":
            ids = tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
            cut = min(PROMPT, len(ids) // 2)
            parts = ids[:cut], ids[cut : cut + self.args.max_new_tokens]
            prompt, reference = (tokenizer.decode(part) for part in parts)
            sample = {"prompt": prompt, "said": prompt, "reference": reference.strip()}
            begin = tokenizer.bos_token_id
            ids = [*([] if begin is None else [begin]), *ids[:cut]] if cut else []
        elif kind == "messages":
            turns = row["messages"]
            last = max((n for n, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
            if not last:
                return {"messages": turns, "left_out": "no answer after a prompt"}
            turns, reference = turns[:last], turns[last]["content"]
            ids = generation_prompt(tokenizer, turns, given(row))["input_ids"][0].tolist()
            first = 1 if turns[0]["role"] == "system" else 0
            while room(subject.model, len(ids)) < self.args.max_new_tokens:
                asked = [number for number, turn in enumerate(turns) if turn["role"] == "user" and number > first]
                if not asked:
                    break
                del turns[first : asked[0]]  # the oldest exchange
                ids = generation_prompt(tokenizer, turns, given(row))["input_ids"][0].tolist()
            sample = {"prompt": turns, "said": turns[-1]["content"], "reference": reference}
        else:
            sample = {"prompt": row["source"], "said": row["source"], "reference": row["target"]}
            if subject.kind == "seq2seq":  # as it was trained: what stands before a source is kept in its configuration
                said = f"{getattr(subject.model.config, 'prefix', None) or ''}{row['source']}"
                ids = encode_texts(tokenizer, [said])[0][0]
            else:
                turn = {"role": "user", "content": row["source"]}
                ids = generation_prompt(tokenizer, [turn])["input_ids"][0].tolist()
        if not ids or not sample["reference"].strip():
            return {**sample, "left_out": "no prompt" if not ids else "no reference"}
        if room(subject.model, len(ids)) < 1:
            return {**sample, "left_out": f"a prompt of {len(ids):,} tokens, longer than the model can read"}
        return {**sample, "ids": ids}

    def score_rows(self, samples: Samples) -> None:
        for name, keys in (("chrf", ("chrf",)), ("rouge", ROUGE), ("exact_match", ("exact_match",))):
            samples.by_row(samples.of_metric(name, _pair), *keys)
        samples.by_row(samples.of_metric("self_repetition", _alone), "self_repetition")

    def summarise(self, samples: Samples) -> Figures:
        self.score_rows(samples)
        figures: Figures = {}
        for name in ("chrf", "bleu"):
            figures |= self.bootstrap(samples, samples.of_metric(name, _pair, **_options(name, samples)), name)
        figures |= {name: self.mean(samples, name) for name in (*ROUGE, "exact_match", "self_repetition", "words")}
        known = {**samples.value_of_metric("distinct_n", _alone)}
        figures |= {
            name: without_interval(known[name], len(samples), "rows drawn twice are less varied") for name in DISTINCT
        }
        for metric in self.args.metrics:
            found = samples.value_of_metric(metric, _pair if metric in METRICS else _one_reference)
            for name, value in found.items():
                if isinstance(value, float | int):
                    figures[name if name not in figures else f"{metric}_{name}"] = without_interval(
                        value, len(samples), "not one of our metrics"
                    )
        return {name: figures[name] for name in dict.fromkeys((*self.figures, *figures))}

    def baselines(self, samples: Samples) -> Baselines:
        """The prompt's last turn again, and what the row before says: the right tone and not the answer."""
        before = [next(iter(samples))["said"]]

        def of_another(sample: Row) -> Row:
            columns = {"predictions": before[0], "references": [sample["reference"]]}
            before[0] = sample["reference"]
            return columns

        def copied(sample: Row) -> Row:
            return {"predictions": sample["said"], "references": [sample["reference"]]}

        found: Baselines = {}
        for who, columns in (("copying the prompt", copied), ("another row's", of_another)):
            for metric in ("chrf", "bleu", "rouge", "exact_match"):
                for name, value in samples.value_of_metric(metric, columns, **_options(metric, samples)).items():
                    found.setdefault(name, {})[who] = value
        for metric in ("distinct_n", "self_repetition"):
            own = samples.value_of_metric(metric, lambda sample: {"predictions": sample["reference"]})
            found |= {name: {"the references": value} for name, value in own.items()}
        return found

    def settings(self) -> Row:
        names = ("max_new_tokens", "temperature", "top_p", "top_k")
        return {name: getattr(self.args, name) for name in (names if self.args.temperature else names[:2])}

    def notes(self) -> list[str]:
        said = {
            "messages": "Each answer is compared with the conversation's own last answer: one of many good ones.",
            "text": f"Each text's first {PROMPT} tokens (at most half of it) are continued.",
        }
        return [said[self.data.kind]] if self.data.kind in said else []


def _options(metric: str, samples: Samples) -> Row:
    """BLEU splits words as the references' script asks for."""
    return {"tokenize": bleu_tokenizer(sample["reference"] for sample in samples)} if metric == "bleu" else {}


def _pair(sample: Row) -> Row:
    return {"predictions": sample["prediction"], "references": [sample["reference"]]}


def _one_reference(sample: Row) -> Row:
    return {"predictions": sample["prediction"], "references": sample["reference"]}


def _alone(sample: Row) -> Row:
    return {"predictions": sample["prediction"]}
