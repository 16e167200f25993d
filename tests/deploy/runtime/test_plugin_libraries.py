"""Plugin libraries register for real; what they lack is said in one sentence, before anything else is done."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from rmlora.errors import ConfigError, ProviderError
from rmlora_deploy.bundles.bundle import MODEL_FILE
from rmlora_deploy.runtime import providers
from rmlora_deploy.runtime.list_providers import list_providers
from rmlora_deploy.runtime.plugin_libraries import Plugin, choose_devices, find_plugin, installed_plugins
from rmlora_deploy.runtime.provider_choice import ProviderChoice
from rmlora_deploy.runtime.providers import Provider, create_session
from tests.helpers.cli import run
from tests.helpers.handmade import word_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_bundle(tmp_path_factory.mktemp("plugins") / "words")


def device(provider: str, kind: str) -> Any:
    return SimpleNamespace(ep_name=provider, device=SimpleNamespace(type=f"OrtHardwareDeviceType.{kind}", vendor="x"))


def test_a_file_that_is_no_plugin_is_refused_with_the_loaders_reason(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(ProviderError, match=r"text.so cannot be used: .*(invalid ELF header|file too short)"):
        create_session(bundle / MODEL_FILE, f"mine@{tmp_path / 'text.so'}")
    built = next((Path(ort.__file__).parent / "capi").glob("libonnxruntime_providers_shared.so"))
    with pytest.raises(ProviderError, match="CreateEpFactories"):
        create_session(bundle / MODEL_FILE, f"mine@{built}")


def test_a_library_that_is_not_there_is_named(bundle: Path) -> None:
    for library, reason in {
        "/none/lib.so": "/none/lib.so is not there",
        "no_such_package": "no installed Python package no_such_package",
        "json": "json carries no plugin library: it has no get_library_path",
    }.items():
        done = run("predict", bundle, "w1 w2", "--provider", "mine", "--provider-library", library)
        assert done.code == ProviderError("").exit_code and reason in done.stderr and "Traceback" not in done.stderr


def test_a_package_says_where_its_library_is(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime_ep_mine.py").write_text("def get_library_path():\n    return '/none/mine.so'\n")
    info = tmp_path / "onnxruntime_ep_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-ep-mine\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_plugins()["mine"] == "onnxruntime-ep-mine"
    with pytest.raises(ProviderError, match="/none/mine.so cannot be used: .*No such file"):
        create_session(bundle / MODEL_FILE, "mine")
    (row,) = [row for row in list_providers() if row.name == "mine"]
    assert row.origin == "onnxruntime-ep-mine" and "No such file" in str(row.missing)
    sys.modules.pop("onnxruntime_ep_mine", None)


def test_the_library_of_an_unknown_provider_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"Unknown provider 'mine': .*--provider-library"):
        create_session(Path("model.onnx"), "mine")
    assert find_plugin(ProviderChoice("mine")) is None


def test_a_plugin_without_a_device_says_that_it_was_loaded() -> None:
    with pytest.raises(
        ProviderError, match=r"library /x.so was loaded and offers no device on this machine, whose processor"
    ):
        choose_devices(ProviderChoice("mine"), Plugin("/x.so"))


def test_one_device_is_chosen_and_no_choice_is_guessed() -> None:
    cpu, gpu = device("MineExecutionProvider", "CPU"), device("MineExecutionProvider", "GPU")
    assert choose_devices(ProviderChoice("mine"), Plugin("/x.so", (cpu,))) == (cpu,)
    both = Plugin("/x.so", (cpu, gpu, device("OtherExecutionProvider", "CPU")))
    assert choose_devices(ProviderChoice("mine", "gpu"), both) == (gpu,)
    with pytest.raises(ProviderError, match="several devices, cpu, gpu: choose one with --provider mine:cpu"):
        choose_devices(ProviderChoice("mine"), both)
    with pytest.raises(ProviderError, match="no device 'npu' on this machine, only cpu, gpu"):
        choose_devices(ProviderChoice("mine", "npu"), both)
    with pytest.raises(ProviderError, match="no provider 'third': choose --provider MineExecutionProvider or Other"):
        choose_devices(ProviderChoice("third"), both)


def test_a_provider_that_runs_no_operator_is_an_error() -> None:
    def session(*parts: tuple[str, int]) -> Any:
        found = [SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count) for name, count in parts]
        return SimpleNamespace(get_provider_graph_assignment_info=lambda: found)

    mine = Provider("mine", "MineExecutionProvider")
    with pytest.raises(ProviderError, match=r"'mine' runs none of the 5 operators of m.onnx, so the CPU would run all"):
        providers._refuse_idle(session(("CPUExecutionProvider", 2), ("CPUExecutionProvider", 3)), mine, "m.onnx")
    providers._refuse_idle(session(("CPUExecutionProvider", 2), ("MineExecutionProvider", 3)), mine, "m.onnx")
    providers._refuse_idle(session(), mine, "m.onnx")


def test_the_list_of_providers_has_those_that_can_be_used_and_the_reasons_for_others() -> None:
    rows = {row.name: row for row in list_providers()}
    assert rows["cpu"].missing is None and rows["cpu"].origin == "the build"
    assert rows["coreml"].missing == "not in the installed ONNX Runtime"
    done = run("bench", "--list-providers")
    assert done.code == 0 and "CPUExecutionProvider" in done.stdout
    assert run("bench").code == 2


def test_bench_takes_options_for_a_named_provider_only(bundle: Path) -> None:
    done = run("bench", bundle, "--provider-option", "a=b")
    assert done.code == ConfigError("").exit_code and "add --provider" in done.stderr
