"""A choice of provider is one text, and its flags, its device, library and options come out as they went in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmlora.errors import ConfigError
from rmlora_deploy.cli.provider_options import add_options
from rmlora_deploy.runtime.openvino import fill_options, inference_precision
from rmlora_deploy.runtime.provider_choice import ProviderChoice
from rmlora_deploy.runtime.providers import computed_in, get_provider, provider_label

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(
    NAMES,
    st.sampled_from([None, "cpu", "gpu"]),
    st.none() | TEXTS,
    st.dictionaries(NAMES, TEXTS, max_size=3),
)
def test_the_text_holds_all_of_a_choice(
    name: str, device: str | None, library: str | None, options: dict[str, str]
) -> None:
    choice = ProviderChoice(name, device, library, tuple(options.items()))
    assert ProviderChoice.parse(str(choice)) == choice
    assert ProviderChoice.parse(choice.label).library is None


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="--provider is empty"):
        ProviderChoice.parse("  ")
    with pytest.raises(ConfigError, match="'threads' has another form than KEY=VALUE"):
        ProviderChoice.parse("openvino?threads")
    with pytest.raises(ConfigError, match="a is given twice"):
        ProviderChoice.parse("openvino?a=1&a=2")
    with pytest.raises(ConfigError, match="a is given twice"):
        ProviderChoice.parse("openvino?a=1").with_options(["a=2"])


def test_flags_belong_to_the_only_provider_that_is_not_the_cpu() -> None:
    assert add_options(("cpu", "cuda"), None, ()) == ("cpu", "cuda")
    assert add_options(("cpu", "ggml"), "/l/x.so", ["partial=1"]) == ("cpu", "ggml@/l/x.so?partial=1")
    assert add_options(("cpu",), None, ["a=b"]) == ("cpu?a=b",)
    with pytest.raises(ConfigError, match="name one besides cpu"):
        add_options(("cuda", "openvino"), None, ["a=b"])


def test_a_provider_of_the_table_takes_options_without_losing_its_own() -> None:
    options = get_provider("cuda?use_tf32=1").options
    assert options == {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "1"}
    assert get_provider("cuda").options["use_tf32"] == 0
    assert provider_label("ggml:cpu@/secret/path.so?partial=1") == "ggml:cpu?partial=1"


def test_openvinos_own_properties_go_where_it_takes_them() -> None:
    filled = fill_options({"INFERENCE_PRECISION_HINT": "bf16", "num_streams": "2"}, None)
    assert filled["device_type"] == "CPU" and filled["num_streams"] == "2"
    assert json.loads(filled["load_config"]) == {"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}
    given = fill_options({"load_config": '{"GPU": {"A": 1}}', "B": "2"}, "gpu")
    assert json.loads(given["load_config"]) == {"GPU": {"A": 1, "B": "2"}} and given["device_type"] == "GPU"
    assert fill_options({}, None) == {}
    for wrong in ("bf16", "[1]", "{"):
        with pytest.raises(ConfigError, match="load_config is not a JSON object"):
            fill_options({"load_config": wrong, "B": "2"}, None)


@pytest.mark.parametrize(
    ("provider", "precision"),
    [
        ("openvino?INFERENCE_PRECISION_HINT=bf16", "bf16"),
        ("openvino?INFERENCE_PRECISION_HINT=f16", "fp16"),
        ("openvino?INFERENCE_PRECISION_HINT=f32", None),
        ("openvino", None),
        ("cpu", None),
    ],
)
def test_the_precision_that_it_computes_in_is_known(provider: str, precision: str | None) -> None:
    assert computed_in(provider) == precision


def test_a_precision_without_options_is_the_graphs() -> None:
    assert inference_precision({}) is None
