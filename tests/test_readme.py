"""The README's Python, as it stands there but for a smaller model and fewer steps; and its translation, which has the
same headings, commands, names and links."""

import re

import pytest

from tests.model.helpers import tiny_decoder
from tests.processes import run_python
from tests.recipes import ROOT
from tests.text import samples

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_fine_tuning_in_python(tmp_path):
    model, said = '"builtin:smollm2-135m-instruct"', 'output_dir="runs/mine"'
    assert model in BLOCKS[0] and said in BLOCKS[0]
    tokenizer = samples.small()
    tiny_decoder(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path / "nano")
    tokenizer.save_pretrained(tmp_path / "nano")
    code = BLOCKS[0].replace(model, repr(str(tmp_path / "nano")))
    code = code.replace(said, f"output_dir={str(tmp_path / 'mine')!r}, max_steps=2")
    (tmp_path / "block.py").write_text(code)
    done = run_python(tmp_path / "block.py", timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "mine" / "model.safetensors").is_file()


def test_the_model_in_python():
    exec(compile(BLOCKS[1], "README.md", "exec"), {"__name__": "__main__"})


def of_language(name):
    """What both languages have in common: levels of headings, code without comments, rows of tables, names in code,
    links."""
    page = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```\w+\n.*?```", page, re.DOTALL)
    text = re.sub(r"```\w+\n.*?```", "", page, flags=re.DOTALL)
    return {
        "headings": [len(mark) for mark in re.findall(r"^(#+) ", text, re.MULTILINE)],
        "code": [re.sub(r"\s+# .*", "", block) for block in blocks],
        "tables": [line.count("|") for line in text.splitlines() if line.startswith("|")],
        "names": sorted(re.findall(r"`[^`]+`", text)),
        "links": sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"}),
    }


def test_the_chinese_page_is_in_step():
    english, chinese = of_language("README.md"), of_language("README.zh-CN.md")
    for what, found in english.items():
        assert chinese[what] == found, what
