from pathlib import Path

import numpy as np

from deploy.data import Item
from deploy.measure.record import write_record

ITEMS = [Item('a,"b.png', Path("a"), 0, ""), Item("ü.png", Path("b"), 1, "")]
ANSWERS = {"file": [0, 1], "allow_pickle": [1, None]}
SAMPLES = {"file/SingleStream": np.array([1234567, 5])}
LOGITS = {"file": np.eye(2, dtype=np.float32), "allow_pickle": np.eye(2, dtype=np.float32)[::-1]}


def test_raw_data_survives_awkward_names(tmp_path):
    write_record(tmp_path, {"schema": 1}, items=ITEMS, samples=SAMPLES, answers=ANSWERS, logits=LOGITS)
    with np.load(tmp_path / "logits.npz", allow_pickle=False) as archive:
        assert archive.files == ["file", "allow_pickle"]
        for name, expected in LOGITS.items():
            np.testing.assert_array_equal(archive[name], expected)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["file/SingleStream"], [1234567, 5])
        assert archive["file/SingleStream"].dtype == np.int64
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8") == (
        'path,label,file,allow_pickle\n"a,""b.png",0,0,1\nü.png,1,1,\n'
    )
