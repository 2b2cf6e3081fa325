"""A checkpoint of ours as one of transformers' families, and one of those as ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import tuner.model
from tuner.errors import ArgumentError, ModelError, first_line, nearest
from tuner.families import FAMILIES
from tuner.loading.checkpoints import difference, load_pretrained, resolve
from tuner.model import TunerPreTrainedModel
from tuner.model.convert import from_transformers, to_transformers
from tuner.text.gguf import new_folder

OURS = "tuner"
# What makes a folder one of sentence-transformers, beside the folders of its modules (pooling, normalisation, ...).
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")


def convert(source: str, family: str, output: Path) -> str:
    """Write `source` into the new folder `output` as a model of `family`, with tokenizer and generation settings.

    What was written is loaded again and must give the logits of the source.

    Returns:
        What was written and where, in words.

    Raises:
        ArgumentError: a family that is none, or a folder that holds something.
        ModelError: a source that cannot be read, or that has no counterpart in the family.
    """
    families = {OURS: None, **FAMILIES}
    if family not in families:
        raise ArgumentError(f"--to {family}: there are {', '.join(families)}.{nearest(family, families)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ArgumentError(f"{output} holds something already: choose a new folder.")
    model = _load(source)
    try:
        ours = model if isinstance(model, TunerPreTrainedModel) else from_transformers(model)
        converted = ours if family == OURS else to_transformers(ours, family)
    except ValueError as error:
        raise ModelError(f"{source} cannot become {family}: {error}") from error
    try:
        with new_folder(output) as staging:
            converted.save_pretrained(staging)
            tokenizer = _save_tokenizer(source, staging)
            _copy_sentence_modules(source, Path(staging))
            found = difference(model.float(), load_pretrained(type(converted), staging, torch.float32))
            if found > 1e-4:
                raise ModelError(f"{source} and what was written differ by {found:.1e} in their outputs; not kept.")
    except OSError as error:
        raise ModelError(f"{output} cannot be written: {error.strerror}.") from error
    return (
        f"{type(model).__name__} -> {type(converted).__name__}, {sum(p.numel() for p in converted.parameters()):,} "
        f"parameters{'' if tokenizer else ', no tokenizer'}; outputs differ by {found:.1e} of the greatest.\n"
        f"Written to {output}"
    )


def _load(source: str) -> PreTrainedModel:
    """The source in the class that its configuration names."""
    path, how = resolve(source)
    if how:
        return load_pretrained(AutoModelForCausalLM, source, torch.float32)
    try:
        names = AutoConfig.from_pretrained(path).architectures or []
    except (OSError, ValueError) as error:
        raise ModelError(f"{source} could not be loaded: {first_line(error)}") from error
    found = [getattr(tuner.model, name, None) or getattr(transformers, name, None) for name in names]
    if not found or found[0] is None:
        raise ModelError(f"{source}: its config.json names no class that is known here ({', '.join(names) or 'none'}).")
    return load_pretrained(found[0], source, "auto")


def _save_tokenizer(source: str, folder: str) -> bool:
    path, how = resolve(source)
    try:
        AutoTokenizer.from_pretrained(path, **how).save_pretrained(folder)
    except (OSError, ValueError, TypeError):  # a model alone is a model too
        return False
    return True


def _copy_sentence_modules(source: str, folder: Path) -> None:
    """Pooling, normalisation and the length limit of a model that sentence-transformers loads."""
    path, _ = resolve(source)
    if not Path(path).is_dir():
        path = snapshot_download(path, allow_patterns=[*SENTENCE_FILES, "[0-9]*_*/*"])
    for file in SENTENCE_FILES:
        if (Path(path) / file).is_file():
            shutil.copy(Path(path) / file, folder)
    modules = folder / SENTENCE_FILES[0]
    for module in json.loads(modules.read_text(encoding="utf-8")) if modules.exists() else ():
        if module["path"] and (Path(path) / module["path"]).is_dir():
            shutil.copytree(Path(path) / module["path"], folder / module["path"])
