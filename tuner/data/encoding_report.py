"""What encoding made of a split: counts and shares."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields


@dataclass
class EncodingReport:
    """What encoding made of a split. Tokens are counted after encoding; `lost` ones were cut off.

    `unlabelled` examples had no supervised token, nearly always because of a prompt that is longer than `max_length`:
    they are left out, and are none of `sequences`. `unlearnt_answers` are those that the chat template writes otherwise
    once the conversation goes on, or that do not begin where its generation prompt ends; of those of `hidden_reasoning`
    it leaves out what the assistant thought. `identical` are preferences whose two answers are the same, which teach
    nothing and stay. The shares are of all tokens, of all supervised tokens, and of the tokens kept.
    """

    rows: int
    sequences: int
    tokens: int
    supervised: int
    lost_tokens: int
    lost_supervised: int
    unlabelled: int = 0
    unlearnt_answers: int = 0
    hidden_reasoning: int = 0
    identical: int = 0
    share_truncated: float = field(init=False)
    share_labels_lost: float = field(init=False)
    share_supervised: float = field(init=False)

    def __post_init__(self) -> None:
        self.share_truncated = self.lost_tokens / max(self.tokens + self.lost_tokens, 1)
        self.share_labels_lost = self.lost_supervised / max(self.supervised + self.lost_supervised, 1)
        self.share_supervised = self.supervised / max(self.tokens, 1)

    def __add__(self, other: EncodingReport) -> EncodingReport:
        counted = [f.name for f in fields(self) if f.init]
        return EncodingReport(**{name: getattr(self, name) + getattr(other, name) for name in counted})

    def to_dict(self) -> dict[str, float]:
        return asdict(self)
