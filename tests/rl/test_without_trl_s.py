"""Where TRL has no PPO any more, the trainer is the same without it."""

import subprocess
import sys

from tests.processes import ROOT, environment

CODE = """
import sys
sys.modules["trl.experimental.ppo"] = None  # what an import of it meets from TRL 1.13 on
from tests.rl.models import trainer
from tuner.rl.trl_ppo import PPOConfig, TRLTrainer
from transformers import Trainer
assert TRLTrainer is Trainer
made = trainer(sys.argv[1])
made.train()
print(made.state.global_step, PPOConfig(output_dir="x", use_cpu=True).learning_rate)
"""


def test_it_trains_without_trl_s(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "3 3e-06"
