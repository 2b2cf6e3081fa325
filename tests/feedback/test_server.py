"""A real server: nothing lost when it is killed, several people at once, who gets in, and what it tells the world."""

from __future__ import annotations

import random
import re
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.feedback.conftest import HOSTILE, Served, write_pairs
from tuner import cli
from tuner.feedback.page import text
from tuner.feedback.store import Store

CHOICES = ("a", "b", "tie", "both_bad")


@pytest.mark.slow
def test_a_thousand_answers_over_five_kills(tmp_path):
    """Killed while answers are under way; who asked and got no reply asks again, as a person does."""
    pairs, file = write_pairs(tmp_path / "pairs.jsonl", 1000), tmp_path / "f.sqlite"
    server = Served(tmp_path, "--prompts", pairs, "--output", file)
    draw, said, kills, written, took = random.Random(0), dict[int, str](), 0, 0, 0.1
    pair = server.next("enter", "ada")
    while pair is not None:
        assert pair == len(said), "the first that is not answered"
        said[pair] = draw.choice(CHOICES)
        if len(said) % 180 == 0:
            threading.Timer(draw.uniform(0, took), server.process.kill).start()
        begun = time.monotonic()
        try:
            pair = server.next("answer", "ada", pair, said[pair], "")
            took = time.monotonic() - begun
        except httpx.TransportError:
            assert server.process.wait(30) == -signal.SIGKILL
            kills, server = kills + 1, Served(tmp_path, "--output", file)
            written += Store(file).progress("ada")[0] == len(said)
            pair = server.next("answer", "ada", pair, said[pair], "")
    server.end()
    answers = Store(file).answers()
    assert kills == 5 and [answer.pair for answer in answers] == list(range(1000)) == sorted(said)
    for answer in answers:
        shown = ("first", "second")[:: -1 if answer.swapped else 1]
        assert answer.choice == {"a": shown[0], "b": shown[1]}.get(said[answer.pair], said[answer.pair])
    events = Counter(sqlite3.connect(file).execute("SELECT event, pair FROM log"))
    assert set(events.values()) == {1} and len(events) == 1000
    print(f"{kills} kills, {written} of them after the answer was written")


def test_five_people_at_once(served):
    def answer_all(name: str) -> list[int]:
        seen, pair = [], served.next("enter", name)
        while pair is not None:
            seen.append(pair)
            pair = served.next("answer", name, pair, random.choice(CHOICES), "")
        return seen

    names = [f"person {n}" for n in range(5)]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(answer_all, names)) == [list(range(40))] * 5
    counts = Counter(answer.annotator for answer in Store(served.addresses.with_name("f.sqlite")).answers())
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 40)


def test_resume_undo_and_skip(served):
    assert served.next("enter", "ada") == 0
    assert served.next("answer", "ada", 0, "a", "edited") == 1
    assert served.next("answer", "ada", 0, "b", "again") == 1, "sent twice"
    assert served.next("skip", "ada", 1) == 2
    assert served.next("enter", " ada ") == 2
    assert served.call("undo", "ada")[4:7] == [None, "", 1]
    assert served.call("undo", "ada")[4:7] == ["a", "edited", 0]
    said, progress, *_ = served.call("enter", "ada")[:7]
    assert said == "" and "0 of 40" in progress
    said, *rest = served.call("answer", "ada", 0, None, "")
    assert said == "<div class=said>Choose first: A, B, tie or both bad.</div>"
    assert all(isinstance(part, dict) and part["__type__"] == "update" for part in rest), "nothing else changes"
    assert "Enter a name" in served.call("enter", " ")[0]


def test_texts_are_text(served):
    said, _, prompt, cards, *_ = served.call("enter", HOSTILE.split()[0] + "x")
    assert (
        said == "" and "<img" not in prompt + cards and "<script" not in prompt + cards and "${" not in prompt + cards
    )
    assert text(HOSTILE) in prompt and cards.count(text(HOSTILE)) == 2


def test_nothing_goes_to_the_net(served):
    """The server looks nothing up and connects to nothing elsewhere; the page names no other host that is fetched from,
    and the browser is told to fetch from nowhere else."""
    served.next("enter", "someone")
    page = served.client.get(served.url)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy
    assert "fonts.googleapis" not in page.text and "cdn" not in page.text
    theme = served.client.get(f"{served.url}theme.css").text
    assert "url(http" not in theme and "@import" not in theme
    seen = served.addresses.read_text().splitlines()
    assert seen and all("127.0.0.1" in line for line in seen), seen


def test_a_name_of_another_site_gets_nothing(served):
    for host in ("evil.example", "evil.example:80"):
        assert served.client.get(served.url, headers={"Host": host}).status_code == 400
    foreign = {"Origin": "http://evil.example"}
    found = served.client.post(f"{served.url}gradio_api/run/enter", json={"data": ["x"]}, headers=foreign)
    assert "access-control-allow-origin" not in found.headers or found.headers["access-control-allow-origin"] != "*"


def test_opened_wider_it_wants_the_token(tmp_path):
    server = Served(
        tmp_path,
        "--prompts",
        write_pairs(tmp_path / "p.jsonl", 2),
        "--output",
        tmp_path / "f.sqlite",
        "--host",
        "0.0.0.0",
    )
    try:
        assert len(server.token) >= 32, server.said
        url, bare = server.url.replace("0.0.0.0", "127.0.0.1"), httpx.Client()
        paths = [
            "",
            "config",
            "theme.css",
            "gradio_api/info",
            "gradio_api/startup-events",
            "gradio_api/heartbeat/x",
            "assets/x",
        ]
        for given in ({}, {"Authorization": "Bearer no"}, {"Cookie": "tuner_token=no"}):
            for path in (*paths, "?token=no", "?token="):
                found = bare.get(f"{url}{path}", headers=given)
                assert (found.status_code, found.text) == (401, "A token is needed."), path
            found = bare.post(f"{url}gradio_api/run/enter", json={"data": ["ada"]}, headers=given)
            assert found.status_code == 401
        assert server.next("enter", "ada") == 0, "as a bearer"
        with httpx.Client() as browser:
            found = browser.get(f"{url}?token={server.token}")
            assert found.status_code == 303 and server.token not in found.headers["location"]
            assert "HttpOnly" in found.headers["set-cookie"] and "SameSite=strict" in found.headers["set-cookie"]
            assert browser.get(url).status_code == 200, "as a cookie"
    finally:
        assert server.end(signal.SIGINT) == 0


def test_mistakes_are_one_message(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "q"}\n{"prompt": 3}\n')
    new = ("--output", tmp_path / "f.sqlite")
    Store(tmp_path / "other.sqlite", new=True).begin({"prompts": "x"}, [])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, message in (
            (("--prompts", pairs, *new, "--port", port), f"--host 127.0.0.1 --port {port}: Address already in use"),
            (("--prompts", pairs, "--host", "no.such.host.invalid"), "--host no.such.host.invalid"),
            (("m", "--output", "x"), "MODEL needs --prompts DATA"),
            (("m", "n", "o", "--prompts", pairs), "At most two models are compared, not m, n, o"),
            (("m", "--prompts", pairs, "--temperature", "0"), "--temperature 0 gives the same completion twice"),
            (("--prompts", pairs, "--output", tmp_path / "no" / "f.sqlite"), "--output"),
            (("--prompts", tmp_path / "pair.jsonl", *new, "--port", "0"), "--prompts .*pair.jsonl: no such file"),
            (("--prompts", asked, *new, "--port", "0"), "asked.jsonl, row 0: has no two completions"),
            (("--prompts", pairs, *new, "--port", "0", "--guidelines", "no.md"), "--guidelines no.md: No such file"),
            (("--output", tmp_path / "none.sqlite", "--port", "0"), "none.sqlite: no such file"),
            (("--prompts", pairs, "--output", tmp_path / "other.sqlite", "--port", "0"), "prompts: x there"),
            (("--output", tmp_path / "other.sqlite", "--port", "0"), "other.sqlite has no pair to show"),
            (("--output", pairs, "--port", "0"), "pairs.jsonl is no file of 'tuner feedback'"),
            (("--prompts", pairs, *new, "--port", "70000"), "--port"),
            (("--prompts", pairs, *new, "--temperature", "0.5"), "--temperature goes with MODEL"),
            (("--prompts", pairs, *new, "--batch_size", "2"), "--batch_size goes with MODEL"),
            ((*new, "--max_rows", "2"), "--max_rows goes with --prompts DATA"),
        ):  # fmt: skip
            with pytest.raises(SystemExit) as stop:
                cli.main(["feedback", *map(str, words)])
            said = capsys.readouterr().err
            assert stop.value.code == 2 and re.search(message, said) and "Traceback" not in said, said


@pytest.mark.slow
def test_a_model_writes_the_completions_and_ctrl_c_ends_it(tmp_path):
    """From the command to the page, by a real model."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "Name a fruit."}\n{"prompt": [{"role": "user", "content": "Hello!"}]}\n')
    words = ("--prompts", asked, "--output", tmp_path / "f.sqlite", "--max_new_tokens", "8", "--temperature", "1")
    server = Served(tmp_path, "builtin:smollm2-135m-instruct", *words)
    assert server.next("enter", "ada") == 0 and server.next("answer", "ada", 0, "a", "") == 1
    assert server.end(signal.SIGINT) == 0
    again = Served(tmp_path, "builtin:smollm2-135m-instruct", *words)
    assert "Completion" not in again.said and again.next("enter", "ada") == 1
    assert again.end(signal.SIGINT) == 0
