"""Texts as vectors: a backbone's pooled hidden states, in a file, or as a folder that sentence-transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from tuner.data.schema import canonicalize
from tuner.data.sources import load_rows
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.hardware import device_type, use_all_cores
from tuner.loading.checkpoints import load_pretrained, require_positions, resolve
from tuner.loading.features import kept_features
from tuner.ops.block_attention import BLOCK_ATTENTION, can_use_block_attention
from tuner.text.gguf import new_folder
from tuner.text.load_tokenizer import load_pretrained_tokenizer


class Embedder:
    """A model as a function of texts.

    Args:
        name: a folder, a Hub id, a GGUF file or a built-in.
        pooling: `mean`, `cls` or `last`.
        max_length: tokens of a text that are read.
        normalize: whether vectors have length 1.

    Raises:
        ModelError: nothing to load, or an encoder-decoder.
    """

    def __init__(self, name: str, pooling: str, max_length: int, normalize: bool = False):
        use_all_cores()
        path, how = resolve(name)
        self.tokenizer = load_pretrained_tokenizer(path, needs_end=False, **how)
        self.model = load_pretrained(AutoModel, name, torch.float32, new=[]).eval()
        if self.model.config.is_encoder_decoder:
            raise ModelError(f"{name} is an encoder-decoder: there is no one vector of a text.")
        require_positions(self.model, max_length)
        self.model.to(device_type())
        if device_type() == "cpu" and can_use_block_attention(self.model):
            self.model.set_attn_implementation(BLOCK_ATTENTION)
        self.pooling, self.max_length, self.normalize = pooling, max_length, normalize

    def embed(self, texts: list[str], name: str = "the texts") -> tuple[np.ndarray, int]:
        """Vectors `(texts, hidden_size)` in float32, and how many texts were cut; a DataError for an empty text."""
        encoded = self.tokenizer(texts)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        if 0 in lengths:
            raise DataError(f"{name}, row {lengths.index(0)}: column 'text' is empty.")
        if max(lengths) > self.max_length:
            encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        types, pad = encoded.get("token_type_ids"), self.tokenizer.pad_token_id
        found = np.concatenate(kept_features(self.model, encoded["input_ids"], types, pad, self.pooling))
        if self.normalize:
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found, sum(length > self.max_length for length in lengths)

    def write(self, data: str, split: str, output: Path) -> tuple[int, int]:
        """Write the vectors of a source's texts, in its order; how many they are, and how many texts were cut."""
        rows = load_rows(data, split)
        _, texts, _ = canonicalize(rows, data, ("text",))
        found, cut = self.embed(list(texts["text"]), data)
        if output.suffix == ".npy":
            np.save(output, found)
        elif "embedding" in rows.column_names:
            raise ArgumentError(f"{data} has a column 'embedding' already.")
        else:
            rows.add_column("embedding", list(found)).to_parquet(output)
        return len(found), cut


def save_sentence_model(embedder: Embedder, folder: Path) -> None:
    """Write the model as sentence-transformers lays it out; an ArgumentError for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"{folder} holds something already: choose a new folder.")
    modules, mode = ["Transformer", "Pooling"], {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    with new_folder(folder) as staging:
        embedder.model.save_pretrained(staging)
        embedder.tokenizer.save_pretrained(staging)
        listed = [
            {"idx": number, "name": str(number), "path": f"{number}_{kind}" if number else "", "type": _type(kind)}
            for number, kind in enumerate([*modules, *(["Normalize"] if embedder.normalize else [])])
        ]
        files = {
            "modules.json": listed,
            "sentence_bert_config.json": {"max_seq_length": embedder.max_length, "do_lower_case": False},
            "1_Pooling/config.json": {
                "word_embedding_dimension": embedder.model.config.get_text_config().hidden_size,
                **{f"pooling_mode_{name}": name == mode[embedder.pooling] for name in (*mode.values(), "max_tokens")},
            },
        }
        for name, content in files.items():
            path = Path(staging, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        if embedder.normalize:
            Path(staging, "2_Normalize").mkdir()


def _type(kind: str) -> str:
    return f"sentence_transformers.models.{kind}"
