"""The chat templates that TRL carries, each with a tokenizer that knows its control tokens; and what is learnt of a few
conversations under each. As a program it writes docs/templates.md."""

from __future__ import annotations

import copy
import re
from functools import cache
from itertools import groupby
from pathlib import Path

import trl
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from tests.text import samples
from tests.text.samples import talk
from tuner.errors import DataError
from tuner.text.answers import training_tokenizer
from tuner.text.chat import encode_conversations

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training"))
PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
# How these families write control tokens, and those that are no special tokens in their vocabularies.
CONTROL = re.compile(
    r"<\|[^|<>\s]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<(?:start|end)_of_(?:turn|utterance)>|<\|?[a-z_]+\|?>|\[/?INST\]"
    r"|\[gMASK\]|</s>"
)
TEXT = re.compile(
    r"</?(think|tools?|tool_calls?|tool_response|function|parameter|arg_key|arg_value|required|image|none)>"
)
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
CLOCK = {
    "name": "clock",
    "description": "The time.",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "Where."}}},
}
TOOLS = [{"type": "function", "function": CLOCK}]
CONVERSATIONS = {
    "one turn": talk("Hi", "Hello!"),
    "two turns": talk("Hi", "Hello!", "Bye", "Ciao."),
    "system": talk("Hi", "Hello!", system="Be kind."),
    "reasoning": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Ciao.", "reasoning_content": "A farewell."},
    ],
    "tools": [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "clock", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
    ],
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """A small tokenizer with the template and its control tokens."""
    tokenizer = copy.deepcopy(samples.small())
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    found = sorted(set(CONTROL.findall(tokenizer.chat_template)))
    tokenizer.add_tokens([AddedToken(token, special=not TEXT.match(token), normalized=False) for token in found])
    return tokenizer


def tools_of(conversation: str) -> list | None:
    return TOOLS if conversation == "tools" else None


def learnt(name: str, conversation: str) -> list[str]:
    """The stretches of tokens with a label, as text; a DataError where the template refuses the conversation."""
    tokenizer = training_tokenizer(tokenizer_of(name))[0]
    (row,) = encode_conversations(tokenizer, [CONVERSATIONS[conversation]], given=[{"tools": tools_of(conversation)}])
    stretches = [list(group) for on, group in groupby(row["labels"], key=lambda label: label != -100) if on]
    return [tokenizer.decode(stretch) for stretch in stretches]


def page() -> str:
    """docs/templates.md."""
    lines = [
        "# Chat templates",
        "",
        "What is learnt of five conversations under each chat template that TRL carries. Each code span is a",
        "stretch that is learnt; all else is read. The answers are `Hello!` and `Ciao.`, each with a line of",
        "reasoning in the column before the last, and a call of `clock` before `Noon.` in the last.",
        "",
        "How the answers are found (`--dry_run` says it for a run): **marks**, the template's own",
        "`{% generation %}`; **TRL**, TRL's training version of the template, which has marks; **rendering**, the",
        "template as it writes the conversation with and without each answer. `python -m tests.text.templates`",
        "writes this page, and a test compares it.",
        "",
        "| template | found by | " + " | ".join(CONVERSATIONS) + " |",
        "| --- " * (len(CONVERSATIONS) + 2) + "|",
    ]
    for name in NAMES:
        how = training_tokenizer(tokenizer_of(name))[1]
        found = next(word for word, part in HOW.items() if part in how)
        cells = []
        for conversation in CONVERSATIONS:
            try:
                cells.append(
                    "<br>".join(
                        "`` " + repr(text)[1:-1].replace("|", "\\|") + " ``" for text in learnt(name, conversation)
                    )
                )
            except DataError as error:
                reason = str(error).rsplit("refused it: ", 1)[-1].split("this model leaves", 1)[-1]
                cells.append("refused: " + reason.split(". Take one")[0].replace(" out the", "leaves out the"))
        lines.append(f"| {name} | {found} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


HOW = {"marks": "generation marks", "TRL": "TRL's training version", "rendering": "with and without"}

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
