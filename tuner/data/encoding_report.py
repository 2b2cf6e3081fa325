"""What encoding made of a split, and what is said of one that cannot be encoded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from tuner.errors import DataError


@dataclass
class EncodingReport:
    """What encoding made of a split. Tokens are counted after encoding; `lost` ones were cut off.

    `unlabelled` examples had no supervised token, nearly always because of a prompt that is longer than `max_length`:
    they are left out, and are none of `sequences`. `identical` are preferences whose two answers are the same, which
    teach nothing and stay. The shares are of all tokens, of all supervised tokens, and of the tokens kept.
    """

    rows: int
    sequences: int
    tokens: int
    supervised: int
    lost_tokens: int
    lost_supervised: int
    unlabelled: int = 0
    identical: int = 0
    share_truncated: float = field(init=False)
    share_labels_lost: float = field(init=False)
    share_supervised: float = field(init=False)

    def __post_init__(self) -> None:
        self.share_truncated = self.lost_tokens / max(self.tokens + self.lost_tokens, 1)
        self.share_labels_lost = self.lost_supervised / max(self.supervised + self.lost_supervised, 1)
        self.share_supervised = self.supervised / max(self.tokens, 1)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def too_long(row: str, tokens: int, max_length: int) -> DataError:
    """What `--truncation_mode error` says of a row."""
    return DataError(f"{row}: {tokens} tokens, longer than --max_length {max_length} (--truncation_mode error).")


def nothing_to_learn(name: str) -> DataError:
    """What is said of rows without a supervised token."""
    return DataError(f"{name}: no token within --max_length is supervised, so there is nothing to learn.")


def too_much_lost(name: str, max_length: int, share: float, allowed: float, truncation_mode: str) -> DataError:
    """Cutting would lose more labels than `--max_labels_lost` allows."""
    cure = "" if truncation_mode == "split" else ", use --truncation_mode split"
    return DataError(
        f"{name}: cutting rows to --max_length {max_length} would lose {share:.0%} of the answers' tokens; "
        f"--max_labels_lost allows {allowed:.0%}. Raise --max_length{cure}, or allow it."
    )
