import json
from pathlib import Path

import pytest

from benchmarks import methods
from pipeline.base.compose import compose_params

CONFIGS = Path(__file__).parents[3] / "configs"
IMAGES = Path("/images")


def member(method, overrides, *, data="digits20", seed=0):
    path = IMAGES if data == "trashnet" else None
    return methods.Member(data=data, method=method, overrides=overrides, seed=seed, path=path)


TRIALS = [(name, trial) for name in methods.METHODS if name not in methods.CONTROLS for trial in methods.trials(name)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "trial"), TRIALS, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_every_trial_composes(method, trial):
    composed = compose_params(CONFIGS, member(method, trial).settings)
    assert composed.prepare.per_class == 20


@pytest.mark.parametrize("method", ["slad", "slad, longer", "idat", "student_only, full"])
@pytest.mark.parametrize("data", methods.DATA)
def test_every_method_composes_on_every_data_set(data, method):
    path = ["prepare.path=/images"] if data == "trashnet" else []
    composed = compose_params(CONFIGS, [*member(method, [], data=data, seed=2).settings, *path])
    assert (composed.seed, composed.prepare.split_seed) == (2, 0)
    large, small = (composed.student, composed.teacher) if method == "idat" else (composed.teacher, composed.student)
    assert large.overrides.embed_dim > small.overrides.embed_dim
    epochs = methods.DATA[data][1]
    assert composed.distill.schedule.epochs == (round(1.6 * epochs) if method == "slad, longer" else epochs)


def test_every_method_has_as_many_trials():
    counts = {name: len(list(methods.trials(name))) for name in methods.METHODS if name not in methods.CONTROLS}
    assert set(counts.values()) == {6}


def record(method, overrides, validation, *, data="digits20", seed=0, test=90.0):
    accuracies = {"validation_accuracy_percent": validation, "test_accuracy_percent": test}
    return {
        **member(method, overrides, data=data, seed=seed).identity,
        "overrides": overrides,
        "student": accuracies,
        "teacher": None if method.startswith("student_only") else accuracies,
        "cka": None if method.startswith("student_only") else {"before": 0.9, "after": 0.88, "drop_percent": 2.2},
        "trained_parameters": 1234,
        "seconds": 10.0,
        "memory_peak_mb": 500.0,
    }


def searched(method, *, best, test=50.0):
    """Records of all trials, of which the one at `best` did best on validation and worst on test."""
    return [
        record(method, trial, 95.0 if place == best else 90.0, test=test if place == best else 99.0)
        for place, trial in enumerate(methods.trials(method))
    ]


@pytest.fixture
def output(tmp_path, monkeypatch):
    path = tmp_path / "methods.jsonl"
    monkeypatch.setattr(methods, "OUTPUT", path)

    def write(*records):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in records))

    return write


def test_the_best_on_validation_is_chosen(output):
    output(*searched("slad", best=3), *searched("lora_kd", best=2))
    trials = list(methods.trials("slad"))
    assert methods.best("slad", "digits20") == trials[3]
    assert methods.best("slad, longer", "digits20") == trials[3]


@pytest.mark.parametrize("method", ["slad", "lora_kd", "finetune_kd", "student_only, lora"])
@pytest.mark.parametrize("data", ["digits5", "digits", "trashnet"])
def test_other_data_are_searched_for_the_rate_alone(output, method, data):
    found = list(methods.trials(method))[3]
    digits = searched(method, best=3)
    output(*digits)
    trials = list(methods.trials(method, data))
    assert sorted({setting for trial in trials for setting in trial if setting.startswith(methods.RATE)}) == [
        f"{methods.RATE}={rate}" for rate in methods._rates(method)
    ]
    changed = {methods.RATE, methods.TEACHER_RATE} if method == "lora_kd" else {methods.RATE}
    rest = {setting for setting in found if setting.split("=")[0] not in changed}
    for trial in trials:
        assert rest < set(trial)
        assert len(trial) == len(found)
        if method == "lora_kd":
            assert len({setting.split("=")[1] for setting in trial if setting.split("=")[0] in changed}) == 1
    done = [record(method, trial, 60.0 + place, data=data) for place, trial in enumerate(trials)]
    output(*digits, *done)
    assert methods.best(method, data) == trials[2]


def test_a_search_must_be_finished(output):
    output(*searched("slad", best=3)[1:])
    with pytest.raises(SystemExit, match="5 of 6 trials of slad are done; run .* search digits20"):
        methods.best("slad", "digits20")


def test_a_trial_that_failed_is_not_chosen(output):
    *others, last = searched("slad", best=5)
    failed = {key: last[key] for key in (*methods.IDENTITY, "overrides")} | {"failed": "error: diverged"}
    output(*others, failed)
    assert methods.best("slad", "digits20") != last["overrides"]


def test_the_table_gives_mean_and_deviation_over_seeds(output):
    best = list(methods.trials("slad"))[3]
    runs = [record("slad", best, 90.0, seed=seed, test=90.0 + seed) for seed in (1, 2)]
    other = record("slad", ["distill.rank=2"], 90.0, test=10.0)  # of an earlier search
    output(
        *(entry for name in set(methods.METHODS) - {"slad", *methods.CONTROLS} for entry in searched(name, best=0)),
        *searched("slad", best=3, test=90.0),  # the best trial is the run of the first seed
        *runs,
        other,
    )
    text = methods.table(["digits20"])
    assert (
        "| slad | 91.0 ± 1.0 |  | 91.0 ± 1.0 | 2.2 ± 0.0 | 1,234 | 10 | 500 | schedule.learning_rate=0.003, rank=32"
        in text
    )
    assert (
        "| student_only, full (1 of 3 seeds) | 50.0 | -40.0 |  |  | 1,234 | 10 | 500 | schedule.learning_rate=0.0003"
        in text
    )


def test_what_was_run_is_not_run_again_and_a_failure_ends_nothing(output, monkeypatch):
    trials = list(methods.trials("probe_kd"))
    output(*(record("probe_kd", trial, 90.0) for trial in trials[2:]))
    started = []

    def run(command, **_options):
        started.append(command)
        return methods.subprocess.CompletedProcess(command, 255, "", "x\nerror: diverged\nERROR: failed to reproduce")

    monkeypatch.setattr(methods.subprocess, "run", run)
    assert methods.study("search", "digits20", ["probe_kd"], path=None) == 2
    assert [command[1:4] for command in started] == [["exp", "run", "--temp"]] * 2
    assert all(trial[0] in command for trial, command in zip(trials, started, strict=False))
    assert [entry["failed"] for entry in methods.records() if "failed" in entry] == ["error: diverged"] * 2
    assert methods.study("search", "digits20", ["probe_kd"], path=None) == 0
    assert len(started) == 2


def test_a_folder_is_quoted(output, monkeypatch):
    output(*searched("probe_kd", best=0))
    commands = []

    def run(command, **_options):
        commands.append(command)
        return methods.subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(methods.subprocess, "run", run)
    methods.study("search", "trashnet", ["probe_kd"], path=Path("/it's, mine"))
    setting = next(part for part in commands[0] if part.startswith("prepare.path="))
    composed = compose_params(CONFIGS, [*member("probe_kd", [], data="trashnet").settings, setting])
    assert composed.prepare.path == "/it's, mine"
