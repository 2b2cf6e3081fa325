"""The README's Python, as it stands there but for a smaller model and fewer steps."""

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
