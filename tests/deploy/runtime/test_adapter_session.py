"""The cache evicts the least recently used, an index in use is never written, and no row ever gets another row's adapter."""

from __future__ import annotations

import threading
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rmlora.errors import ConfigError, InputError
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter, write_onnx_adapter
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey, AdapterName, AdapterRef, resolve_choices
from rmlora_deploy.runtime.adapters.cache import AdapterCache
from rmlora_deploy.runtime.adapters.rank_buckets import BASE_INDEX, BucketShape, RankBucket, RankBuckets
from tests.helpers.branch_graphs import Branched, make_adapters, make_branched
from tests.helpers.exports import export
from tests.helpers.models import lora_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Branched:
    directory = tmp_path_factory.mktemp("runtime")
    (directory / "onnx").mkdir()
    graph = export("bert", directory / "onnx" / "model.onnx", optimized=True)
    configs = {f"a{rank}": lora_config("bert", r=rank) for rank in (1, 3, 8, 12)}
    return make_branched("bert", graph, directory, make_adapters("bert", directory, configs))


def arrays(rank: int = 2, value: float = 1.0, **more: np.ndarray) -> dict[str, np.ndarray]:
    factors = {
        "m.lora_A": np.full((1, 4, rank), value, np.float32),
        "m.lora_B": np.full((1, rank, 3), value, np.float32),
    }
    return {**factors, **more}


def head(labels: int, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"h.weight": np.full((1, 3, labels), value, np.float32), "h.bias": np.full((1, labels), value, np.float32)}


def make_cache(capacity: int, bucket_capacity: int = 8) -> AdapterCache:
    return AdapterCache(capacity, RankBuckets({**arrays(0), **head(2, 0.5)}, bucket_capacity))


def use(cache: AdapterCache, *names: AdapterName) -> None:
    with cache.held(AdapterRef(name) for name in names):
        pass


def test_the_least_recently_used_is_evicted_and_never_a_pinned_one() -> None:
    cache = make_cache(2)
    for name in "abc":
        cache.register(name, arrays)
    cache.pin("a")
    for name in "abab":
        use(cache, name)
    assert (cache.cached, cache.hits, cache.misses) == (["a", "b"], 2, 2)
    use(cache, "c", "c")
    assert (
        cache.cached,
        cache.evictions,
        cache.hits,
        cache.misses,
    ) == (["a", "c"], 1, 3, 3)
    cache.unregister("a")
    assert (cache.names, cache.cached) == (["b", "c"], ["c"])


def test_the_caches_errors_name_what_is_registered() -> None:
    cache = make_cache(2)
    with pytest.raises(InputError, match="no adapter 'x': none is registered"):
        use(cache, "x")
    cache.register("a", arrays)
    with pytest.raises(InputError, match="no adapter 'x': known are a"):
        cache.unregister("x")
    with pytest.raises(ConfigError, match="an adapter 'a' already: unload it first"):
        cache.register("a", arrays)
    with pytest.raises(ConfigError, match="at least one adapter, not 0"):
        make_cache(0)
    cache.register("b", arrays)
    cache.pin("a")
    with pytest.raises(ConfigError, match="All 2 adapters that the cache holds would be pinned"):
        cache.pin("b")


def test_an_index_in_use_is_not_written_whatever_is_evicted_or_unloaded() -> None:
    cache = make_cache(1, bucket_capacity=3)
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        cache.register(name, lambda value=value: arrays(value=value))  # type: ignore[misc]
    with cache.held([AdapterRef("a")]) as first:
        a = first[AdapterRef("a")]
        with cache.held([AdapterRef("b")]) as second:  # evicts a
            b = second[AdapterRef("b")]
            cache.unregister("b")
            use(cache, "c")
            use(cache, "a")
            assert a.bucket is not None and b.bucket is not None
            held = [a.bucket.arrays["m.lora_A"][item.index].max() for item in (a, b)]
            assert held == [1.0, 2.0]
    assert len(a.bucket.free) == 2, "every other index is free again"


def test_a_batch_waits_until_an_index_is_free() -> None:
    cache = make_cache(1, bucket_capacity=1)
    cache.register("a", arrays)
    cache.register("b", arrays)
    with ThreadPoolExecutor(1) as other:
        with cache.held([AdapterRef("a")]):
            waiting = other.submit(use, cache, "b")
            with pytest.raises(futures.TimeoutError):
                waiting.result(0.2)
        waiting.result(60)
    assert cache.cached == ["b"]


def test_a_failed_read_leaves_nothing_behind_and_every_caller_gets_the_error() -> None:
    cache = make_cache(2, bucket_capacity=2)
    gate, calls = threading.Barrier(2, timeout=60), []

    def broken() -> dict[str, np.ndarray]:
        calls.append(1)
        if len(calls) == 1:
            gate.wait()
        raise InputError("gone")

    cache.register("a", broken)
    with ThreadPoolExecutor(2) as callers:
        asked = [callers.submit(use, cache, "a") for _ in range(2)]
        gate.wait()
        for future in asked:
            with pytest.raises(InputError, match="gone"):
                future.result(60)
    assert (cache.cached, len(calls)) == ([], 2)
    cache.register("b", arrays)
    use(cache, "b")
    assert cache.cached == ["b"]


def test_prefetched_adapters_count_once_and_fill_at_most_half_of_the_capacity() -> None:
    cache = make_cache(4)
    read = threading.Semaphore(0)

    def loader() -> dict[str, np.ndarray]:
        read.release()
        return arrays()

    for name in "abcd":
        cache.register(name, loader)
        cache.prefetch(AdapterRef(name))
    assert read.acquire(timeout=60) and read.acquire(timeout=60)
    cache.prefetch(AdapterRef("nobody"))
    assert (sorted(cache.cached), cache.misses, cache.hits) == (
        ["a", "b"],
        2,
        0,
    )
    use(cache, "a")
    assert (cache.misses, cache.hits) == (2, 0)
    use(cache, "a", "c")
    assert (cache.misses, cache.hits) == (3, 1)
    cache.prefetch(AdapterRef("d"))
    assert read.acquire(timeout=60)
    use(cache, "d")
    assert (cache.misses, cache.hits) == (4, 1)


def test_a_failed_prefetch_is_tried_again_by_the_batch_that_needs_it() -> None:
    cache = make_cache(4)
    answers = iter([InputError("not yet"), arrays()])

    def loader() -> dict[str, np.ndarray]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    tried = threading.Event()
    cache.register("a", loader)
    cache.prefetch(AdapterRef("a"))
    cache._reader.submit(tried.set)
    assert tried.wait(60)
    assert cache.cached == []
    use(cache, "a")
    assert cache.cached == ["a"]


def test_a_batch_does_not_wait_for_prefetches_queued_before_its_own() -> None:
    cache, gate = make_cache(4), threading.Event()
    cache.register("slow", lambda: arrays() if gate.wait(60) else {})
    cache.register("a", arrays)
    cache.prefetch(AdapterRef("slow"))
    cache.prefetch(AdapterRef("a"))
    use(cache, "a")
    assert (cache.misses, cache.hits) == (2, 0)
    gate.set()
    use(cache, "slow", "a")
    assert (cache.misses, cache.hits) == (2, 1)


def test_a_freed_index_wakes_the_batch_that_waits_for_that_bucket() -> None:
    cache = make_cache(1, bucket_capacity=1)
    for name, rank in (("s1", 8), ("s2", 8), ("b1", 16), ("b2", 16)):
        cache.register(name, lambda rank=rank: arrays(rank))  # type: ignore[misc]
    with ThreadPoolExecutor(2) as others:
        with cache.held([AdapterRef("s1")]):
            with cache.held([AdapterRef("b1")]):
                small = others.submit(use, cache, "s2")
                large = others.submit(use, cache, "b2")
                with pytest.raises(futures.TimeoutError):
                    small.result(0.2)
            large.result(60)
        small.result(60)


def test_without_a_prefetch_thread_the_batch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(4)
    cache.register("a", arrays)

    def refuse(job: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(cache._reader, "submit", refuse)
    cache.prefetch(AdapterRef("a"))
    assert cache.cached == []
    use(cache, "a")
    assert cache.cached == ["a"]


@pytest.mark.parametrize("from_file", [False, True])
def test_an_index_keeps_nothing_of_the_adapter_written_there_before(from_file: bool, tmp_path: Path) -> None:
    def given(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not from_file:
            return arrays
        write_onnx_adapter(tmp_path / "a.onnx_adapter", arrays)
        return read_onnx_adapter(tmp_path / "a.onnx_adapter")  # type: ignore[return-value]

    bucket = RankBucket({**arrays(0), **head(2, 0.5)}, BucketShape(8, (4,)), 2)
    bucket.write(1, given(arrays(8, 3.0, **head(4, 3.0))))
    assert all((array[1] == 3.0).all() for array in bucket.arrays.values())
    bucket.write(1, given(arrays(2, 2.0)), 0.5)
    A, B = (bucket.arrays[f"m.lora_{part}"][1] for part in "AB")
    product = A @ B
    np.testing.assert_array_equal(product, np.full((4, 3), 2 * 2.0 * 1.0, np.float32))
    np.testing.assert_array_equal(bucket.arrays["h.bias"][1], [0.5, 0.5, 0, 0])
    bucket.write(1, given(head(4)))
    assert not bucket.arrays["m.lora_A"][1].any() and not bucket.arrays["m.lora_B"][1].any()
    assert (bucket.arrays["h.weight"][1] == 1).all()
    assert (
        not bucket.arrays["m.lora_B"][BASE_INDEX].any()
        and (bucket.arrays["h.bias"][BASE_INDEX] == [0.5, 0.5, 0, 0]).all()
    )


def test_adapters_of_similar_size_share_a_bucket() -> None:
    buckets = RankBuckets({**arrays(0), **head(2)}, 4)
    small = buckets.bucket_for(arrays(3, **head(5)))
    assert buckets.bucket_for(arrays(8)) is small
    assert buckets.bucket_for(arrays(9)) is not small
    assert buckets.bucket_for(arrays(8, **head(17))).arrays["h.bias"].shape == (5, 32)


def test_arrays_gathered_on_the_host_give_the_output_of_arrays_gathered_in_the_graph(made: Branched) -> None:
    names = ["a3", None, "a8", "a3"]
    session, inputs = made.session(), made.inputs(batch=4)
    expected = session.run(inputs, names)
    alone = session.run(inputs, "a3")
    session._zero_copy = False  # as a provider that may copy what is bound
    for _ in range(2):
        for row, answer in zip(session.run(inputs, names), expected, strict=True):
            np.testing.assert_array_equal(row, answer)
        np.testing.assert_array_equal(np.stack(session.run(inputs, "a3")), np.stack(alone))


def test_two_generations_of_a_name_are_two_adapters() -> None:
    cache = make_cache(4)
    old, new = AdapterKey("spam", 1), AdapterKey("spam", 2)
    cache.register(old, lambda: arrays(value=1.0))
    cache.register(new, lambda: arrays(value=2.0))
    cache.register("spam", lambda: arrays(value=3.0))
    with cache.held([AdapterRef(old), AdapterRef(new), AdapterRef("spam")]) as held:
        values = [item.bucket.arrays["m.lora_A"][item.index].max() for item in held.values() if item.bucket is not None]
        assert values == [1.0, 2.0, 3.0]
    cache.unregister(old)
    assert cache.names == [new, "spam"]
    assert cache.cached == [new, "spam"]
    with pytest.raises(InputError, match="no adapter 'spam': known are spam"):
        use(cache, old)


def test_every_row_gets_one_choice() -> None:
    assert resolve_choices(AdapterKey("a", 1), 2) == [AdapterRef(AdapterKey("a", 1))] * 2
    assert resolve_choices(["a", AdapterRef("b", 0.5)], 2) == [AdapterRef("a"), AdapterRef("b", 0.5)]
    assert resolve_choices("a", 2) == [AdapterRef("a")] * 2
    assert resolve_choices([None, {"a": 0.5}], 2) == [None, AdapterRef("a", 0.5)]
    with pytest.raises(ConfigError, match="3 rows need 3 adapters, not 1"):
        resolve_choices(["a"], 3)
    with pytest.raises(ConfigError, match="rmlora-deploy mix"):
        resolve_choices({"a": 1.0, "b": 1.0}, 1)
    with pytest.raises(ConfigError, match="must be a finite number"):
        resolve_choices({"a": float("nan")}, 1)


def test_strength_scales_the_update(made: Branched) -> None:
    session = made.session()
    inputs = made.inputs()
    full = {**made.arrays("a3")}
    half = {name: array * np.float32(0.5) if name.endswith("lora_B") else array for name, array in full.items()}
    session.register("half", lambda: half)
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
    session.register("other", arrays)
    with pytest.raises(InputError, match="no LoRA input: it was made for another graph"):
        session.run(inputs, "other")
    some = made.arrays("a3")
    first = next(iter(some))
    session.register("half", lambda: {name: array for name, array in some.items() if name != first})
    session.register("two rows", lambda: {**some, first: np.repeat(some[first], 2, axis=0)})
    with pytest.raises(InputError, match="do not belong together, or only one of them"):
        session.run(inputs, "half")
    with pytest.raises(InputError, match="it was made for another graph"):
        session.run(inputs, [None, "two rows", None])
    assert session.cache.cached == []


def test_threads_that_run_register_and_unload_never_get_a_wrong_row(made: Branched) -> None:
    session = made.session(max_active_adapters=2, max_concurrent_runs=2)
    names = list(made.adapters)
    inputs = made.inputs(batch=4)
    expected = {name: np.stack(session.run(inputs, name)) for name in names}
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(60):
            chosen = [names[i] for i in rng.integers(0, len(names), 4)]
            extra = f"t{seed}-{turn}"
            session.register(extra, lambda: made.arrays("a1"))
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
    assert session.cache.names == sorted(names)
    assert session.cache.evictions > 0
