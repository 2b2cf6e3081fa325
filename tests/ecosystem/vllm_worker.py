"""Continues token ids greedily in vLLM, which this project's own environment has not."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main(folder: str, prompt: str, answer: str) -> None:
    flags = {"model_impl": "transformers", "trust_remote_code": True, "dtype": "float32", "enforce_eager": True}
    engine = LLM(folder, max_model_len=128, max_num_seqs=1, **flags)
    sampling = SamplingParams(temperature=0, max_tokens=16, min_tokens=16)
    [output] = engine.generate([{"prompt_token_ids": json.loads(prompt)}], sampling)
    Path(answer).write_text(json.dumps(list(output.outputs[0].token_ids)))


if __name__ == "__main__":
    main(*sys.argv[1:])
