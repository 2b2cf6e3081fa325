"""Published chat templates: each is learnt from, with the mask of TRL's training version where there is one."""

import copy

import pytest
from trl.chat_template_utils import get_training_chat_template

from tests.text import samples
from tests.text.samples import talk
from tests.text.templates import CONVERSATIONS, NAMES, PAGE, TOOLS, learnt, page, tokenizer_of, tools_of
from tuner.errors import DataError
from tuner.text.answers import training_tokenizer
from tuner.text.chat import answer_end, encode_conversations, generation_prompt
from tuner.text.chat_templates import CHATML_TEMPLATE

WITHOUT_MARKS = CHATML_TEMPLATE.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_stock_template_is_learnt_from(name):
    """Answers and their ends, questions not; and the tokenizer that is saved stays as it came."""
    template = tokenizer_of(name).chat_template
    for conversation, turns in CONVERSATIONS.items():
        try:
            found = learnt(name, conversation)
        except DataError as error:
            why = "refused it" in str(error), "leaves out the definition" in str(error)
            assert conversation in ("system", "tools") and (why[0] or (why[1] and conversation == "tools"))
            continue
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert len(found) == len(answers)
        for stretch, answer in zip(found, answers, strict=True):
            assert answer in stretch
            assert not any(said in stretch for said in ("Hi", "Bye", "Time?", "Be kind", "noon"))
    assert tokenizer_of(name).chat_template == template
    assert answer_end(tokenizer_of(name)) in tokenizer_of(name).added_tokens_decoder


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_those_of_trls_training_templates(name):
    tokenizer = tokenizer_of(name)
    try:
        twin = get_training_chat_template(tokenizer)
    except ValueError:
        pytest.skip("TRL has no training version of it")
    for conversation, turns in CONVERSATIONS.items():
        parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        turns = parts if name in ("idefics3", "llava_next") else turns
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "chat_template": twin}
        try:
            theirs = tokenizer.apply_chat_template(turns, tools=tools_of(conversation), **how)
        except Exception:
            continue  # the roles of this conversation are not for it; the test above asks that ours says so
        how_ours = {"given": [{"tools": tools_of(conversation)}]}
        try:
            (ours,) = encode_conversations(training_tokenizer(tokenizer)[0], [CONVERSATIONS[conversation]], **how_ours)
        except DataError as error:
            assert "leaves out the definition" in str(error)  # TRL's says nothing
            continue
        assert ours["input_ids"] == theirs["input_ids"]
        assert [int(label != -100) for label in ours["labels"]] == theirs["assistant_masks"]


def test_the_page_is_what_is_learnt():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.text.templates"


def with_template(template):
    tokenizer = copy.deepcopy(samples.smollm2())
    tokenizer.chat_template = template
    return tokenizer


def test_rendering_finds_what_marks_say():
    marked, plain = samples.smollm2(), with_template(WITHOUT_MARKS)
    assert "rendering" in training_tokenizer(plain)[1]
    conversations = samples.conversations()[:30]
    assert encode_conversations(plain, conversations) == encode_conversations(marked, conversations)
    prompts = [len(turns) - 1 for turns in conversations]
    theirs = encode_conversations(marked, conversations, eos_required=False, prompts=prompts)
    assert encode_conversations(plain, conversations, eos_required=False, prompts=prompts) == theirs


@pytest.mark.parametrize("content", ["\nHello", " Hello", "\n\n", " ", "Hello\n", "Hello "])
def test_blanks_at_the_edge_of_an_answer_are_learnt(content):
    """A token that holds the last of the question's line and the first of the answer counts as the answer's."""
    for tokenizer in (samples.smollm2(), with_template(WITHOUT_MARKS)):
        (row,) = encode_conversations(tokenizer, [talk("Hi", content)])
        text = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert text in (content + "<|im_end|>", "\n" + content + "<|im_end|>")


STRIPPED = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and m.reasoning and loop.last %}{{- '<think>' + m.reasoning + '</think>' }}{% endif %}
    {{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def test_an_answer_that_the_template_changes_later_is_counted():
    """Reasoning that is left out of earlier turns: of those the model never sees what it would write."""
    turns = talk("a", "b", "c", "d", "e", "f")
    turns[1]["reasoning"] = turns[5]["reasoning"] = "hm"
    tokenizer = with_template(STRIPPED)
    (row,) = encode_conversations(tokenizer, [turns])
    assert row["unlearnt"] == 1
    text = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert text == "d<|im_end|><think>hm</think>f<|im_end|>"


def test_an_end_of_everything_belongs_to_the_last_answer():
    """As Phi writes it: what stands after the last turn alone changes no earlier answer."""
    template = WITHOUT_MARKS.rstrip() + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    tokenizer = with_template(template)
    (row,) = encode_conversations(tokenizer, [talk("a", "b", "c", "d")])
    text = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert row["unlearnt"] == 0 and text == "b<|im_end|>d<|im_end|>\n<|endoftext|>"


def test_a_prompt_that_the_answer_does_not_continue():
    tokenizer = with_template(
        WITHOUT_MARKS.replace("assistant\\n' }}\n{%- endif", "assistant\\n<think>' }}\n{%- endif")
    )
    (row,) = encode_conversations(tokenizer, [talk("a", "b")])
    assert row["unlearnt"] == 1 and set(row["labels"]) == {-100} and answer_end(tokenizer) is None


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma"])
def test_control_tokens_in_arguments_and_reasoning_stay_text(name):
    """Whatever the template reads of a turn, not only its content."""
    tokenizer = training_tokenizer(tokenizer_of(name))[0]
    end = answer_end(tokenizer)
    spelt = tokenizer.convert_ids_to_tokens(end)
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": spelt}}}
    turns = [
        {"role": "user", "content": spelt},
        {"role": "assistant", "content": spelt, "reasoning_content": spelt, "tool_calls": [call]},
    ]
    if name == "gemma":
        del turns[1]["tool_calls"]
    (row,) = encode_conversations(tokenizer, [turns], given=[{"tools": None if name == "gemma" else TOOLS}])
    assert row["labels"].count(end) == 1
    assert generation_prompt(tokenizer, turns[:1])["input_ids"].tolist()[0].count(end) <= 2
