"""Generating text: answers and streams, chats, sampling, the command line, and machines without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from rmlora.errors import ConfigError, InputError
from rmlora.training.data import Columns
from rmlora_deploy import export, load
from rmlora_deploy.bundles.chat_template import ChatTemplate
from rmlora_deploy.bundles.text_codec import TextCodec, TextStream
from rmlora_deploy.inference import Generator
from rmlora_deploy.inference.sampling import Sampling
from rmlora_deploy.verification.exchanges import read_exchanges
from tests.helpers.cli import fails, run, run_process
from tests.helpers.decoders import byte_tokenizer, decoder_adapter, decoder_base
from tests.helpers.handmade import word_bundle

ABSENT = ("torch", "peft", "accelerate", "transformers", "onnxruntime_genai")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generate")
    base = decoder_base("llama", directory / "base")
    adapters = {name: decoder_adapter(base, directory / name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    export(base, adapters, directory / "both", verify=False)
    export(base, adapters["a"], directory / "merged", verify=False)
    return directory


@pytest.fixture(scope="module")
def both(made: Path) -> Generator:
    opened = load(made / "both", threads=1)
    assert isinstance(opened, Generator)
    return opened


def test_a_batch_and_single_prompts_and_the_stream_give_the_same_text(both: Generator) -> None:
    prompts, names = ["abc", "The river rises", "x", "Yes and no"], ["a", None, "b", "a"]
    answers = both.generate(prompts, names, max_new_tokens=12, batch_size=3)
    for prompt, name, answer in zip(prompts, names, answers, strict=True):
        assert both.generate([prompt], name, max_new_tokens=12) == [answer]
        pieces = list(both.stream(prompt, name, max_new_tokens=12))
        assert "".join(piece.text for piece in pieces) == answer.text
        assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish == answer.finish


def test_a_text_is_the_users_message_of_a_chat(both: Generator) -> None:
    chat = [{"role": "user", "content": "abc"}]
    assert both.generate(["abc"], max_new_tokens=4) == both.generate([chat], max_new_tokens=4)
    raw = both.generate(["<|user|>abc</s><|assistant|>"], max_new_tokens=4, raw=True)
    assert raw == both.generate(["abc"], max_new_tokens=4)
    assert both.generate(["abc"], max_new_tokens=4, raw=True)[0].prompt_tokens == 3


def test_templates_are_rendered_as_transformers_renders_them(tmp_path: Path) -> None:
    templates = {
        "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m.content | trim + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "llama": "{{ bos_token }}{%- for m in messages -%}\n  {%- if loop.first and m.role == 'system' -%}[S]{{ m.content }}\n{% continue %}"
        "{%- endif -%} [{{ m.role }}] {{ m.content | tojson }} {{ eos_token }}\n{%- endfor %}",
        "json": "{% for m in messages %}{{ {'b': 1, 'a': m.content} | tojson(separators=(',', ':'), sort_keys=true) }}"
        "{{ m | tojson(true) }}{{ m | tojson(indent=2) }}{% endfor %}",
        "marked": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    }
    messages = [{"role": "system", "content": "Be kind. é"}, {"role": "user", "content": ' "Hi" '}]
    for name, template in templates.items():
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
        expected = AutoTokenizer.from_pretrained(tmp_path / name).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        chat = ChatTemplate.of(tmp_path / name)
        assert chat is not None and chat.render(messages) == expected


def test_a_template_refuses_with_its_own_reason(tmp_path: Path) -> None:
    chat = ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, where=tmp_path)
    with pytest.raises(InputError, match="refuses these messages: roles must alternate"):
        chat.render([{"role": "user", "content": "x"}])
    with pytest.raises(InputError, match="is no template"):
        ChatTemplate("{% for %}", {}, where=tmp_path)
    with pytest.raises(InputError, match="refuses these messages"):
        ChatTemplate("{{ ''.__class__.__mro__ }}", {}, where=tmp_path).render([])


def test_a_template_is_not_given_what_it_would_render_as_nothing(tmp_path: Path) -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", {}, where=tmp_path / "t")
    user, calls = {"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": ["b"]}
    for messages, fault in (
        ([user, {"role": "user"}], "Message 2 of the chat, of 'user', has no content"),
        ([{"content": "a"}], "Message 1 of the chat has no role"),
        ([user, calls, user], "Message 2 of the chat has tool_calls, which the chat template in .*t does not write"),
    ):
        with pytest.raises(InputError, match=fault):
            plain.render(messages)
    assert ChatTemplate("{{ messages[0].tool_calls }}", {}, where=tmp_path).render([calls]) == "['b']"


def test_rows_that_cannot_be_asked_are_named(made: Path, tmp_path: Path) -> None:
    codec, answer = TextCodec.open(made / "base"), {"role": "assistant", "content": "b"}
    calls = {"role": "assistant", "content": None, "tool_calls": ["b"]}
    for messages, fault in (
        (
            [{"role": "user", "content": "a"}, calls, answer],
            "^Line 1 of .*data.jsonl cannot be asked. Message 2 of the chat",
        ),
        ([{"role": "user", "content": "a"}, calls], "^Line 1 of .*data.jsonl is answered with tool_calls alone"),
    ):
        (tmp_path / "data.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
        with pytest.raises(InputError, match=fault):
            read_exchanges(codec, str(tmp_path / "data.jsonl"), Columns())


def test_the_codec_splits_as_transformers_does(made: Path) -> None:
    codec, theirs = TextCodec.open(made / "both"), AutoTokenizer.from_pretrained(made / "base")
    for text in ("abc", " é ü", "日本", "a</s>b"):
        assert codec.encode(text, raw=True) == theirs(text)["input_ids"]
        assert codec.decode(codec.encode(text, raw=True)) == theirs.decode(
            theirs(text)["input_ids"], skip_special_tokens=True
        )


def test_a_stream_holds_back_half_a_character(made: Path) -> None:
    codec = TextCodec.open(made / "both")
    tokens = codec.encode("é日", raw=True)
    stream = TextStream(codec)
    assert [stream.add(token) for token in tokens] == ["", "é", "", "", "日"]
    cut = TextStream(codec)
    assert [cut.add(token) for token in tokens[:-1]] == ["", "é", "", ""]
    assert cut.end() == "\N{REPLACEMENT CHARACTER}"


def test_sampling_is_repeatable_and_greedy_without_a_temperature(both: Generator) -> None:
    greedy = both.generate(["abc"], max_new_tokens=10)[0]
    assert both.generate(["abc"], max_new_tokens=10, sampling=Sampling(temperature=0.01))[0].tokens == greedy.tokens
    hot = [both.generate(["abc"], max_new_tokens=10, sampling=Sampling(5.0, seed=seed))[0].tokens for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    logits = np.array([0.0, 3.0, 1.0], np.float32)
    assert {Sampling(1.0, top_p=0.5, seed=seed).choose(logits) for seed in range(20)} == {1}
    assert {Sampling(1.0, seed=seed).choose(logits) for seed in range(400)} == {0, 1, 2}
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}):
        with pytest.raises(ConfigError):
            Sampling(**wrong)


def test_what_cannot_be_answered_is_refused(made: Path, both: Generator) -> None:
    merged = load(made / "merged")
    assert isinstance(merged, Generator)
    for arguments, message in (
        (([], None), "at least one prompt"), (([" "], None), "prompt is empty"), (([[]], None), "no messages"),
        ((["a" * 300], None), "exceeds the 256"), (("abc", None), "put a single one into a list"),
        (([{"role": "user", "content": "a"}], None), "put a single one into a list"), ((["a"], "x"), "has no adapter 'x': it has a, b"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            both.generate(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has its adapter merged"):
        merged.generate(["a"], "a")
    with pytest.raises(ConfigError, match="A batch has at least one input, not -1"):
        both.generate(["a"], batch_size=-1)
    with pytest.raises(ConfigError, match="2 rows need 2 adapters"):
        both.generate(["a", "b"], ["a"])


def test_the_command_streams_and_prints_json(made: Path) -> None:
    shown = run("generate", made / "both", "The river", "--adapter", "a", "--max-new-tokens", "6", "--threads", "1")
    told = run("generate", made / "both", "The river", "-a", "a", "--max-new-tokens", "6", "--json")
    assert shown.code == told.code == 0
    answer = json.loads(told.stdout)
    assert answer["adapter"] == "a" and len(answer["tokens"]) <= 6
    assert shown.stdout.strip("\n") and "tokens" in shown.stderr and "tokens/s" not in shown.stdout
    note = run("generate", made / "both", "The river", "--max-new-tokens", "2")
    assert "the base answers; --adapter names one of a, b" in note.stderr


def test_the_name_of_a_file_is_asked_with_a_note(made: Path, tmp_path: Path) -> None:
    (tmp_path / "my question").write_text("abc")
    done = run("generate", made / "merged", tmp_path / "my question", "--max-new-tokens", "2")
    assert done.code == 0 and f"- < '{tmp_path}/my question'" in " ".join(done.stderr.split())
    assert "the name of a file" not in run("generate", made / "merged", "abc " * 50, "--max-new-tokens", "2").stderr


def test_the_command_refuses_in_one_sentence(made: Path, tmp_path: Path) -> None:
    fails(3, "has no adapter 'x'", "generate", made / "both", "abc", "-a", "x")
    fails(2, "has its adapter merged", "generate", made / "merged", "abc", "-a", "a")
    fails(2, "ask it with  rmlora-deploy predict", "generate", word_bundle(tmp_path / "words"), "abc")
    fails(2, "ask it with  rmlora-deploy generate", "predict", made / "both", "abc")
    fails(2, "does not serve", "serve", made / "both")
    fails(2, "--temperature is between", "generate", made / "both", "abc", "--temperature", "-1")
    (made / "both" / "genai_config.json").rename(tmp_path / "kept")
    try:
        fails(3, "genai_config.json", "generate", made / "both", "abc")
    finally:
        (tmp_path / "kept").rename(made / "both" / "genai_config.json")


def test_everything_runs_without_torch_and_transformers(made: Path) -> None:
    answered = run_process(
        "generate", made / "both", "abc", "-a", "a", "--max-new-tokens", "5", "--json", without=ABSENT
    )
    assert answered.code == 0, answered.stderr
    here = load(made / "both")
    assert isinstance(here, Generator)
    assert json.loads(answered.stdout)["tokens"] == list(here.generate(["abc"], "a", max_new_tokens=5)[0].tokens)
    for words in (("verify", made / "both", "--no-write"), ("inspect", made / "both")):
        done = run_process(*words, without=ABSENT)
        assert done.code == 0, done.stderr
