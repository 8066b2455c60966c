"""What a stage says as it ends."""

import io

import pytest
from torch._utils import ExceptionWrapper

from deploy.errors import ImageError
from deploy.preprocess import load_image
from stages.boundary import run
from tests import tiny


def test_an_error_of_a_process_that_loads_images_is_one_line(tmp_path):
    with pytest.raises(ImageError) as lost:
        load_image(tmp_path / "lost.png", tiny.PREPROCESS)
    # What a DataLoader makes of an error in one of its processes: the traceback there becomes the message.
    error = lost.value
    handed_on = ExceptionWrapper((type(error), error, error.__traceback__), "in DataLoader worker process 0")
    voice = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        run(handed_on.reraise, voice=voice)
    assert voice.getvalue().startswith(f"error: image {tmp_path / 'lost.png'}: no such file; restore it")
    assert voice.getvalue().count("\n") == 1
    assert ended.value.code == ImageError.exit_code
