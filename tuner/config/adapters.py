"""The flags of adapters, under the names of TRL and PEFT."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from tuner.config.arguments import RecipeArguments, flag
from tuner.errors import ArgumentError

LAYERS = {"target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"}
LENGTH = {"num_virtual_tokens": "num_virtual_tokens"}
# PEFT's configuration of each `--peft_type`, and which of its fields is which flag.
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "lora": (
        "LoraConfig",
        {
            **LAYERS,
            **{"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"},
            **{name: name for name in ("use_rslora", "use_dora", "init_lora_weights")},
            "layers_to_transform": "lora_layers",
        },
    ),
    "ia3": ("IA3Config", LAYERS),
    "prompt_tuning": ("PromptTuningConfig", LENGTH),
    "prefix_tuning": ("PrefixTuningConfig", LENGTH),
}
# Starts that compute with the weights that stay.
FROM_WEIGHTS = ("pissa", "olora", "orthogonal")


@dataclass
class AdapterArguments(RecipeArguments):
    """An adapter in place of all weights."""

    # Ten times that of all weights (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, table 9).
    ADAPTER_RATE: ClassVar[float] = 2e-4

    use_peft: bool = flag(False, "Train an adapter; the model's own weights stay as they are.")
    peft_type: Literal["lora", "ia3", "prompt_tuning", "prefix_tuning"] = flag("lora", "Kind of adapter.")
    lora_r: int = flag(16, "Rank of lora.", least=1)
    lora_alpha: int = flag(32, "What lora's product is multiplied with, over its rank.", least=1)
    lora_dropout: float = flag(0.0, "Dropout of what goes into lora.", least=0, most=1)
    lora_target_modules: list[str] = flag(
        ["all-linear"],
        "Layers that get an adapter (lora, ia3): all-linear, how their names end, or nothing for PEFT's choice.",
    )
    lora_modules_to_save: list[str] = flag([], "Layers that are trained whole and saved with the adapter.")
    use_rslora: bool = flag(False, "Divide by the root of the rank (Kalajdzievski 2023).")
    use_dora: bool = flag(False, "Train magnitude and direction apart (Liu et al. 2024).")
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora", "orthogonal", "eva"] = flag(
        "default",
        "How lora begins: as nothing; from the weights themselves (pissa: Meng et al. 2024); or from what the layers "
        "are given on the training examples (eva: Paischer et al. 2024).",
    )
    lora_layers: Literal["all", "upper"] = flag(
        "all", "upper: lora in the upper half of the layers alone; the lower half is the same in every epoch."
    )
    frozen_states_gib: float = flag(
        8,
        "Most that lora_layers upper keeps on disk to compute the lower half once; beyond, it is in every epoch.",
        least=0,
    )
    load_in_4bit: bool = flag(
        False, "Hold the frozen weights in 4 bits, NF4 (QLoRA, Dettmers et al. 2023); pip install bitsandbytes."
    )
    num_virtual_tokens: int = flag(20, "Length of the prompt or prefix that is trained.", least=1)
    merge: bool = flag(False, "Also save the model with the adapter merged into its weights, in output_dir/merged.")

    def __post_init__(self) -> None:
        if self.use_peft and self.learning_rate is None:
            self.learning_rate = self.ADAPTER_RATE
        super().__post_init__()
        of_kind = (
            set(KINDS[self.peft_type][1].values()) | {"peft_type", "merge", "load_in_4bit"} if self.use_peft else set()
        )
        if self.use_peft and self.lora_layers == "upper":
            of_kind |= {"frozen_states_gib"}
        for item in fields(AdapterArguments):
            ours = item.name in AdapterArguments.__annotations__ and item.name not in ("use_peft", *of_kind)
            default = item.default_factory() if callable(item.default_factory) else item.default
            if ours and getattr(self, item.name) != default:
                where = f"--peft_type {self.peft_type} has no use for it" if self.use_peft else "it is for --use_peft"
                raise ArgumentError(f"--{item.name}: {where}.")
        if self.load_in_4bit and self.init_lora_weights in FROM_WEIGHTS:
            raise ArgumentError(
                f"--load_in_4bit: --init_lora_weights {self.init_lora_weights} computes with whole weights."
            )
        if self.eos_token and (self.init_lora_weights == "eva" or self.lora_layers == "upper"):
            flag = "--init_lora_weights eva" if self.init_lora_weights == "eva" else "--lora_layers upper"
            raise ArgumentError(f"--eos_token: its embedding is trained too, with which {flag} cannot be.")
        if self.merge and "tuning" in self.peft_type:
            raise ArgumentError(f"--merge: a {self.peft_type} is no change of weights that could be merged.")
        # What is saved is the adapter alone: it must find its model again, with the same names.
        if self.use_peft and self.model_name_or_path is None:
            raise ArgumentError("--use_peft: an adapter belongs to a saved model. Pass --model_name_or_path.")
        if self.use_peft and self.own_model:
            raise ArgumentError(
                "--own_model: convert the checkpoint first (tuner convert), and train an adapter of that."
            )
