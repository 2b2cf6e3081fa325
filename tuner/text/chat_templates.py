"""The chat templates that come with this package (`templates/`).

What may be called stands in the system message, calls and results between marks: Hermes' way, which Qwen's models have
too (https://github.com/NousResearch/Hermes-Function-Calling).
"""

from pathlib import Path

_FOLDER = Path(__file__).parent / "templates"

# Of a new model. One token says who speaks, one ends an assistant's turn. The end lies inside the generation marks: it
# is supervised, and it is what the model emits to hand the turn back.
TUNER_TEMPLATE = (_FOLDER / "tuner.jinja").read_text(encoding="utf-8")
# ChatML (OpenAI's markup; SmolLM2, Qwen), with generation marks.
CHATML_TEMPLATE = (_FOLDER / "chatml.jinja").read_text(encoding="utf-8")
# An encoder of BERT's kind: a separator ends each turn, and nothing says whose it was.
BERT_TEMPLATE = (_FOLDER / "bert.jinja").read_text(encoding="utf-8")
# Those that `--chat_template_path` knows by name.
TEMPLATES = {"chatml": CHATML_TEMPLATE, "bert": BERT_TEMPLATE}
