"""Adapter files are read as written, errors name damaged files, and buffers never mix the content of two files."""

from __future__ import annotations

import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmlora.errors import InputError
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter, write_onnx_adapter


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {f"layer.{n}.lora_{part}": rng.random((1, n + 1, 3), np.float32) for n in range(4) for part in "AB"}
    write_onnx_adapter(tmp_path / "a.onnx_adapter", arrays)
    return tmp_path / "a.onnx_adapter", arrays


@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20),
        hnp.arrays(
            st.sampled_from([np.float32, np.float16, np.float64]),
            hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_onnxruntime_writes_is_what_is_read(
    arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("file") / "any.onnx_adapter"
    write_onnx_adapter(path, arrays)
    read = read_onnx_adapter(path)
    assert sorted(read) == sorted(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_the_error_names_a_type_that_onnxruntime_cannot_write(tmp_path: Path) -> None:
    array = np.ones((1, 2, 3), ml_dtypes.bfloat16)
    with pytest.raises(InputError, match="'x' is bfloat16"):
        write_onnx_adapter(tmp_path / "b.onnx_adapter", {"x": array})
    assert not list(tmp_path.iterdir())


def test_truncated_and_flipped_files_are_harmless_or_an_error_with_the_path(
    written: tuple[Path, dict[str, np.ndarray]],
) -> None:
    path, _ = written
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    for _ in range(300):
        copy = bytearray(whole)
        copy[rng.integers(len(copy))] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(copy))
    messages = []
    for content in damaged:
        path.write_bytes(content)
        try:
            read_onnx_adapter(path)
        except InputError as error:
            messages.append(str(error))
    assert messages and all(str(path) in message for message in messages)


def test_a_changed_file_is_read_again(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, arrays = written
    assert sorted(read_onnx_adapter(path)) == sorted(arrays)
    write_onnx_adapter(path, {"other": np.ones((1, 2, 3), np.float32)})
    np.testing.assert_array_equal(read_onnx_adapter(path)["other"], np.ones((1, 2, 3)))
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        read_onnx_adapter(path)


def test_threads_never_see_the_content_of_each_others_files(tmp_path: Path) -> None:
    files = []
    for number in range(6):
        path = tmp_path / f"{number}.onnx_adapter"
        write_onnx_adapter(path, {"x": np.full((1, 40, 8), number, np.float32)})
        files.append(path)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        held: list[tuple[int, np.ndarray]] = []
        for _ in range(300):
            number = int(rng.integers(len(files)))
            held = [*held[-3:], (number, read_onnx_adapter(files[number])["x"])]
            wrong.extend(expected for expected, array in held if not (array == expected).all())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
