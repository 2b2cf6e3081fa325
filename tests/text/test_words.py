"""Words of scripts with and without spaces between them."""

import pytest

from tuner.text.words import SENTENCE, WORD, bleu_tokenizer, is_unspaced, pieces

ENGLISH = "Well, that's it: no 2 dogs."
CHINESE = "今天天气很好，我用Python写代码。"


def test_a_character_of_a_script_without_spaces_is_a_word():
    assert pieces(ENGLISH) == ENGLISH.split()
    assert pieces(CHINESE) == [*"今天天气很", "好，", *"我用", "Python", *"写代", "码。"]
    assert WORD.findall(CHINESE) == [*"今天天气很好我用", "Python", *"写代码"]


@pytest.mark.parametrize(
    ("text", "unspaced", "tokenizer"),
    [
        (ENGLISH, False, "13a"),
        (CHINESE, True, "zh"),
        ("これはとても良い天気です。", True, "char"),
        ("日本語の文章では漢字仮名交じり文が標準的な表記である。", True, "char"),
        ("สวัสดีครับ", True, "char"),
        ("안녕하세요 오늘은", False, "13a"),
        ("Пора домой.", False, "13a"),
        ("The word 好 means good.", False, "13a"),
        ("", False, "13a"),
    ],
)
def test_scripts_are_known_by_most_of_their_words(text, unspaced, tokenizer):
    assert is_unspaced(text) is unspaced
    assert bleu_tokenizer([text]) == tokenizer


def test_a_mark_belongs_to_its_letter():
    assert WORD.findall("สวัสดี") == ["ส", "วั", "ส", "ดี"]
    assert WORD.findall("人々𠮷") == [*"人々𠮷"] and bleu_tokenizer(["yes"] * 50 + ["好吗"]) == "13a"


def test_chinese_sentences_end_without_a_space():
    assert SENTENCE.split("你好！今天好吗？很好。") == ["你好！", "今天好吗？", "很好。", ""]
    assert SENTENCE.split("他说：“你好。”然后走了。")[0] == "他说：“你好。”然后走了。"
    assert SENTENCE.split("太好了！！！ 再见。") == ["太好了！！！", "再见。", ""]
    assert SENTENCE.split("One. Two? 3.5 is a number.") == ["One.", "Two?", "3.5 is a number."]
