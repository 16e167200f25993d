"""Factors that FSDP2 shards: two processes under ``fully_shard`` end where one process without does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rmlora.errors import ConfigError
from rmlora.sharding import is_sharded, local_part, part_of, whole, write_whole
from rmlora.training import run as training_run
from rmlora.training.settings import TrainSettings
from tests.helpers.cli import ROOT, environment
from tests.helpers.sharded_run import trained

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_sharded_processes_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *LAUNCHER, "-m", "tests.helpers.sharded_run", str(tmp_path / "two.safetensors")],
        env=environment(CUDA_VISIBLE_DEVICES="", PYTHONPATH=environment()["PYTHONPATH"] + f":{ROOT}"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = trained(tmp_path / "run of one"), load_file(tmp_path / "two.safetensors")
    assert one.keys() == two.keys() and {name.partition(" ")[0] for name in one} == {"steps", "callback"}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_not_sharded_is_neither_copied_nor_split() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    assert not is_sharded(parameter) and local_part(parameter) is parameter
    assert whole(parameter).data_ptr() == parameter.data_ptr()
    value = torch.zeros(2, 3)
    assert part_of(value, parameter) is value
    write_whole(parameter, value)
    assert not parameter.any()


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_the_command_does_not_shard(variable: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(variable, "true")
    settings = TrainSettings("base", "data.csv", tmp_path / "out")
    with pytest.raises(ConfigError, match=f"accelerate is set up for {name}"):
        training_run.train(settings)
