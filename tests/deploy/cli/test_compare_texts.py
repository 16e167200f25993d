"""The command ``compare``: adapters of a language model side by side, and how many of their answers are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmlora_deploy import export, load
from rmlora_deploy.cli.comparison_output import show_comparison
from rmlora_deploy.cli.console import make_console
from rmlora_deploy.inference import Generator
from rmlora_deploy.inference.generator import Generated
from rmlora_deploy.inference.questions import Question
from rmlora_deploy.inference.text_comparison import TextComparison, first_difference
from tests.helpers.chats import write_rows
from tests.helpers.cli import fails, run, run_process
from tests.helpers.decoders import decoder_adapter, decoder_base
from tests.helpers.handmade import word_bundle

SHORT = ("--max-new-tokens", "6", "--threads", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compare")
    base = decoder_base("llama", directory / "source")
    adapters = {name: decoder_adapter(base, directory / name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    export(base, adapters, directory / "both", verify=False)
    export(base, adapters["a"], directory / "merged", verify=False)
    return directory


def _texts(bundle: Path, adapter: str | None, prompts: list[str]) -> list[str]:
    opened = load(bundle, threads=1)
    assert isinstance(opened, Generator)
    return [answer.text for answer in opened.generate(prompts, adapter, max_new_tokens=6)]


def test_the_texts_are_those_of_generate_and_differences_are_counted(made: Path) -> None:
    prompts = ["abc", "The river", "x"]
    done = run("compare", made / "both", *prompts, "--base", *SHORT, "--json")
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told["contestants"]) == ["base", "a", "b"] and told["prompts"] == 3
    for name in told["contestants"]:
        texts = [row["answers"][name]["text"] for row in told["rows"]]
        assert texts == _texts(made / "both", None if name == "base" else name, prompts)
        same = [row["answers"]["base"]["text"] == text for row, text in zip(told["rows"], texts, strict=True)]
        assert told["contestants"][name]["agreement"] == pytest.approx(sum(same) / 3)
        assert told["contestants"][name]["tokens_per_second"] > 0
    everyone = [len({answer["text"] for answer in row["answers"].values()}) == 1 for row in told["rows"]]
    assert told["agreeing"] == sum(everyone)


def test_data_gives_the_metric_of_each(made: Path, tmp_path: Path) -> None:
    prompts = ["abc", "The river", "x", "Yes"]
    right = _texts(made / "both", "a", prompts)
    rows = [{"prompt": asked, "completion": text or "?"} for asked, text in zip(prompts, right, strict=True)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    done = run("compare", made / "both", "-a", "a", "-a", "b", "--data", data, *SHORT, "--json")
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["contestants"]["a"]["exact_match"] == 1.0 > told["contestants"]["b"]["exact_match"]
    assert told["rows"][0]["reference"] == right[0]
    chats = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": text or "?"}]}
        for asked, text in zip(prompts, right, strict=True)
    ]
    again = run("compare", made / "both", "-a", "a", "-a", "b", "--data", write_rows(tmp_path / "chats.jsonl", chats), *SHORT,
                "--json")  # fmt: skip
    assert json.loads(again.stdout)["contestants"]["a"]["exact_match"] == 1.0
    fewer = run("compare", made / "both", "--data", data, "--rows", "2", "--metric", "json", *SHORT, "--json")
    assert json.loads(fewer.stdout)["prompts"] == 2 and "json_valid" in json.loads(fewer.stdout)["contestants"]["a"]


def test_two_bundles_are_compared(made: Path) -> None:
    done = run("compare", made / "both", "abc", "--with", made / "merged", "-a", "a", *SHORT, "--json")
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told["contestants"]) == ["both · a", "merged"]
    assert told["rows"][0]["answers"]["merged"]["differs_at"] is None  # merged and with branches say the same


def test_the_terminal_shows_texts_next_to_each_other(made: Path) -> None:
    done = run("compare", made / "both", "abc", "x", *SHORT)
    assert done.code == 0, done.stderr
    for word in ("prompt", "differs", "from character", "tokens/s", "same text as a", "of 2 prompts"):
        assert word in done.stdout, word
    one = run("compare", made / "both", "abc", *SHORT)
    assert "same text as" not in one.stdout


def test_a_text_of_which_nothing_would_be_seen_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"a": "", "b": "\n\n", "c": "on"}
    answers = {name: [Generated(text, (1,), "length", 1, 1.0, 0.5)] for name, text in texts.items()}
    comparison = TextComparison([Question("abc")], answers, {})
    show_comparison(make_console(), comparison, 0)
    shown = capsys.readouterr().out
    assert "nothing" in shown and r"only white space: '\n\n'" in shown and "on" in shown


def test_where_texts_part() -> None:
    assert first_difference("light on", "light off") == 7
    assert first_difference("light", "light on") == 5
    assert first_difference("", "a") == 0 and first_difference("a", "a") is None


def test_what_cannot_be_compared_is_refused_in_one_sentence(made: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "abc"}])
    fails(2, "nothing to compare a with", "compare", made / "both", "abc", "-a", "a")
    fails(2, "nothing to compare merged with", "compare", made / "merged", "abc")
    fails(2, "--base is for bundles made with --mode branches", "compare", made / "merged", "abc", "--base")
    fails(3, "has no adapter 'x'", "compare", made / "both", "abc", "-a", "x")
    fails(3, "nothing to ask", "compare", made / "both")
    fails(2, "--metric goes with --data", "compare", made / "both", "abc", "--metric", "json")
    fails(2, "--prompt-column goes with --data", "compare", made / "both", "abc", "--prompt-column", "text")
    fails(2, "either PROMPTS or --data", "compare", made / "both", "abc", "--data", texts)
    fails(3, "holds plain texts", "compare", made / "both", "--data", texts)
    fails(2, "see its answers with  rmlora-deploy predict", "compare", word_bundle(tmp_path / "words"), "abc")


def test_comparing_needs_no_torch(made: Path) -> None:
    done = run_process("compare", made / "both", "abc", *SHORT, without=("torch", "transformers", "peft", "accelerate"))
    assert done.code == 0, done.stderr
