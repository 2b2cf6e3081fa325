"""Encoding: labels lie on their tokens, nothing is lost that fits, and what is lost is counted."""

import copy
from collections import Counter, defaultdict

import pytest
from datasets import Dataset

from tests.text import samples
from tests.text.samples import talk
from tuner.corpus.stream import TokenStream
from tuner.data.encode import encode_dataset
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError
from tuner.text.chat import encode_conversations
from tuner.text.chat_templates import CHATML_TEMPLATE, TUNER_TEMPLATE

BOTH = pytest.mark.parametrize("name", ["small", "smollm2"])
LONG = 10**6


def of(conversations):
    return Dataset.from_list([{"messages": c} for c in conversations])


def encode(conversations, tokenizer, max_length, mode="split", lost=1.0, **kwargs):
    return encode_dataset(of(conversations), "messages", tokenizer, max_length, mode, lost, **kwargs)


def supervised(dataset):
    """The supervised tokens of each source row, in order."""
    tokens = defaultdict(list)
    for row in dataset:
        tokens[row["rows"][0]] += [label for label in row["labels"] if label != -100]
    return tokens


def fitting(tokenizer, max_length, system=None):
    """Real conversations, with a system message or not, of which every exchange by itself fits `max_length`."""
    head = [] if system is None else [{"role": "system", "content": system}]
    chosen = []
    for conversation in samples.conversations()[:100]:
        answers = [i for i, turn in enumerate(conversation, 1) if turn["role"] == "assistant"]
        exchanges = [head + conversation[a:b] for a, b in zip([0, *answers], answers, strict=False)]
        longest = max(len(row["input_ids"]) for row in encode_conversations(tokenizer, exchanges, eos_required=False))
        if longest <= max_length:
            chosen.append(head + conversation)
        if len(chosen) > 20:
            return chosen
    raise AssertionError("too few to mean anything")


def check_account(dataset, report, rows):
    """The report is what one counts in the data set."""
    assert (report.rows, report.sequences) == (rows, len(dataset))
    assert report.tokens == sum(len(row["input_ids"]) for row in dataset)
    assert report.supervised == sum(len(tokens) for tokens in supervised(dataset).values())
    assert report.share_supervised == report.supervised / report.tokens
    assert report.share_truncated == report.lost_tokens / (report.tokens + report.lost_tokens)
    assert report.share_labels_lost == report.lost_supervised / (report.supervised + report.lost_supervised)
    assert report.to_dict().keys() >= {"rows", "tokens", "lost_supervised", "share_labels_lost"}


@BOTH
@pytest.mark.parametrize("mode", ["split", "keep_start"])
@pytest.mark.parametrize("max_length", [16, 100, LONG])
def test_labels_lie_on_their_tokens(name, mode, max_length):
    conversations = samples.conversations()[:15]
    dataset, report = encode(conversations, samples.tokenizer_called(name), max_length, mode)
    assert sorted(dataset.column_names) == ["input_ids", "labels", "rows"]
    for row in dataset:
        assert 0 < len(row["input_ids"]) == len(row["labels"]) <= max_length
        assert row["labels"][0] == -100
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        assert row["labels"].count(-100) < len(row["labels"])
    opens_late = {
        i
        for i, row in enumerate(encode_conversations(samples.tokenizer_called(name), conversations))
        if mode == "keep_start" and set(row["labels"][:max_length]) == {-100}
    }
    assert mode == "split" or {row["rows"][0] for row in dataset} == set(range(15)) - opens_late
    assert mode == "split" or report.unlabelled == len(opens_late)
    check_account(dataset, report, 15)


@BOTH
@pytest.mark.parametrize("system", [None, "You are kind.", "Long. " * 30], ids=["no system", "system", "long system"])
def test_split_loses_nothing_that_fits(name, system):
    """Every supervised token is there as often as in the whole conversations, and in the same order."""
    tokenizer = samples.tokenizer_called(name)
    conversations = fitting(tokenizer, 160, system)
    whole, _ = encode(conversations, tokenizer, LONG)
    split, report = encode(conversations, tokenizer, 160)
    assert len(split) > 1.5 * len(whole), "nothing was split"
    assert report.lost_supervised == report.share_labels_lost == 0
    assert Counter(t for tokens in supervised(whole).values() for t in tokens) == Counter(
        t for tokens in supervised(split).values() for t in tokens
    )
    assert supervised(split) == supervised(whole)
    begin = encode_conversations(tokenizer, [conversations[0][: bool(system)]], eos_required=False)[0]["input_ids"]
    pieces = Counter(row for (row,) in split["rows"])
    for row in split:
        assert row["input_ids"][: len(begin)] == begin, "every piece begins as a conversation does"
        if pieces[row["rows"][0]] > 1:
            assert tokenizer.eos_token_id in row["labels"][-2:], "every piece ends with an answer"


# A system message of the template's own, longer than what is set aside for such things.
OWN_SYSTEM = "{{ bos_token }}<|system|>" + "Be kind. " * 12 + TUNER_TEMPLATE.removeprefix("{{- bos_token }}")
# The assistant's mark inside the generation marks: answers in a row are one stretch of labels.
TOUCHING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|assistant|>"
    "{{ m.content + eos_token }}{% endgeneration %}{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [OWN_SYSTEM, TOUCHING], ids=["own system message", "touching answers"])
def test_split_under_other_templates(template):
    tokenizer = copy.deepcopy(samples.small())
    tokenizer.chat_template = template
    conversations = fitting(tokenizer, 160)
    if template == TOUCHING:
        extra = [{"role": "assistant", "content": "And so on."}]
        conversations = [c + extra * (i % 2) for i, c in enumerate(conversations)]
    whole, _ = encode(conversations, tokenizer, LONG)
    split, report = encode(conversations, tokenizer, 160)
    assert len(split) > 1.5 * len(whole)
    assert max(len(row["input_ids"]) for row in split) <= 160
    assert report.lost_supervised == 0
    assert supervised(split) == supervised(whole)


def until_learnt(row):
    """A row without what follows the last token that is learnt; a row that teaches nothing as it is."""
    learnt = [t for t, label in enumerate(row["labels"], 1) if label != -100]
    return {k: row[k][: learnt[-1]] if learnt else row[k] for k in ("input_ids", "labels")}


@BOTH
def test_what_fits_loses_no_more_than_its_unlearnt_end(name):
    tokenizer, conversations = samples.tokenizer_called(name), samples.conversations()[:30]
    plain = encode_conversations(tokenizer, conversations)
    longest = max(len(row["input_ids"]) for row in plain)
    for mode in ("split", "keep_start", "error"):
        dataset, report = encode(conversations, tokenizer, longest, mode, lost=0.0)
        assert [{k: row[k] for k in ("input_ids", "labels")} for row in dataset] == [until_learnt(row) for row in plain]
        assert dataset["rows"][:] == [[i] for i in range(30)]
        assert report.lost_tokens == report.lost_supervised == 0


def test_keep_start_counts_what_it_cuts():
    tokenizer, conversations = samples.small(), samples.conversations()[:30]
    whole, _ = encode(conversations, tokenizer, LONG)
    cut, report = encode(conversations, tokenizer, 50, "keep_start")
    for row in cut:
        first = {k: whole[row["rows"][0]][k][:50] for k in ("input_ids", "labels")}
        assert {k: row[k] for k in first} == until_learnt(first)
    uncut = encode_conversations(tokenizer, conversations)
    assert report.lost_tokens == sum(max(len(row["input_ids"]) - 50, 0) for row in uncut)
    assert report.lost_supervised == sum(len(row["labels"][50:]) - row["labels"][50:].count(-100) for row in whole)
    check_account(cut, report, 30)
    share = report.share_labels_lost
    assert encode(conversations, tokenizer, 50, "keep_start", lost=share)[1] == report
    expected = (
        rf"^rows: cutting rows to --max_length 50 would lose {share:.0%} of the answers' tokens; --max_labels_lost"
    )
    with pytest.raises(DataError, match=expected + ".*--truncation_mode split"):
        encode(conversations, tokenizer, 50, "keep_start", lost=share - 0.001, name="rows")


def test_an_exchange_that_does_not_fit_is_cut_and_counted():
    tokenizer = samples.small()
    conversation = talk("hi", "there", "tell me", "a story. " * 50, "more", "no")
    whole, _ = encode([conversation], tokenizer, LONG)
    split, report = encode([conversation], tokenizer, 40)
    assert [len(row["input_ids"]) <= 40 for row in split] == [True] * 3
    lost = sum(map(len, supervised(whole).values())) - sum(map(len, supervised(split).values()))
    assert report.lost_supervised == lost > 50
    assert tokenizer.decode(split[2]["input_ids"]).endswith("more<|assistant|>no<|eos|>"), "what comes after is kept"
    with pytest.raises(DataError, match=r"would lose \d+% of the answers' tokens.*Raise --max_length, or allow it\.$"):
        encode([conversation], tokenizer, 40, lost=0.05)


@pytest.mark.parametrize("processes", [None, 2])
def test_error_mode_names_the_row(processes):
    tokenizer = samples.small()
    rows = of([talk("hi", "there")] * 5 + [talk("hi", "there " * 99)]).add_column(SOURCE_ROW, [8, 7, 6, 5, 4, 333])
    tokens = len(encode_conversations(tokenizer, rows["messages"][5:])[0]["input_ids"])
    with pytest.raises(DataError, match=rf"^rows, row 333: {tokens} tokens, longer than --max_length 64 \("):
        encode_dataset(rows, "messages", tokenizer, 64, "error", num_proc=processes, name="rows")
    fine, _ = encode_dataset(rows, "messages", tokenizer, tokens, "error", name="rows")
    assert fine["rows"][:] == [[8], [7], [6], [5], [4], [333]], "rows are known by their number in the source"


def test_nothing_supervised_is_refused():
    with pytest.raises(
        DataError, match=r"^rows: no token within --max_length is supervised, so there is nothing to learn\.$"
    ):
        encode([talk("hi", "there")] * 2, samples.small(), 2, name="rows")
    tokenizer = copy.deepcopy(samples.small())
    tokenizer.chat_template = "{% if false %}{% generation %}{% endgeneration %}{% endif %}{{ messages[0].content }}"
    with pytest.raises(DataError, match="nothing to learn"):
        encode([talk("hi", "there")], tokenizer, 100)


def test_a_template_without_marks():
    """It teaches as one with marks; answers that it hides are counted, and where it hides all there is nothing."""
    tokenizer = copy.deepcopy(samples.smollm2())
    plain = CHATML_TEMPLATE.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    tokenizer.chat_template = plain
    conversations = samples.conversations()[:15]
    marked, unmarked = (encode(conversations, t, 160) for t in (samples.smollm2(), tokenizer))
    assert unmarked[0][:] == marked[0][:] and unmarked[1] == marked[1]
    tokenizer.chat_template = plain.replace("message['content'] +", "(message['content'] if loop.last else '...') +", 1)
    _, report = encode([talk("a", "b", "c", "d")] * 3, tokenizer, 160)
    assert (report.unlearnt_answers, report.sequences) == (3, 3)
    tokenizer.chat_template = plain.replace("assistant\\n' }}\n{%- endif", "assistant\\n<think>' }}\n{%- endif")
    with pytest.raises(DataError, match="shows none of the 6 answers"):
        encode([talk("a", "b", "c", "d")] * 3, tokenizer, 160)


def test_text_needs_no_template():
    tokenizer = copy.deepcopy(samples.smollm2())
    tokenizer.chat_template = None
    dataset, _ = encode_dataset(Dataset.from_dict({"text": ["some text"]}), "text", tokenizer, 100)
    assert len(dataset) == 1


def as_sequence(tokenizer, text):
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@BOTH
def test_texts_have_one_beginning_and_an_end(name):
    tokenizer, texts = samples.tokenizer_called(name), ["", "one", "<|eos|> and <|im_end|> too", *samples.texts()[:50]]
    dataset, _ = encode_dataset(Dataset.from_dict({"text": texts}), "text", tokenizer, LONG)
    for text, row in zip(texts, dataset, strict=True):
        assert row["input_ids"] == as_sequence(tokenizer, text)
        assert row["labels"] == [-100, *row["input_ids"][1:]]
        assert tokenizer.decode(row["input_ids"][1:-1]) == text


@BOTH
def test_a_text_that_a_template_wrote_has_no_second_ends(name):
    tokenizer = samples.tokenizer_called(name)
    conversations = samples.conversations()[:5]
    written = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
    whole, _ = encode_dataset(Dataset.from_dict({"text": [*written, "plain"]}), "text", tokenizer, LONG)
    for text, row in zip(written, whole, strict=False):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        answered = text.rstrip().endswith(tokenizer.eos_token)
        assert row["input_ids"] == bare + [tokenizer.eos_token_id] * (not answered)
        assert row["input_ids"][:2].count(tokenizer.bos_token_id) == 1
    assert whole[5]["input_ids"] == as_sequence(tokenizer, "plain")
    stream = TokenStream(
        Dataset.from_dict({"text": written[:1]}).to_iterable_dataset(),
        tokenizer,
        8,
        before=tokenizer.bos_token_id,
        after=tokenizer.eos_token_id,
    )
    assert next(stream._tokenized(0, 0))[2] == whole[0]["input_ids"]


@BOTH
def test_text_is_split_between_tokens(name):
    tokenizer = samples.tokenizer_called(name)
    texts = [" ".join(turn["content"] for turn in c) for c in samples.conversations()[:20]]
    whole = [as_sequence(tokenizer, text) for text in texts]
    dataset, report = encode_dataset(Dataset.from_dict({"text": texts}), "text", tokenizer, 64)
    joined = defaultdict(list)
    for row in dataset:
        assert row["labels"] == [-100, *row["input_ids"][1:]]
        joined[row["rows"][0]] += row["input_ids"]
    # Nothing precedes the only token of a last piece of one, so that nothing of it is learnt.
    learnt = [ids[:-1] if len(ids) % 64 == 1 else ids for ids in whole]
    assert [joined[i] for i in range(20)] == learnt
    assert len(dataset) == sum(-(-len(ids) // 64) for ids in learnt)
    assert report.lost_tokens == 0
    check_account(dataset, report, 20)
    _, cut = encode_dataset(Dataset.from_dict({"text": texts}), "text", tokenizer, 64, "keep_start", 1.0)
    assert cut.lost_tokens == sum(max(len(ids) - 64, 0) for ids in whole)


def test_two_processes_are_one():
    conversations = samples.conversations()[:20]
    one, report = encode(conversations, samples.small(), 128)
    two, other = encode(conversations, samples.small(), 128, num_proc=2)
    assert other == report
    assert two[:] == one[:]


def test_batches_do_not_matter():
    """More rows than a batch of the encoder: each is encoded as if it were alone."""
    conversations = [talk(f"question {i}", f"answer {i}") for i in range(1100)]
    dataset, report = encode(conversations, samples.small(), 128)
    assert report.sequences == 1100
    for start in (490, 990):
        some, _ = encode(conversations[start : start + 20], samples.small(), 128)
        assert dataset["input_ids"][start : start + 20] == some["input_ids"][:]


@BOTH
def test_a_piece_without_a_label_is_left_out_and_counted(name):
    """A prompt longer than `max_length`: a batch of it alone would have a loss of 0 / 0."""
    tokenizer = samples.tokenizer_called(name)
    conversations = [talk("word " * 100, "lost"), talk("hi", "there")] * 2
    for mode in ("split", "keep_start"):
        dataset, report = encode(conversations, tokenizer, 40, mode)
        assert dataset["rows"][:] == [[1], [3]]
        assert all(set(row["labels"]) != {-100} for row in dataset)
        assert (report.sequences, report.unlabelled, report.to_dict()["unlabelled"]) == (2, 2, 2)
        assert report.lost_supervised > 2, "what was cut is counted as before"
        check_account(dataset, report, 4)
    (row,) = encode([[{"role": "assistant", "content": "first"}]], tokenizer, 40)[0]
    assert set(row["labels"]) != {-100}, "a row with an answer alone is fine"


def test_a_piece_of_one_token_is_left_out_and_counted():
    tokenizer = samples.small()
    texts = ["", "word", samples.texts()[0] * 5]
    whole, _ = encode_dataset(Dataset.from_dict({"text": texts}), "text", tokenizer, LONG)
    length = len(whole[2]["input_ids"]) - 1
    dataset, report = encode_dataset(Dataset.from_dict({"text": texts}), "text", tokenizer, length)
    assert dataset["rows"][:] == [[0], [1], [2]] and report.unlabelled == 1
    check_account(dataset, report, 3)
