"""Fonts for the names in figures: matplotlib's own has no Chinese, Japanese or Korean characters."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# CJK and Hangul; families that have them, as systems install them.
WIDE = re.compile("[\u1100-\u11ff\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
KNOWN = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Noto Sans CJK JP", "Noto Sans CJK KR", "Droid Sans Fallback", "PingFang SC",
    "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei", "Malgun Gothic", "Yu Gothic", "Arial Unicode MS",
)  # fmt: skip
# The one that `tuner[zh]` installs, in its package.
PACKAGED = ("zhplot", "fonts/NotoSansSC-Regular.ttf")


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Figures that are made and saved inside can write these texts; where no font here can, that is said."""
    import matplotlib

    if not any(map(WIDE.search, texts)):
        yield
        return
    family = _family()
    if family is None:
        print("No font here has the characters of these names: figures show boxes. pip install 'tuner[zh]' brings one.")
    families = [*matplotlib.rcParams["font.family"], *([family] if family else [])]
    with matplotlib.rc_context({"font.family": families}):
        yield


def _family() -> str | None:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    known = next((name for name in KNOWN if name in installed), None)
    spec = None if known else importlib.util.find_spec(PACKAGED[0])
    if spec is None or spec.origin is None:
        return known
    path = Path(spec.origin).parent / PACKAGED[1]
    if not path.is_file():
        return None
    font_manager.fontManager.addfont(path)
    return str(font_manager.FontProperties(fname=path).get_name())
