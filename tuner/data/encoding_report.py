"""What encoding made of a split, and what is said of one that cannot be encoded."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tuner.errors import DataError


@dataclass
class EncodingReport:
    """What encoding made of a split. Tokens are counted after encoding; `lost` ones were cut off.

    `unlabelled` sequences had no supervised token, nearly always because of a prompt that is longer than `max_length`:
    they are left out, and are none of `sequences`.
    """

    rows: int
    sequences: int
    tokens: int
    supervised: int
    lost_tokens: int
    lost_supervised: int
    unlabelled: int = 0
    identical: int = 0  # preference rows whose two answers are the same

    @property
    def share_truncated(self) -> float:
        """Share of all tokens that were cut off."""
        return self.lost_tokens / max(self.tokens + self.lost_tokens, 1)

    @property
    def share_labels_lost(self) -> float:
        """Share of all supervised tokens that were cut off."""
        return self.lost_supervised / max(self.supervised + self.lost_supervised, 1)

    @property
    def share_supervised(self) -> float:
        """Share of the kept tokens that carry a label."""
        return self.supervised / max(self.tokens, 1)

    def to_dict(self) -> dict[str, float]:
        shares = ("share_truncated", "share_labels_lost", "share_supervised")
        return {**asdict(self), **{name: getattr(self, name) for name in shares}}


def too_long(row: str, tokens: int, max_length: int) -> DataError:
    """What `--truncation_mode error` says of a row."""
    return DataError(f"{row}: {tokens} tokens, longer than --max_length {max_length} (--truncation_mode error).")


def nothing_to_learn(name: str) -> DataError:
    """No token has a label."""
    return DataError(f"{name}: no token within --max_length is supervised, so there is nothing to learn.")


def too_much_lost(name: str, max_length: int, share: float, allowed: float, truncation_mode: str) -> DataError:
    """Cutting would lose more labels than `--max_labels_lost` allows."""
    cure = "" if truncation_mode == "split" else ", use --truncation_mode split"
    return DataError(
        f"{name}: cutting rows to --max_length {max_length} would lose {share:.0%} of the answers' tokens; "
        f"--max_labels_lost allows {allowed:.0%}. Raise --max_length{cure}, or allow it."
    )
