"""A prompt is put to the model as in the adapter's training, row by row, and the answer ends as it did there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from rmlora.errors import ConfigError, InputError
from rmlora.package import load_package, write_metadata
from rmlora_converters.mix import mix_adapters
from rmlora_deploy import export, load
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.inference import Generator
from tests.helpers.cli import fails, run
from tests.helpers.decoders import byte_tokenizer, decoder_adapter, decoder_base

ENDS_RAW = [2, 100]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("formats")
    base = decoder_base("llama", directory / "base")
    formats = {"raw": ("raw", ENDS_RAW), "chat": ("chat", [2]), "unknown": (None, [])}
    adapters = {}
    for seed, (name, (form, ends)) in enumerate(formats.items()):
        adapters[name] = decoder_adapter(base, directory / name, seed=seed)
        if form is not None:
            write_metadata(adapters[name], {"task": "text-generation", "prompt_format": form, "end_tokens": ends})
    export(base, adapters, directory / "bundle", verify=False)
    export(base, adapters["raw"], directory / "merged", verify=False)
    return directory


@pytest.fixture(scope="module")
def bundle(made: Path) -> Generator:
    opened = load(made / "bundle", threads=1)
    assert isinstance(opened, Generator)
    return opened


def test_the_manifest_has_how_each_adapter_was_trained(made: Path) -> None:
    entries = json.loads((made / "bundle" / "manifest.json").read_text())["adapters"]
    assert (entries["raw"]["prompt_format"], entries["raw"]["end_tokens"]) == ("raw", ENDS_RAW)
    assert entries["chat"]["prompt_format"] == "chat" and "prompt_format" not in entries["unknown"]
    assert Bundle.open(made / "merged").merged_adapter.prompt_format == "raw"
    shown = run("inspect", made / "bundle").stdout
    assert "user's message of a chat; with raw they are continued as they are" in " ".join(shown.split())


def test_every_row_is_asked_as_its_adapter_was_trained(bundle: Generator) -> None:
    names = ["raw", "chat", None, "unknown"]
    answers = bundle.generate(["abc"] * 4, names, max_new_tokens=4)
    assert [answer.prompt_tokens for answer in answers] == [3, 6, 6, 6]
    for raw, expected in ((True, [3] * 4), (False, [6] * 4)):
        told = bundle.generate(["abc"] * 4, names, max_new_tokens=4, raw=raw)
        assert [answer.prompt_tokens for answer in told] == expected
        alone = [bundle.generate(["abc"], name, max_new_tokens=4, raw=raw)[0] for name in names]
        assert told == alone
    strong = bundle.generate(["abc"], {"raw": 0.5}, max_new_tokens=1)
    chat = bundle.generate([[{"role": "user", "content": "abc"}]], "raw", max_new_tokens=1)
    assert (strong[0].prompt_tokens, chat[0].prompt_tokens) == (3, 6)


def test_an_answer_ends_at_the_tokens_of_its_adapters_training(made: Path, tmp_path: Path) -> None:
    opened = load(made / "bundle", threads=1)
    assert isinstance(opened, Generator)
    free = opened.generate(["abc"], "chat", max_new_tokens=12)[0].tokens
    stop = free[4]
    opened.bundle.manifest.adapters["chat"].end_tokens = [stop]
    ended = opened.generate(["abc", "abc"], ["chat", None], max_new_tokens=12)
    assert ended[0].finish == "end" and ended[0].tokens == free[: free.index(stop)]
    assert ended[1] == opened.generate(["abc"], None, max_new_tokens=12)[0]


def test_a_merged_bundle_and_the_command_obey_too(made: Path) -> None:
    merged = load(made / "merged", threads=1)
    assert isinstance(merged, Generator)
    assert merged.generate(["abc"], max_new_tokens=1)[0].prompt_tokens == 3
    for words, form, tokens in (
        (("-a", "raw"), "raw", 3), (("-a", "raw", "--chat"), "chat", 6), (("-a", "chat"), "chat", 6),
        (("-a", "chat", "--raw"), "raw", 3), ((), "chat", 6),
    ):  # fmt: skip
        done = run("generate", made / "bundle", "abc", *words, "--max-new-tokens", "1", "--json")
        told = json.loads(done.stdout)
        assert (told["prompt_format"], told["prompt_tokens"]) == (form, tokens), words


def test_a_bundle_without_the_record_behaves_as_before(made: Path) -> None:
    opened = load(made / "bundle", threads=1)
    assert isinstance(opened, Generator)
    content = opened.bundle.manifest.to_dict()
    for entry in content["adapters"].values():
        entry.pop("prompt_format", None)
        entry.pop("end_tokens", None)
    opened.bundle.manifest = type(opened.bundle.manifest)(**content)
    answers = opened.generate(["abc"] * 2, ["raw", "chat"], max_new_tokens=1)
    assert [answer.prompt_tokens for answer in answers] == [6, 6]


def test_a_chat_is_not_asked_of_a_model_without_a_template(tmp_path: Path) -> None:
    base = decoder_base("llama", tmp_path / "base", chat=False)
    adapter = decoder_adapter(base, tmp_path / "adapter")
    export(base, adapter, tmp_path / "bundle", verify=False)
    opened = load(tmp_path / "bundle")
    assert isinstance(opened, Generator) and opened.takes_raw()
    with pytest.raises(ConfigError, match="has no chat template"):
        opened.generate(["abc"], raw=False)
    assert run("generate", tmp_path / "bundle", "abc", "--chat").code == 2


def test_a_raw_prompt_does_not_end_before_its_answer(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(tmp_path)
    tokens = TextCodec.open(tmp_path).encode("abc", raw=True)
    assert tokens[0] == 1 and len(tokens) == 4 and tokens[-1] != 2


def test_a_damaged_record_is_named(made: Path, tmp_path: Path) -> None:
    adapter = decoder_adapter(made / "base", tmp_path / "adapter")
    write_metadata(adapter, {"prompt_format": "yaml"})
    with pytest.raises(InputError, match="prompt_format"):
        load_package(adapter)


def test_a_mix_keeps_one_way_of_asking(made: Path) -> None:
    raw, chat, unknown = (load_package(made / name) for name in ("raw", "chat", "unknown"))
    with pytest.raises(ConfigError, match="--head-from"):
        mix_adapters([raw, chat], [0.5, 0.5])
    assert mix_adapters([raw, chat], [0.5, 0.5], head=1).prompt_format == "chat"
    assert mix_adapters([unknown, raw], [0.5, 0.5]).prompt_format == "raw"


def test_a_system_message_makes_a_chat(made: Path, bundle: Generator) -> None:
    words = ["generate", made / "bundle", "abc", "--adapter", "raw", "--system", "xy", "--max-new-tokens", "4"]
    done = run(*words, "--json")
    told = json.loads(done.stdout)
    assert "'raw' was trained to continue prompts as they are; --system makes a chat" in " ".join(done.stderr.split())
    chat = [{"role": "system", "content": "xy"}, {"role": "user", "content": "abc"}]
    (answer,) = bundle.generate([chat], "raw", max_new_tokens=4)
    assert told["prompt_format"] == "chat" and told["prompt_tokens"] == answer.prompt_tokens > 6
    assert told["tokens"] == list(answer.tokens)
    fails(2, "--system is a message of a chat, and --raw", *words, "--raw")
    both = ["compare", made / "bundle", "-a", "raw", "-a", "chat", "--system", "xy", "--max-new-tokens", "4"]
    assert json.loads(run(*both, "abc", "--json").stdout)["rows"][0]["answers"]["raw"]["text"] == answer.text
    (made / "asked.jsonl").write_text('{"prompt": "abc", "completion": "d"}\n')
    fails(2, "--system goes with PROMPTS", *both, "--data", made / "asked.jsonl")
