"""A device's copy of a bucket holds what was written to the bucket; the CPU stands in for the device."""

from __future__ import annotations

import numpy as np
import pytest

from rmlora_deploy.runtime.adapters.device_bucket import DeviceBucket
from rmlora_deploy.runtime.adapters.rank_buckets import BucketShape, RankBucket


def arrays(rank: int, value: float, labels: int) -> dict[str, np.ndarray]:
    """Return one adapter of a module and a head; the head is in half precision, so that there are two element types."""
    return {
        "m.lora_A": np.full((1, 4, rank), value, np.float32),
        "m.lora_B": np.full((1, rank, 3), value, np.float32),
        "h.weight": np.full((1, 3, labels), value, np.float16),
        "h.bias": np.full((1, labels), value, np.float16),
    }


def test_a_devices_copy_holds_what_was_written_and_grows() -> None:
    bucket = RankBucket({**arrays(0, 0.0, 2)}, BucketShape(8, (16,)), 30)
    device = DeviceBucket(bucket, "cpu")

    def values(index: int) -> list[float]:
        return [
            float(device.current().arrays[name].numpy()[index].max()) for name in ("m.lora_A", "m.lora_B", "h.bias")
        ]

    first = device.current()
    assert first.arrays["m.lora_A"].shape()[0] == 8, "the whole bucket is not sent before it is used"
    for index in (1, 2):
        bucket.write(index, arrays(3, index, 5))
    assert device.current() is first, "what is written goes into its place"
    assert [values(index) for index in (1, 2)] == [[1.0] * 3, [2.0] * 3]
    bucket.write(1, arrays(3, 4.0, 5))
    assert [values(index) for index in (1, 2)] == [[4.0] * 3, [2.0] * 3]
    bucket.write(20, arrays(3, 5.0, 5))
    assert device.current().arrays["m.lora_A"].shape()[0] == 31, "it grows to the bucket's size at most"
    assert [values(index)[0] for index in (1, 2, 20)] == [4.0, 2.0, 5.0]
    assert first.arrays["m.lora_A"].numpy()[1].max() == 4.0, "a run that has begun keeps the smaller one"


def test_arrays_without_width_are_not_sent() -> None:
    adapter = {name: array for name, array in arrays(3, 2.0, 0).items() if not name.startswith("h.")}
    bucket = RankBucket({**arrays(0, 0.0, 0)}, BucketShape(8, (0,)), 4)
    device = DeviceBucket(bucket, "cpu")
    device.current()
    bucket.write(2, adapter)
    assert device.current().arrays["m.lora_A"].numpy()[2].max() == 2.0
    assert device.current().arrays["h.bias"].shape() == [5, 0]


def test_what_could_not_be_sent_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = RankBucket({**arrays(0, 0.0, 2)}, BucketShape(8, (16,)), 4)
    device = DeviceBucket(bucket, "cpu")
    device.current()
    bucket.write(2, arrays(3, 2.0, 5))
    with monkeypatch.context() as patch:
        patch.setattr(device, "_send", lambda indices: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            device.current()
    assert device.current().arrays["m.lora_A"].numpy()[2].max() == 2.0
