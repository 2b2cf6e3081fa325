"""Tables of transformers' families: how their configurations and parameters are called here."""

from .decoders import DECODERS
from .encoders import ENCODERS
from .family import Family
from .pairs import PAIRS

FAMILIES: dict[str, Family] = {family.name: family for family in (*DECODERS, *ENCODERS, *PAIRS)}

__all__ = ["FAMILIES", "Family"]
