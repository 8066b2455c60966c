import json

import pytest

from pipeline.parts.friendliness import Layer
from pipeline.parts.friendliness_record import write_friendliness

BEFORE = {
    "patch_embed.proj": Layer(4.0, 3.0, 1e4, 1.0, ""),  # 40 dB
    "blocks.0.attn.q_proj": Layer(5.0, 3.5, 1e3, 0.5, ""),
    "blocks.0.attn.k_proj": Layer(5.0, 3.5, 1e3, 1.5, ""),  # 30 dB together
    "blocks.0.mlp.fc2": Layer(9.0, 20.123, 1e2, 1.0, ""),  # 20 dB
    "blocks.0.gate": Layer(),
}
AFTER = {
    "patch_embed.proj": Layer(4.0, 3.0, 1e4, 1.0, ""),
    "blocks.0.attn.q_proj": Layer(6.0, 4.0, 1e1, 0.5, ""),
    "blocks.0.attn.k_proj": Layer(6.0, 4.0, 1e1, 1.5, ""),  # 10 dB together
    "blocks.0.mlp.fc2": Layer(None, None, 0.0, 0.0, "its output is zero"),
    "blocks.0.gate": Layer(),
    "head": Layer(50.0, 90.0, 1.0, 1.0, ""),  # 0 dB
}
MEASURED_AFTER = {
    "lowest_group": "blocks.0.qkv",
    "lowest_group_sqnr_db": 10.0,
    "median_group_sqnr_db": 25.0,
    "largest_outlier_ratio": 6.0,
    "largest_kurtosis": 4.0,
}
HEADING = (
    "layer,group,outlier_ratio_before,outlier_ratio_after,kurtosis_before,kurtosis_after,sqnr_db_before,sqnr_db_after,"
    "note"
)


def written(folder, **layers):
    write_friendliness(folder, **layers, images=7)
    return json.loads((folder / "friendliness.json").read_text())


def test_the_metric_compares_what_was_measured_before(tmp_path):
    assert written(tmp_path, before=BEFORE, after=AFTER) == {
        "schema": 1,
        "images": 7,
        "layers": 5,
        "layers_not_observed": 1,
        "before": {
            "lowest_group": "blocks.0.fc2",
            "lowest_group_sqnr_db": 20.0,
            "median_group_sqnr_db": 30.0,
            "largest_outlier_ratio": 9.0,
            "largest_kurtosis": 20.12,
        },
        "after": MEASURED_AFTER,
    }


def test_without_pretrained_weights_all_layers_count(tmp_path):
    record = written(tmp_path, before={}, after=AFTER)
    assert "before" not in record
    assert record["layers"] == 6
    assert record["after"]["lowest_group"] == "head"
    rows = (tmp_path / "friendliness.csv").read_text().splitlines()
    assert rows[-1] == "head,head,,50.0,,90.0,,0.0,"


def test_a_number_that_no_layer_has_is_absent(tmp_path):
    none = {"a": Layer()}
    record = written(tmp_path, before=none, after=none)
    assert record["before"] == record["after"] == {}


def test_the_tables_name_every_layer_and_every_group(tmp_path):
    written(tmp_path, before=BEFORE, after=AFTER)
    unused = "not observed: the network does not use its weight as it stands"
    assert (tmp_path / "friendliness.csv").read_text().splitlines() == [
        HEADING,
        "patch_embed.proj,patch_embed,4.0,4.0,3.0,3.0,40.0,40.0,",
        "blocks.0.attn.q_proj,blocks.0.qkv,5.0,6.0,3.5,4.0,33.01,13.01,",
        "blocks.0.attn.k_proj,blocks.0.qkv,5.0,6.0,3.5,4.0,28.24,8.24,",
        "blocks.0.mlp.fc2,blocks.0.fc2,9.0,,20.12,,20.0,,after: its output is zero",
        f"blocks.0.gate,blocks.0.gate,,,,,,,before: {unused}; after: {unused}",
        "head,head,,50.0,,90.0,,0.0,before: head or added by training",
    ]
    assert (tmp_path / "friendliness_groups.csv").read_text().splitlines() == [
        "group,before_db,after_db",
        "patch_embed,40.0,40.0",
        "blocks.0.qkv,30.0,10.0",
        "blocks.0.fc2,20.0,",
        "blocks.0.gate,,",
        "head,,0.0",
    ]


@pytest.mark.parametrize("file", ["friendliness.json", "friendliness.csv", "friendliness_groups.csv"])
def test_noise_of_the_machine_does_not_change_the_files(tmp_path, file):
    shaken = {n: Layer(x.outlier_ratio, x.kurtosis, x.signal * (1 + 1e-7), x.noise, x.note) for n, x in AFTER.items()}
    for name, after in (("one", AFTER), ("other", shaken)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, before=BEFORE, after=after)
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
