"""Data sets of the Hub: files are read as those of this machine are."""

import gzip
import json

import pyarrow as pa
import pytest

from tests.hub.stand_in import REPOSITORY, hub_of
from tests.processes import run_fresh

# Splits of a data set as JSON; the flags are those of `load_splits`.
LOAD = """
import json, sys
from tuner.data.sources import load_splits
found = load_splits(sys.argv[1], **json.loads(sys.argv[2]))
print(json.dumps([list(rows) for rows in found]))
"""
STREAM = """
import json, sys
from tuner.corpus.reading import open_stream
train, test = open_stream(sys.argv[1], None, ("train", "test"), 0, 1)
print(json.dumps([[row["text"] for row in rows] for rows in (train, test)]))
"""
HEADER = "prompt,completion\n"


def load(folder, address="http://127.0.0.1:9", offline="0", how=LOAD, **options):
    env = {"HF_HOME": str(folder), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline}
    env |= {"HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_CACHE": str(folder / "hub"), "NO_PROXY": "127.0.0.1"}
    done = run_fresh("-c", how, REPOSITORY, json.dumps(options), **env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_text_stays_text_and_a_key_may_come_late(tmp_path):
    first = [{"prompt": "007", "completion": "2024-01-01"}] * 3
    last = [{"prompt": "true", "completion": "None", "tools": [{"name": "late"}]}]
    lines = ["".join(json.dumps(row) + "\n" for row in rows) for rows in (first, last)]
    files = {"README.md": "# Rows", "data/train-00000-of-00002.jsonl": lines[0]}
    files |= {"data/train-00001-of-00002.jsonl": lines[1], "data/test-00000-of-00001.jsonl": lines[1]}
    with hub_of(files) as address:
        train, test = load(tmp_path, address)
    assert train == [row | {"tools": None} for row in first] + last
    assert test == last
    assert load(tmp_path, offline="1") == [train, test]
    assert load(tmp_path) == [train, test]  # nobody answers there


@pytest.mark.parametrize(("name", "between"), [("train.csv", ","), ("train.tsv", "\t")])
def test_fields_of_a_table_stay_text(tmp_path, name, between):
    rows = [["prompt", "completion"], ["007", "NA"], ["None", "2024-01-01"]]
    with hub_of({name: "".join(between.join(row) + "\n" for row in rows)}) as address:
        both = load(tmp_path, address)
    found = sorted((row["prompt"], row["completion"]) for rows in both for row in rows)
    assert found == [("007", "NA"), ("None", "2024-01-01")]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_stream_reads_them_where_they_are(tmp_path, suffix):
    row = json.dumps({"text": "2024-01-01"}) + "\n"
    late = json.dumps({"text": "None", "more": {"late": [1]}}) + "\n"
    squeeze = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}
    files = {"train.jsonl": row * 3 + late, "test.jsonl": late}
    with hub_of({name + suffix: squeeze[suffix](text.encode()) for name, text in files.items()}) as address:
        assert load(tmp_path, address, how=STREAM) == [["2024-01-01"] * 3 + ["None"], ["None"]]
    assert not [path for path in tmp_path.rglob("*.jsonl*") if path.is_file()]


CARD = """---
configs:
- config_name: german
  data_files: german.csv
  sep: ";"
- config_name: plain
  data_files:
  - split: train
    path: plain.csv
  - split: test
    path: held_out.csv
---
"""


def test_what_a_card_declares_holds(tmp_path):
    files = {"README.md": CARD, "german.csv": "prompt;completion\na,b;c\nd;e\n", "plain.csv": HEADER + "1,2\n"}
    with hub_of(files | {"held_out.csv": HEADER + "3,4\n"}) as address:
        german = load(tmp_path, address, config="german")
        train, test = load(tmp_path, address, config="plain")
        assert load(tmp_path, offline="1", config="plain") == [train, test]
    assert sorted(row["prompt"] for rows in german for row in rows) == ["a,b", "d"]
    assert (train, test) == ([{"prompt": "1", "completion": "2"}], [{"prompt": "3", "completion": "4"}])
