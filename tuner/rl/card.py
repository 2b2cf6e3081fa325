"""The card of a policy: what it began as, and what it came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from tuner.data.mixture import data_sources


def write_card(loop: Any, repo_id: str) -> None:
    """Write `README.md` into the run's folder: metadata, and the comparison of `metrics.json` where that is there."""
    args, name = loop.run.args, repo_id.split("/")[-1]
    data = [name for name in (public(source.name) for source in data_sources(args)) if name]
    named = {"base_model": public(args.model_name_or_path), "datasets": data or None}
    tags = {"tags": ["tuner", "ppo"], "pipeline_tag": "text-generation"}
    library = "peft" if args.use_peft else "transformers"
    given: dict[str, Any] = tags | {key: value for key, value in named.items() if value is not None}
    card = ModelCardData(library_name=library, **given)
    file, rows = loop.folder / "metrics.json", ""
    if file.exists():
        for metric, values in json.loads(file.read_text(encoding="utf-8"))["comparison"].items():
            cells = (f"{values[who]:.4g}" if who in values else "" for who in ("untrained", "trained"))
            rows += f"| {metric} | {' | '.join(cells)} |\n"
    table = f"| on the validation prompts | before | after |\n|---|---|---|\n{rows}\n" if rows else ""
    how = f"{loop.state.global_step:,} updates of {loop.args.batch_size:,} completions, advantages by {args.advantage}"
    text = f"# {name}\n\nTrained by proximal policy optimization: {how}.\n\n{table}"
    ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(loop.folder / "README.md")


def public(name: str | None) -> str | None:
    """A name on the Hub. Where something lies here is nobody's business, and a built-in is not there."""
    hidden = name is None or name.startswith("builtin:") or Path(name).expanduser().exists()
    return None if hidden else name
