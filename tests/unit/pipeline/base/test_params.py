from pathlib import Path

import pytest
import yaml

from pipeline.base.errors import ParamsError
from pipeline.base.params import DistillStage, Params, TargetStage, read_params, read_target_params

ROOT = Path(__file__).parents[4]


@pytest.fixture
def params(tmp_path):
    """A copy of the committed params.yaml with changes by dotted key."""

    def write(**changes):
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        for key, value in changes.items():
            *path, last = key.split(".")
            section = content
            for part in path:
                section = section[part]
            if value is None:
                del section[last]
            else:
                section[last] = value
        target = tmp_path / "params.yaml"
        target.write_text(yaml.safe_dump(content))
        return target

    return write


def test_the_committed_parameters_are_valid():
    assert read_params(ROOT / "params.yaml", Params).distill.method == "slad"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill.rnak": 8}, "`distill.rnak` is no known key"),
        ({"distill.rank": 0}, "`distill.rank` is 0: input should be greater than or equal to 1"),
        ({"distill.layer_map": "odd"}, "`distill.layer_map` is 'odd': input should be 'even', 'first' or 'last'"),
        ({"distill.schedule.epochs": "many"}, "`distill.schedule.epochs` is 'many'"),
        ({"preprocess.crop": [32]}, "`preprocess.crop"),
        ({"distill.temperature": None}, "`distill.temperature` is missing"),
        ({"seed": -1}, "`seed` is -1"),
        ({"distill.temperature": float("inf")}, "`distill.temperature` is inf"),
        ({"augment.scale": [1.2, 0.9]}, "`augment.scale` is [1.2, 0.9]"),
        ({"distill.schedule.warmup_epochs": 99}, "`distill.schedule`: warmup_epochs 99 is not below epochs"),
        ({"prepare.test_fraction": 0.9}, "leave nothing to train on"),
        ({"teacher.weights": "random"}, "`teacher`: weights are 'random'"),
        ({"nonsense": {}}, "`nonsense` is no known key"),
        ({"targets.cpu-openvino.runtime": "tflite"}, "`targets.cpu-openvino.runtime` is 'tflite'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_its_key(params, changes, words):
    with pytest.raises(ParamsError) as caught:
        read_params(params(**changes), Params)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once(params):
    with pytest.raises(ParamsError) as caught:
        read_params(params(**{"distill.rnak": 8, "distill.rank": 0, "prepare.test_fraction": 1.5}), Params)
    assert all(key in str(caught.value) for key in ("`distill.rnak`", "`distill.rank`", "`prepare.test_fraction`"))


def test_a_stage_reads_only_its_own_sections(params):
    path = params(**{"measure.queries": 1})
    assert read_params(path, DistillStage).distill.rank > 0
    with pytest.raises(ParamsError, match=r"`measure\.queries` is 1"):
        read_params(path, Params)


def test_an_absent_file_names_the_command(tmp_path):
    with pytest.raises(ParamsError, match="slad sync"):
        read_params(tmp_path / "params.yaml", Params)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match="slad sync") as caught:
        read_params(path, Params)
    assert "\n" not in str(caught.value)


def test_an_unknown_target_lists_the_known_ones(params):
    with pytest.raises(ParamsError, match="no target 'moon' among cpu-on.*, cpu-op"):
        read_target_params(params(), TargetStage, "moon")
