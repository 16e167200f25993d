"""The bank forgets what was used longest ago, lanes keep what they hold, and no row ever gets another's adapter."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from deploy.runtime.bank import Bank
from deploy.runtime.lane import Lane, Occupant
from deploy.runtime.requests import Chosen, chosen_rows
from rmlora.errors import ConfigError, InputError
from tests.branches import Branched, make_adapters, make_branched
from tests.graphs import export
from tests.models import lora_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Branched:
    directory = tmp_path_factory.mktemp("runtime")
    (directory / "onnx").mkdir()
    graph = export("bert", directory / "onnx" / "model.onnx", optimised=True)
    configs = {f"a{rank}": lora_config("bert", r=rank) for rank in (1, 3, 8, 12)}
    return make_branched("bert", graph, directory, make_adapters("bert", directory, configs))


def arrays() -> dict[str, np.ndarray]:
    return {"m.lora_A": np.ones((1, 4, 2), np.float32), "m.lora_B": np.ones((1, 2, 3), np.float32)}


def test_the_bank_evicts_the_one_used_longest_ago_and_never_a_pinned_one() -> None:
    bank = Bank(2)
    for name in "abc":
        bank.register(name, arrays)
    bank.pin("a")
    for name in "abab":
        bank.get(name)
    assert (bank.resident, bank.hits, bank.misses) == (["a", "b"], 2, 2)
    bank.get("c")
    assert (bank.resident, bank.evictions) == (["a", "c"], 1)
    bank.unregister("a")
    assert bank.names == ["b", "c"]


def test_the_banks_errors_say_what_is_known() -> None:
    bank = Bank(2)
    with pytest.raises(InputError, match="no adapter 'x': none is loaded"):
        bank.get("x")
    bank.register("a", arrays)
    with pytest.raises(InputError, match="no adapter 'x': known are a"):
        bank.unregister("x")
    with pytest.raises(ConfigError, match="an adapter 'a' already: unload it first"):
        bank.register("a", arrays)
    with pytest.raises(ConfigError, match="at least one slot, not 0"):
        Bank(0)
    bank.register("b", arrays)
    bank.pin("a")
    with pytest.raises(ConfigError, match="All 2 slots of the bank would be pinned"):
        bank.pin("b")


def test_a_lane_writes_only_what_does_not_lie_there() -> None:
    bank = Bank(4)
    for name in "abc":
        bank.register(name, arrays)
    a, b, c = (Occupant(bank.get(name)) for name in "abc")
    defaults = {"m.lora_A": np.zeros((1, 4, 0), np.float32), "m.lora_B": np.zeros((1, 0, 3), np.float32)}
    lane = Lane(defaults, 4, 8, {})
    start = lane.copies
    places = lane.seat([a, b])
    assert lane.copies == start + 2
    assert lane.seat([b, a]) == places[::-1]
    assert lane.copies == start + 2
    lane.seat([b, c])
    assert lane.copies == start + 3
    half = lane.seat([Occupant(a.resident, 0.5), b])
    assert lane.arrays["m.lora_B"][half[0]].max() == 0.5


def test_choices_fit_the_rows() -> None:
    assert chosen_rows("a", 2) == [Chosen("a")] * 2
    assert chosen_rows([None, {"a": 0.5}], 2) == [None, Chosen("a", 0.5)]
    with pytest.raises(ConfigError, match="3 rows need 3 adapters, not 1"):
        chosen_rows(["a"], 3)
    with pytest.raises(ConfigError, match="rmlora-deploy mix"):
        chosen_rows({"a": 1.0, "b": 1.0}, 1)
    with pytest.raises(ConfigError, match="must be a finite number"):
        chosen_rows({"a": float("nan")}, 1)


def test_strength_scales_the_update(made: Branched) -> None:
    session = made.session()
    inputs = made.inputs()
    full = {**made.arrays("a3")}
    half = {name: array * np.float32(0.5) if name.endswith("lora_B") else array for name, array in full.items()}
    session.load("half", lambda: half)
    expected = session.run(inputs, "half")
    np.testing.assert_allclose(np.stack(session.run(inputs, {"a3": 0.5})), np.stack(expected), rtol=1e-6)
    mixed = session.run(inputs, [{"a3": 0.5}, "a8", None])
    np.testing.assert_allclose(mixed[0], expected[0], rtol=1e-5, atol=1e-6)


def test_wrong_inputs_and_adapters_of_another_graph_are_refused(made: Branched) -> None:
    session = made.session()
    inputs = made.inputs()
    with pytest.raises(InputError, match="lack 'attention_mask': the graph takes"):
        session.run({name: value for name, value in inputs.items() if name != "attention_mask"})
    with pytest.raises(InputError, match="no adapter 'nobody': known are a1"):
        session.run(inputs, "nobody")
    session.load("other", arrays)
    with pytest.raises(InputError, match="no slot: it is of another graph"):
        session.run(inputs, "other")


def test_threads_that_run_load_and_unload_never_get_a_wrong_row(made: Branched) -> None:
    session = made.session(bank=2, lanes=2)
    names = list(made.adapters)
    inputs = made.inputs(batch=4)
    expected = {name: np.stack(session.run(inputs, name)) for name in names}
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(60):
            chosen = [names[i] for i in rng.integers(0, len(names), 4)]
            extra = f"t{seed}-{turn}"
            session.load(extra, lambda: made.arrays("a1"))
            for row, (got, name) in enumerate(zip(session.run(inputs, chosen), chosen, strict=True)):
                if not np.allclose(got, expected[name][row], rtol=1e-5, atol=1e-6):
                    failures.append(f"{seed}/{turn}/{row}: {name}")
            alone = np.stack(session.run(inputs, extra))
            session.unload(extra)
            if not np.allclose(alone, expected["a1"], rtol=1e-5, atol=1e-6):
                failures.append(f"{seed}/{turn}: alone")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert session.bank.names == sorted(names)
    assert session.bank.evictions > 0
