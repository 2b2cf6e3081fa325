"""The page: a prompt, two completions as A and B, and which of them is better.

What it needs to know comes with each request, name and pair too: a server that was killed and started again goes on
with the pages that are open. Texts are escaped here, and so are the marks of the page's own templates.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from tuner.errors import DataError
from tuner.feedback.store import LONGEST_NAME, Shown, Store, messages

CHOICES = [("1  A is better", "a"), ("2  B is better", "b"), ("3  Tie", "tie"), ("4  Both bad", "both_bad")]
KEYS = (
    "<div class=keys><kbd>1</kbd>-<kbd>4</kbd> choose <kbd>Enter</kbd> submit <kbd>E</kbd> edit "
    "(<kbd>Ctrl+Enter</kbd> submits, <kbd>Esc</kbd> leaves) <kbd>S</kbd> skip <kbd>U</kbd> undo</div>"
)
NAME_KEPT = "() => localStorage.getItem('annotator') || ''"
KEEP_NAME = "(name) => { localStorage.setItem('annotator', name); return [name]; }"
BETTER = """(choice) => document.querySelector(`#${choice} .text`)?.textContent ?? ''"""


def build_page(store: Store, guidelines: str) -> Any:
    """The page of a store, as gradio's `Blocks`; `guidelines` are Markdown."""
    import gradio as gr

    with gr.Blocks(title="Which is better?", analytics_enabled=False) as page:
        rules = gr.Accordion("Guidelines", open=True, visible=bool(guidelines))
        with rules:
            gr.Markdown(guidelines)
        with gr.Column(elem_id="entry") as entry:
            name = gr.Textbox(label="Your name", max_length=LONGEST_NAME, elem_id="name", autofocus=True)
            start = gr.Button("Start", variant="primary", elem_id="start")
        pair = gr.Number(visible=False, precision=0)
        with gr.Column(visible=False) as work:
            progress, prompt = gr.HTML(elem_id="progress"), gr.HTML(elem_id="prompt")
            with gr.Column(visible=False) as task:
                with gr.Row(equal_height=True):
                    a, b = gr.HTML(elem_id="a"), gr.HTML(elem_id="b")
                choice = gr.Radio(CHOICES, show_label=False, container=False, elem_id="choice")
                edit = gr.Textbox(label="The better one, to edit (optional)", lines=2, max_lines=12, elem_id="edit")
            with gr.Row():
                undo = gr.Button("Undo", elem_id="undo")
                skip = gr.Button("Skip", elem_id="skip")
                submit = gr.Button("Submit", variant="primary", elem_id="submit", scale=2)
            gr.HTML(KEYS)
        said = gr.HTML(elem_id="said")
        shown = [said, pair, entry, work, task, progress, prompt, a, b, choice, edit]

        def view(annotator: str, found: Shown | None) -> list[Any]:
            done, left = store.progress(annotator)
            bar = f"<progress value={done} max={max(done + left, 1)}></progress><span>{done} of {done + left}</span>"
            head = f"<div class=progress><span>{text(annotator)}</span>{bar}</div>"
            begun = [
                None,
                gr.update(visible=False),
                gr.update(visible=True),
                gr.update(visible=found is not None),
                head,
            ]
            if found is None:
                return ["", *begun, "<h2>Nothing is left to compare. Thank you!</h2>", "", "", None, ""]
            begun[0] = found.pair
            asked = "".join(_turn(turn["role"], turn["content"]) for turn in messages(found.prompt))
            edited = found.edited or {"a": found.a, "b": found.b}.get(found.choice or "", "")
            return ["", *begun, asked, _card("A", found.a), _card("B", found.b), found.choice, edited]

        def told(work: Callable[..., Shown | None]) -> Callable[..., list[Any]]:
            """A handler: what it raises for the person to mend is said, and nothing else on the page changes."""

            def handle(annotator: str, *given: Any) -> list[Any]:
                try:
                    annotator = annotator.strip()
                    return view(annotator, work(annotator, *given))
                except DataError as error:
                    return [f"<div class=said>{text(str(error))}</div>", *[gr.skip()] * (len(shown) - 1)]

            return handle

        def answer(annotator: str, number: float, chosen: str | None, edited: str | None) -> Shown | None:
            store.answer(annotator, int(number), chosen or "", edited)  # on the disk before the next is looked for
            return store.next(annotator)

        def passed(annotator: str, number: float) -> Shown | None:
            return answer(annotator, number, "skip", None)

        def back(annotator: str) -> Shown | None:
            return store.undo(annotator) or store.next(annotator)

        how: dict[str, Any] = {"outputs": shown, "queue": False, "show_progress": "hidden"}
        page.load(None, None, name, js=NAME_KEPT)
        for event in (start.click, name.submit):
            entered = event(told(store.next), name, **how, api_name="enter" if event == start.click else False)
            entered.then(lambda: gr.update(open=False), None, rules, queue=False, api_visibility="private")
            event(None, name, None, js=KEEP_NAME)
        submit.click(told(answer), [name, pair, choice, edit], **how, api_name="answer")
        skip.click(told(passed), [name, pair], **how, api_name="skip")
        undo.click(told(back), name, **how, api_name="undo")
        choice.input(None, choice, edit, js=BETTER)
    return page


def text(value: str) -> str:
    """A text that is shown as it is: no markup, and nothing that a template of the page would fill in."""
    return html.escape(value).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def _turn(role: str, content: str) -> str:
    return f"<div class=turn><b>{text(role)}</b><div class=text dir=auto>{text(content)}</div></div>"


def _card(name: str, content: str) -> str:
    # A line break right after the tag would be taken for the page's own.
    return f"<div class=card><b>{name}</b><div class=text dir=auto>{text(content)}</div></div>"
