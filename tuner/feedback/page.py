"""The page: a prompt, two completions as A and B, and which of them is better.

What it needs to know comes with each request, name and pair too: a server that was killed and started again knows
nothing of the pages that are open, and needs not. Texts are escaped here, from the templates of gradio's pages too.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from tuner.errors import DataError, from_extra
from tuner.feedback.store import LONGEST_NAME, Shown, Store, messages

CHOICES = [("1 · A is better", "a"), ("2 · B is better", "b"), ("3 · Tie", "tie"), ("4 · Both bad", "both_bad")]
KEYS = (
    "<div class=keys><kbd>1</kbd>-<kbd>4</kbd> choose <kbd>Enter</kbd> submit <kbd>E</kbd> edit "
    "(<kbd>Ctrl+Enter</kbd> submits, <kbd>Esc</kbd> leaves) <kbd>S</kbd> skip <kbd>U</kbd> undo</div>"
)
DONE = "<h2>Nothing is left to compare. Thank you!</h2>"
KEPT_NAME = "() => localStorage.getItem('annotator') || ''"
KEEP_NAME = "(name) => { localStorage.setItem('annotator', name); return [name]; }"
BETTER = "(choice) => document.querySelector(`#${choice} .text`)?.textContent ?? ''"


def build_page(store: Store, guidelines: str) -> Any:
    """The page of a store, as gradio's `Blocks`; `guidelines` are Markdown."""
    gr = from_extra("gradio", "ui")
    with gr.Blocks(title="Which is better?", analytics_enabled=False) as page:
        with gr.Accordion("Guidelines", visible=bool(guidelines)) as rules:
            gr.Markdown(guidelines)
        with gr.Column(elem_id="entry") as entry:
            name = gr.Textbox(label="Your name", max_length=LONGEST_NAME, elem_id="name", autofocus=True)
            start = gr.Button("Start", variant="primary", elem_id="start")
        with gr.Column(visible=False) as work:
            progress, prompt = gr.HTML(elem_id="progress"), gr.HTML(elem_id="prompt")
            with gr.Column(visible=False) as task:
                cards = gr.HTML()
                choice = gr.Radio(CHOICES, show_label=False, container=False, elem_id="choice")
                edit = gr.Textbox(label="The better one, to edit (optional)", lines=2, max_lines=12, elem_id="edit")
            with gr.Row():
                undo = gr.Button("Undo", elem_id="undo")
                skip = gr.Button("Skip", elem_id="skip")
                submit = gr.Button("Submit", variant="primary", elem_id="submit", scale=2)
            gr.HTML(KEYS)
        said, pair = gr.HTML(elem_id="said"), gr.Number(visible=False, precision=0)
        columns = {"entry": entry, "work": work, "task": task}
        parts = {"progress": progress, "prompt": prompt, "cards": cards, "choice": choice, "edit": edit, "pair": pair}

        def handler(act: Callable[..., Shown | None]) -> Callable[..., dict[Any, Any]]:
            """Act for a person and show the pair that comes of it; what they can mend is said, and all else stays."""

            def handle(annotator: str, *given: Any) -> dict[Any, Any]:
                annotator = annotator.strip()
                try:
                    found = act(annotator, *given)
                    shown = _view(annotator, found, *store.progress(annotator))
                except DataError as error:
                    return {said: f"<div class=said>{text(str(error))}</div>"}
                visible = {"entry": False, "work": True, "task": found is not None}
                updates = {columns[key]: gr.update(visible=value) for key, value in visible.items()}
                return {said: "", **updates, **{parts[key]: value for key, value in shown.items()}}

            return handle

        def answer(annotator: str, number: int, chosen: str | None, edited: str | None = None) -> Shown | None:
            store.answer(annotator, number, chosen or "", edited)  # on the disk before the next is looked for
            return store.next(annotator)

        how: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        how["outputs"] = [said, *parts.values(), *columns.values()]
        page.load(None, None, name, js=KEPT_NAME)
        for event, api in ((start.click, "enter"), (name.submit, False)):
            entered = event(handler(store.next), name, **how, api_name=api)
            entered.then(lambda: gr.update(open=False), None, rules, queue=False, api_visibility="private")
            event(None, name, None, js=KEEP_NAME)
        choice.input(None, choice, edit, js=BETTER)
        submit.click(handler(answer), [name, pair, choice, edit], **how, api_name="answer")
        skip.click(handler(lambda who, number: answer(who, number, "skip")), [name, pair], **how, api_name="skip")
        undo.click(handler(lambda who: store.undo(who) or store.next(who)), name, **how, api_name="undo")
    return page


def text(value: str) -> str:
    """A text that is shown as it is: no markup, and nothing that a template would fill in."""
    return html.escape(value).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def _view(annotator: str, found: Shown | None, done: int, left: int) -> dict[str, Any]:
    """What the parts of the page show."""
    bar = f"<div><i style='width: {done / max(done + left, 1):.1%}'></i></div><span>{done} of {done + left}</span>"
    head = f"<div class=progress><span>{text(annotator)}</span>{bar}</div>"
    if found is None:
        return {"progress": head, "prompt": DONE, "cards": "", "choice": None, "edit": "", "pair": None}
    turns = [f"<div class=turn>{_text(turn['role'], turn['content'])}</div>" for turn in messages(found.prompt)]
    cards = [f"<div class=card id={side}>{_text(side, getattr(found, side))}</div>" for side in ("a", "b")]
    edited = found.edited or {"a": found.a, "b": found.b}.get(found.choice or "", "")
    return {
        "progress": head, "prompt": "".join(turns), "cards": f"<div class=cards>{''.join(cards)}</div>",
        "choice": found.choice, "edit": edited, "pair": found.pair,
    }  # fmt: skip


def _text(name: str, content: str) -> str:
    return f"<b>{text(name)}</b><div class=text dir=auto>{text(content)}</div>"
