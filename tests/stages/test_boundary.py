"""What a stage says as it ends."""

import io
from functools import partial
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from deploy.preprocess import load_image
from stages.boundary import run
from tests import tiny
from tests.alone import alone


class Lost:
    def __len__(self):
        return 1

    def __getitem__(self, place):
        return load_image(Path("lost.png"), tiny.PREPROCESS)


def read_with_a_worker():
    voice = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        run(partial(list, DataLoader(Lost(), num_workers=1)), voice=voice)
    said = voice.getvalue()
    assert said.startswith("error: image lost.png: no such file; restore it")
    assert said.count("\n") == 1
    assert ended.value.code == 3


def test_an_error_of_a_process_that_loads_images_is_one_line():
    alone(read_with_a_worker)
