"""Training on an NVIDIA GPU: run with `pytest -m gpu`."""

import pytest
import torch

from pipeline.base.errors import ModelError
from pipeline.parts.training import Phase, Run, Schedule, make_accelerator
from pipeline.steps.distill.objective import Supervised
from tests import tiny
from tests.unit.pipeline.steps.distill.runs import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def data(tmp_path):
    tiny.prepared(tmp_path / "index", tiny.write_images(tmp_path / "images"))
    return tmp_path / "index"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["slad", "finetune_kd"])
def test_a_pair_trains_and_is_saved(tmp_path, data, name, precision):
    accuracies = train(tmp_path / "out", data, name=name, precision=precision)
    assert set(accuracies) == {"teacher", "student"}
    assert (tmp_path / "out/student.safetensors").is_file()


class Greedy:
    """Batches larger than any device's memory, once they are on the device."""

    steps, images, accumulation = 4, 1 << 22, 1

    def batches(self, start, stop):
        for _ in range(start, stop):
            yield torch.zeros(1, 3, 16, 16).expand(self.images, -1, -1, -1), torch.zeros(self.images, dtype=torch.long)


def test_running_out_of_memory_names_what_to_change():
    model = tiny.model(tiny.spec(width=1024, depth=8, heads=16)).cuda()
    phase = Phase(
        name="student",
        objective=Supervised(model, role="student"),
        trained=dict(model.named_parameters()),
        schedule=Schedule(epochs=1, learning_rate=0.1, weight_decay=0.0, warmup_epochs=0, clip_norm=1.0),
    )
    run = Run(phase, Greedy(), accelerator=make_accelerator("fp32"), seed=0, title="student_only")
    with pytest.raises(
        ModelError, match="does not hold a micro-batch of 4194304 images.*`distill.micro_batch` to 2097152"
    ):
        run.train()
