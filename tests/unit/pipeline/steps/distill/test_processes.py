"""Several processes on one machine, over gloo: the same losses as one."""

import csv
import os
import socket

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from pipeline.parts.index import read_index
from tests import tiny
from tests.unit.pipeline.steps.distill.runs import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    tiny.prepared(root / "index", tiny.write_images(root / "images"))
    return root / "index"


def join(process, processes, port, arguments):
    here = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in here.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(1)
    output, data, name, feed = arguments
    # A checkpoint is due at once in the first process, and never in the second: they must not wait for each other.
    train(output, data, name=name, checkpoints=output.parent / "checkpoints", **feed)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(folder):
    with (folder / "curves.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "feed"),
    [
        pytest.param("slad without dropout", {}, id="slad"),  # what is drawn inside a model differs between processes
        pytest.param("finetune_kd", {"micro_batch": 1}, id="finetune_kd, accumulating", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_of_one(tmp_path, data, name, feed):
    train(tmp_path / "one", data, name=name)
    arguments = (tmp_path / "two", data, name, feed)
    start_processes(join, args=(2, free_port(), arguments), nprocs=2, start_method="spawn")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert (tmp_path / "two/student.safetensors").is_file()


@pytest.mark.slow
def test_the_recorded_accuracy_is_that_of_the_network_that_is_kept(tmp_path, data):
    start_processes(join, args=(2, free_port(), (tmp_path / "two", data, "cnn", {})), nprocs=2, start_method="spawn")
    index, _ = read_index(data)
    with np.load(tmp_path / "two/validation_logits.npz") as logits:
        right = (logits["student"].argmax(1) == index.parts["validation"].labels).mean()
    with (tmp_path / "two/curves.csv").open() as file:
        recorded = float(list(csv.DictReader(file))[-1]["student_accuracy_percent"])
    assert recorded == pytest.approx(100 * right)
