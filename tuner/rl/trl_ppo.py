"""TRL's PPO, for the names that its users know. TRL 1.13 removed it: from there on, the same names without it.

The one file that imports `trl.experimental`. What `tuner.rl.ppo.PPOTrainer` has of TRL's class are its constructor's
arguments and what that inherits of transformers' `Trainer`; `__init__` and `train` are its own.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import transformers
from transformers import TrainingArguments

from tuner.config.ppo import PPOFields

if TYPE_CHECKING:
    from transformers import Trainer as TRLTrainer
    from transformers import TrainingArguments as TRLConfig
else:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            from trl.experimental.ppo import PPOConfig as TRLConfig
            from trl.experimental.ppo import PPOTrainer as TRLTrainer
    except ImportError:
        TRLConfig, TRLTrainer = TrainingArguments, transformers.Trainer


@dataclass
class PPOConfig(PPOFields, TRLConfig):
    """TRL's `PPOConfig` with our fields. `batch_size` and its relatives are filled in by the trainer."""

    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate of the policy."})
    bf16: bool | None = None
    gradient_checkpointing: bool | None = None  # TRL's default is true; the new name says it
    local_batch_size: int | None = None
    micro_batch_size: int | None = None
    batch_size: int | None = None
    local_mini_batch_size: int | None = None
    mini_batch_size: int | None = None
    num_total_batches: int | None = None

    def __post_init__(self) -> None:
        self.bf16 = bool(self.bf16)  # TRL's default is bf16 wherever it is slow
        super().__post_init__()
        self.check_ppo()

    # TRL's is a field, and None until its trainer is made.
    @property
    def world_size(self) -> int:
        """Processes that train."""
        found: int = TrainingArguments.world_size.fget(self)
        return found

    @world_size.setter
    def world_size(self, value: Any) -> None:
        pass
