"""The model card of a trained adapter: its header, its figures, that what it prints runs, and that nothing becomes markup."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rmlora.config import RMLoRAConfig
from rmlora.tasks import get_task
from rmlora.training.adapter_card import adapter_card
from rmlora.training.base_license import base_license
from rmlora.training.settings import TrainSettings
from rmlora.training.source_name import without_paths
from tests.helpers.cli import run, text_data
from tests.rmlora.training.short_run import words_for


def test_a_trained_package_has_a_card_whose_commands_run(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(base, tmp_path / "elsewhere" / base.name)
    (base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A base\n")
    test = text_data(tmp_path / "test.jsonl", rows=12, seed=1)
    done = run(*words_for(base, data, tmp_path / "my adapter", "--test", test))
    assert done.code == 0, done.stderr
    page = (tmp_path / "my adapter" / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((tmp_path / "my adapter" / "rmlora.json").read_text())["metrics"]
    header = ModelCard(page).data
    assert (header.library_name, header.pipeline_tag, header.base_model) == ("peft", "text-classification", None)
    found = {
        (item.dataset_name, item.dataset_split, item.metric_name): item.metric_value for item in header.eval_results
    }
    assert found[("test.jsonl", "test", "accuracy")] == pytest.approx(metrics["test"]["accuracy"], abs=1e-4)
    assert (data.name, "validation", "macro F1") in found
    assert "blue, green, red" in page and f"| accuracy | {metrics['validation']['accuracy']:.4f} |" in page
    assert "![Training](training.png)" in page
    for place in (base.parent, data.parent, tmp_path):
        assert str(place) not in page
        assert str(place) not in (tmp_path / "my adapter" / "rmlora.json").read_text()
    assert header.license == "apache-2.0" and "| license of the base | apache-2.0 |" in page

    shutil.copytree(base, tmp_path / base.name, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert program is not None
    names: dict[str, Any] = {}
    exec(program[1], names)  # noqa: S102 - the card is the thing under test
    assert type(names["model"]).__name__.startswith("PeftModel")
    commands = re.findall(r"^\$ rmlora-deploy (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["merge", "export"]
    for command in commands:
        done = run(*shlex.split(command))
        assert done.code == 0, done.stderr


def metadata(**changes: Any) -> dict[str, Any]:
    settings = {"base": "org/base-model", "train": "org/rows:train", "output": Path("spam"), **changes}
    return {
        "rmlora": RMLoRAConfig().to_dict(),
        "labels": ["a|b", "<b>x</b>\n# y", "c"],
        "problem_type": "single_label_classification",
        "metrics": {
            "validation": {"loss": 1e-9, "accuracy": 1.0, "perplexity": 1e16, "pearson": math.nan},
            "examples": {"train": 1200, "validation": 30},
            "trainable_parameters": 5000,
        },
        "training": {"settings": TrainSettings(**settings).to_dict(), "steps": 12, "versions": {"torch": "2"}},
    }  # fmt: skip


def test_the_header_names_a_base_of_the_hub_and_holds_only_numbers() -> None:
    page = adapter_card("spam", get_task("text-classification"), metadata(), choice="Kept.", warnings=[])
    header = yaml.safe_load(page.split("---\n")[1])
    assert header["base_model"] == "org/base-model"
    assert header["tags"] == ["lora", "rmlora", "base_model:adapter:org/base-model"]
    assert "license" not in header and "language" not in header
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"] == {"name": "org/rows:train", "type": "org/rows", "split": "validation"}
    assert {item["name"]: item["value"] for item in result["metrics"]} == {"loss": 0.0, "accuracy": 1.0}
    assert ModelCard(page).data.model_name == "spam"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\ntext", {"license": "mit"}),
        ("---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\n---\n",
         {"license": "other", "license_name": "llama3"}),
        ("---\nlicense: [mit, x]\n---\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("---\n- license\n---\n", {}),
        ("text\n---\nlicense: mit\n---\n", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_the_license_is_what_the_bases_card_states(card: str, expected: dict[str, str], tmp_path: Path) -> None:
    assert base_license(tmp_path) == {}
    (tmp_path / "README.md").write_text(card)
    assert base_license(tmp_path) == expected


def test_paths_are_not_recorded_and_names_of_the_hub_are(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    values = {"base": str(tmp_path / "base"), "train": "org/rows:train", "test": "a/b/c.csv", "validation": None,
              "output": "/x/spam", "run_dir": None, "seed": 3}  # fmt: skip
    assert without_paths(values) == {
        **values, "base": "base", "test": "c.csv", "output": "spam",
    }  # fmt: skip


def test_what_comes_from_files_never_becomes_markup() -> None:
    warnings = ["The label '![x](http://a.b)' is never predicted."]
    name = 'od"d\n---\nname: `x`'
    page = adapter_card(name, get_task("text-classification"), metadata(), choice="Kept <i>.", warnings=warnings)
    assert ModelCard(page).data.pipeline_tag == "text-classification"
    body = page.split("---\n", 2)[2]
    assert "a\\|b, \\<b\\>x\\</b\\> \\# y, c" in body and "<i>" not in body.replace("\\<i\\>", "")
    assert "* The label '\\!\\[x\\](http\\://a.b)' is never predicted." in body
    assert not re.search(r"^(---|name:)", body, re.MULTILINE)


def test_a_task_that_is_not_exported_has_only_the_merge() -> None:
    task = get_task("text2text-generation")
    values = {**metadata(task=task.name, revision="v1"), "labels": None, "problem_type": None}
    page = adapter_card("t5", task, values, choice="Kept.", warnings=[])
    assert "$ rmlora-deploy merge org/base-model t5 --revision v1 --output t5-merged" in page
    assert "rmlora-deploy export" not in page
    assert 'AutoModelForSeq2SeqLM.from_pretrained("org/base-model", revision="v1")' in page


def test_a_base_with_code_of_its_own_is_loaded_with_the_flag() -> None:
    page = adapter_card(
        "spam", get_task("text-classification"), metadata(trust_remote_code=True), choice="", warnings=[]
    )
    assert "export org/base-model --adapter spam --trust-remote-code --output" in page
    assert "ignore_mismatched_sizes=True, trust_remote_code=True)" in page
