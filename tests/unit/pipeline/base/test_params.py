from pathlib import Path

import pytest
import yaml

from pipeline.base.compose import compose_params, to_yaml
from pipeline.base.errors import ParamsError
from pipeline.base.methods import METHODS
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
        ({"distill.method": "slda"}, "params.yaml: `distill.method` is 'slda'; choose among slad, joint_lora, "),
        ({"distill.method": None}, "params.yaml: `distill.method` is None; choose among slad, joint_lora, "),
        ({"distill.schedule.ema": 1.0}, "`distill.schedule.ema` is 1.0"),
        ({"distill.schedule.patience": 0}, "`distill.schedule.patience` is 0"),
        ({"augment.label_smoothing": 1.0}, "`augment.label_smoothing` is 1.0"),
        ({"foundations.grey32.token_drop": 1.0}, "`foundations.grey32.token_drop` is 1.0"),
        ({"foundations.grey32.images": "photos"}, "`foundations.grey32.images` is 'photos'"),
        ({"foundations.grey32.student.schedule.epochs": 0}, "`foundations.grey32.student.schedule.epochs` is 0"),
        ({"student.image_size": None}, "`student.image_size` is missing"),
        ({"targets.cpu-openvino.runtime": 3}, "`targets.cpu-openvino.runtime` is 3"),
        ({"quantize.max_drop": -0.1}, "`quantize.max_drop` is -0.1"),
        ({"quantize.variants.int8.layers": "most"}, "`quantize.variants.int8.layers` is 'most'"),
        ({"quantize.variants.int8.smooth_quant": 2}, "`quantize.variants.int8.smooth_quant` is 2"),
        ({"quantize.variants.int8.attention": True}, "`quantize.variants.int8.attention` is no known key"),
        ({"quantize.variants.int8.rest": "bf16"}, "`quantize.variants.int8.rest` is 'bf16'"),
        ({"quantize.variants.int8.search": None}, "`quantize.variants.int8.search` is missing"),
        (
            {"quantize.variants.int8.precision": "int4"},
            "`quantize.variants.int8.precision` is 'int4'; choose among fp16,",
        ),
        ({"quantize.variants.fp32": {"precision": "fp16"}}, "`quantize.variants.fp32` has the name of the exported"),
        (
            {"quantize.variants": {}},
            "`targets.cpu-onnxruntime.variants.int8.onnx` is 'int8', but `quantize.variants` makes",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_its_key(params, changes, words):
    with pytest.raises(ParamsError) as caught:
        read_params(params(**changes), Params)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill.processes": 3}, "`distill.batch_size` 32 does not divide evenly by `distill.processes` 3"),
        ({"distill.micro_batch": 5}, "and `distill.micro_batch` 5; change one of them"),
        ({"distill.processes": 4, "distill.micro_batch": 3}, "`distill.processes` 4 and `distill.micro_batch` 3"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(params, changes, words):
    with pytest.raises(ParamsError) as caught:
        read_params(params(**changes), DistillStage)
    assert words in str(caught.value)


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 8), (2, 4), (4, 8), (2, 64)])
def test_a_batch_that_can_be_divided_is_taken(params, processes, micro_batch):
    path = params(**{"distill.processes": processes, "distill.micro_batch": micro_batch})
    assert read_params(path, DistillStage).distill.processes == processes


@pytest.mark.parametrize(("key", "method"), [("schedule", "slad"), ("teacher_schedule", "finetune_kd")])
def test_validation_less_often_than_patience_lasts_is_refused(tmp_path, key, method):
    def read(every):
        set_to = [f"method={method}", f"distill.{key}.patience=2", f"distill.validate_every={every}"]
        path = tmp_path / "params.yaml"
        path.write_text(to_yaml(compose_params(ROOT / "configs", set_to)))
        return read_params(path, DistillStage).distill

    assert read(2).validate_every == 2
    with pytest.raises(ParamsError, match=f"`distill.validate_every` 3 is more than `distill.{key}.patience` 2"):
        read(3)


@pytest.mark.parametrize(
    ("share", "private_rank", "words"),
    [
        ("hybrid", 0, "is 0; with share=hybrid give 1 to 31 of the rank"),
        ("hybrid", 32, "is 32; with share=hybrid give 1 to 31 of the rank"),
        ("hybrid", 4, None),
        ("slice", 4, "4 has no effect with share=slice; set it to 0"),
    ],
)
def test_a_private_rank_is_a_part_of_the_rank_of_hybrids_only(params, share, private_rank, words):
    path = params(**{"distill.share": share, "distill.private_rank": private_rank})
    if words is None:
        assert read_params(path, DistillStage).distill.private_rank == private_rank
        return
    with pytest.raises(ParamsError) as caught:
        read_params(path, DistillStage)
    assert f"`distill.private_rank` {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("share", "key", "value", "words"),
    [
        ("none", "layer_map", "last", "`distill.layer_map` 'last' has no effect with share=none; set it to even"),
        ("none", "subset", "random", "`distill.subset` 'random' has no effect with share=none; set it to first"),
        ("none", "teacher_blocks", "mapped", "`distill.teacher_blocks` 'mapped' has no effect with share=none"),
        ("none", "student_scale", "sqrt(D/d)", "`distill.student_scale` 'sqrt(D/d)' has no effect with share=none"),
        ("b_only", "student_scale", "sqrt(D/d)", "`distill.student_scale` 'sqrt(D/d)' has no effect with share=b_only"),
        ("b_only", "layer_map", "last", None),
        ("a_only", "student_scale", "sqrt(D/d)", None),
    ],
)
def test_what_has_no_effect_on_the_sharing_is_refused(params, share, key, value, words):
    path = params(**{"distill.share": share, f"distill.{key}": value})
    if words is None:
        assert getattr(read_params(path, DistillStage).distill, key) == value
        return
    with pytest.raises(ParamsError) as caught:
        read_params(path, DistillStage)
    assert words in str(caught.value)


# A key that the method has no use for, and which another one has.
FOREIGN = {
    "slad": "teacher_schedule",
    "joint_lora": "share",
    "lora_kd": "weight_teacher",
    "probe_kd": "rank",
    "finetune_kd": "student_training",
    "kd_lora": "detach",
    "idat": "rank",
    "student_only": "temperature",
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_refuses_keys_that_only_others_have(tmp_path, method):
    key = FOREIGN[method]
    composed = compose_params(ROOT / "configs", [f"method={method}"])
    path = tmp_path / "params.yaml"
    path.write_text(to_yaml(composed))
    assert read_params(path, DistillStage).distill.method == method
    content = yaml.safe_load(path.read_text())
    content["distill"][key] = 1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=f"`distill.{key}` is no known key"):
        read_params(path, DistillStage)


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
