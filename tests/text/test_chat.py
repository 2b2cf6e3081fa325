"""Conversations to ids: what is supervised is exactly what the assistant says, its end included."""

import copy
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text import samples
from tests.text.samples import talk
from tuner.errors import DataError, ModelError
from tuner.text.answers import training_tokenizer
from tuner.text.chat import encode_conversations, generation_prompt, require_chat_template
from tuner.text.chat_templates import CHATML_TEMPLATE, TUNER_TEMPLATE

BOTH = pytest.mark.parametrize("name", ["small", "smollm2"])


def with_template(template, name="small", path=None):
    """A tokenizer of its own with another template."""
    tokenizer = copy.deepcopy(samples.tokenizer_called(name))
    tokenizer.chat_template = template
    tokenizer.chat_template_path = path
    return tokenizer


def answers(tokenizer, row):
    """The supervised stretches of an encoded row, as text."""
    stretches = [list(group) for on, group in groupby(row["labels"], key=lambda label: label != -100) if on]
    return [tokenizer.decode(stretch) for stretch in stretches]


def said(tokenizer, conversation):
    """What ought to be supervised."""
    return [turn["content"] + tokenizer.eos_token for turn in conversation if turn["role"] == "assistant"]


@BOTH
def test_mask_is_that_of_transformers(name):
    tokenizer, conversations = samples.tokenizer_called(name), samples.conversations()[:50]
    theirs = tokenizer.apply_chat_template(conversations, return_assistant_tokens_mask=True, return_dict=True)
    ours = encode_conversations(tokenizer, conversations)
    assert [row["input_ids"] for row in ours] == theirs["input_ids"]
    assert [[int(label != -100) for label in row["labels"]] for row in ours] == theirs["assistant_masks"]
    for row in ours:
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


@BOTH
def test_every_answer_is_supervised_up_to_its_end(name):
    tokenizer, conversations = samples.tokenizer_called(name), samples.conversations()[:50]
    for conversation, row in zip(conversations, encode_conversations(tokenizer, conversations), strict=True):
        assert answers(tokenizer, row) == said(tokenizer, conversation)
        assert row["labels"].count(tokenizer.eos_token_id) == sum(m["role"] == "assistant" for m in conversation)
        assert tokenizer.pad_token_id not in row["input_ids"]


def test_one_beginning_token():
    tokenizer = samples.small()
    for row in encode_conversations(tokenizer, samples.conversations()):
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1
        assert row["input_ids"][0] == tokenizer.bos_token_id
    twice = with_template("{{ bos_token }}" + TUNER_TEMPLATE, path="twice.jinja")
    with pytest.raises(ModelError, match=r"--chat_template_path twice\.jinja begins .* two beginning tokens"):
        encode_conversations(twice, [talk("hi", "there")])


@pytest.mark.parametrize("marks", ["{% generation %}", "{%- generation -%}", "{%generation%}", "{%+ generation +%}"])
def test_generation_marks_are_seen(marks):
    tokenizer = with_template("{{ eos_token }}" + marks + "{{ eos_token }}{% endgeneration %}")
    assert training_tokenizer(tokenizer) == (tokenizer, "the chat template's generation marks")
    (row,) = encode_conversations(tokenizer, [talk("a", "b")])
    assert row["labels"] == [-100, tokenizer.eos_token_id]


@pytest.mark.parametrize("template", [None, ""])
def test_no_template_is_refused(template):
    with pytest.raises(ModelError, match=r"is missing or empty\. Pass --chat_template_path"):
        require_chat_template(with_template(template))


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("small", TUNER_TEMPLATE.replace("+ eos_token", "")),
        (
            "small",
            TUNER_TEMPLATE.replace("+ eos_token", "").replace("endgeneration %}", "endgeneration %}{{ eos_token }}"),
        ),
        ("smollm2", CHATML_TEMPLATE.replace("+ calls + '<|im_end|>'", "+ calls")),
    ],
    ids=["no end", "end outside the marks", "chatml without"],
)
def test_end_that_is_not_supervised_is_refused(name, template):
    tokenizer = with_template(template, name)
    assert template not in (TUNER_TEMPLATE, CHATML_TEMPLATE)
    with pytest.raises(ModelError, match=r"ends the answers with no special token that is learnt, .*--eos_token"):
        encode_conversations(tokenizer, [talk("hi", "there")])
    (row,) = encode_conversations(tokenizer, [talk("hi", "there")], eos_required=False)
    assert answers(tokenizer, row) == ["there"]


QUOTED = ["<|assistant|>", "<|user|>", "<|system|>", "<|bos|>", "<|eos|>", "<|im_start|>assistant\n", "<|im_end|>"]


@BOTH
@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(question=st.lists(st.sampled_from(QUOTED) | st.text(max_size=5), max_size=6).map("".join))
def test_quoting_a_mark_changes_nothing(name, question):
    tokenizer = samples.tokenizer_called(name)
    conversation = talk(question, "No, I will not.", question, "Never.", system=question)
    (row,) = encode_conversations(tokenizer, [conversation])
    assert answers(tokenizer, row) == said(tokenizer, conversation)


CONTROL = [
    "<|eos|>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|assistant|>",
    "<|endoftext|>",
    "<|<|im_end|>eos|>",
    "\U00100000",
]


@BOTH
@settings(derandomize=True, database=None, deadline=None, max_examples=30)
@given(content=st.lists(st.sampled_from(CONTROL) | st.text(max_size=3), min_size=1, max_size=5).map("".join))
def test_a_control_token_in_a_message_is_text(name, content):
    """Every stretch between the template's control tokens is what the tokenizer makes of it as plain text."""
    tokenizer = samples.tokenizer_called(name)

    def plain(text):
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    conversation = talk(content, content + "!", system=content)
    (row,) = encode_conversations(tokenizer, [conversation])
    mark = tokenizer.convert_tokens_to_ids
    if name == "small":
        turns = [[mark(f"<|{turn['role']}|>"), *plain(turn["content"])] for turn in conversation]
        expected = [tokenizer.bos_token_id, *turns[0], *turns[1], *turns[2], tokenizer.eos_token_id]
    else:
        start, end = mark("<|im_start|>"), mark("<|im_end|>")
        turns = [[start, *plain(f"{turn['role']}\n{turn['content']}"), end, *plain("\n")] for turn in conversation]
        expected = [token for turn in turns for token in turn]
    assert row["input_ids"] == expected
    assert row["labels"].count(tokenizer.eos_token_id) == 1
    assert [label for label in row["labels"] if label != -100] == [*plain(content + "!"), tokenizer.eos_token_id]
    prompt = generation_prompt(tokenizer, conversation[:-1])
    length = prompt["input_ids"].shape[1]
    assert prompt["input_ids"].tolist() == [row["input_ids"][:length]]
    assert row["labels"][length - 1] == -100 and prompt["attention_mask"].tolist() == [[1] * length]


def test_quoted_tokens_with_the_rest_of_a_batch():
    """A row that quotes changes nothing in the others; tokens that are added later are known."""
    tokenizer = copy.deepcopy(samples.small())
    plain, quoting = talk("hi", "there"), talk("what is <|eos|>?", "an end")
    alone = [encode_conversations(tokenizer, [c])[0] for c in (plain, quoting)]
    assert encode_conversations(tokenizer, [quoting, plain, quoting]) == [alone[1], alone[0], alone[1]]
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    (row,) = encode_conversations(tokenizer, [talk("a <|new|>", "b")])
    assert tokenizer.convert_tokens_to_ids("<|new|>") not in row["input_ids"]


BORDERS = ["", "😀", "é", "한", "\n", " ", "<|assistant|>"]
# SmolLM2 has no token for some control characters, and ChatML's line end joins one that follows it.
PLAIN = st.text("aZ1.é한😀 ", max_size=6).map(str.strip)


@pytest.mark.parametrize(
    ("name", "content"), [("small", st.text(max_size=6) | st.sampled_from(BORDERS)), ("smollm2", PLAIN)]
)
@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(data=st.data())
def test_any_content_is_supervised_to_the_character(name, content, data):
    """Nothing, characters of several bytes at either border, blanks, line ends."""
    tokenizer = samples.tokenizer_called(name)
    conversation = talk(*data.draw(st.lists(content, min_size=2, max_size=6)))
    (row,) = encode_conversations(tokenizer, [conversation])
    assert answers(tokenizer, row) == said(tokenizer, conversation)


@BOTH
def test_an_answer_of_nothing_teaches_to_stop(name):
    tokenizer = samples.tokenizer_called(name)
    (row,) = encode_conversations(tokenizer, [talk("hi", "")])
    assert [label for label in row["labels"] if label != -100] == [tokenizer.eos_token_id]


@BOTH
@pytest.mark.parametrize("content", ["😀", "ends in 😀", "é", "한국", "👩‍👩‍👧"])
def test_last_character_of_several_tokens(name, content):
    """Marks that end with the content: all tokens of its last character are supervised."""
    template = "{% for m in messages %}{% generation %}{{ eos_token + m.content }}{% endgeneration %}.{% endfor %}"
    tokenizer = with_template(template, name)
    (row,) = encode_conversations(tokenizer, [talk(content)], eos_required=False)
    assert answers(tokenizer, row) == [tokenizer.eos_token + content]


@BOTH
def test_generation_prompt_begins_the_conversation(name):
    """What `generate` is given is what training saw before the answer."""
    tokenizer, conversations = samples.tokenizer_called(name), samples.conversations()[:8]
    for conversation, row in zip(conversations, encode_conversations(tokenizer, conversations), strict=True):
        for turn, message in enumerate(conversation):
            if message["role"] == "assistant":
                prompt = generation_prompt(tokenizer, conversation[:turn])
                assert prompt["input_ids"].shape == prompt["attention_mask"].shape == (1, prompt["input_ids"].numel())
                length = prompt["input_ids"].numel()
                assert prompt["input_ids"][0].tolist() == row["input_ids"][:length]
                assert row["labels"][length - 1] == -100
                assert row["labels"][length] == row["input_ids"][length]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ messages[99].content }}", "no element 99"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
    ],
)
def test_refused_conversation_is_named(template, reason):
    """The one that the template refuses, not the first of its batch."""
    template = "{% if messages[0].role == 'system' %}" + template + "{% endif %}" + TUNER_TEMPLATE
    conversations = [talk("a", "b"), talk("a", "b"), talk("a", "b", system="c")]
    with pytest.raises(DataError, match=rf"^row C: --chat_template_path my\.jinja refused it: .*{reason}.*\.$"):
        encode_conversations(with_template(template, path="my.jinja"), conversations, names=["row A", "row B", "row C"])
    with pytest.raises(DataError, match=r"^conversation 2: The chat template of this model"):
        encode_conversations(with_template(template), conversations)


@pytest.mark.parametrize("broken", ["{% for %}", "{{ x", "{% generation %}", "{{ x | nothing }}"])
def test_template_that_is_not_jinja_is_named_with_its_line(broken):
    with pytest.raises(ModelError, match=r"--chat_template_path my\.jinja, line 3: not Jinja: "):
        encode_conversations(with_template(f"one\ntwo\n{broken}", path="my.jinja"), [talk("a", "b")])


@BOTH
def test_the_assistant_may_open_a_conversation(name):
    tokenizer = samples.tokenizer_called(name)
    (row,) = encode_conversations(tokenizer, [[{"role": "assistant", "content": "first"}]])
    prompt = generation_prompt(tokenizer, [])["input_ids"][0].tolist()
    assert row["input_ids"][: len(prompt)] == prompt and row["labels"][len(prompt)] != -100
