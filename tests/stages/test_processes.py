"""How the distill stage launches processes and ends with them."""

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

import stages.distill


def test_more_processes_than_gpus_are_refused(project, capsys, monkeypatch):
    project.set(distill__processes=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = project.run("distill", capsys, monkeypatch)
    assert result.code == 2
    assert "`distill.processes` is 2, but this machine has 1 GPU(s); lower it" in result.error


def ended(signal, *, words=None):
    def start(*_args, args, **_options):
        if words is not None:
            (args[-1] / "1").write_text(words)
        raise ProcessExitedException("ended", error_index=1, error_pid=1, exit_code=4, signal_name=signal)

    return start


def test_a_process_that_was_killed_is_named(project, capsys, monkeypatch):
    project.set(distill__processes=2)
    before = project.snapshot()
    monkeypatch.setattr(stages.distill, "start_processes", ended("SIGKILL"))
    result = project.run("distill", capsys, monkeypatch)
    assert result.code == 4
    assert "process 1 of 2 was ended by SIGKILL" in result.error
    assert project.snapshot() == before


def test_the_stage_ends_as_the_process_that_failed(project, capsys, monkeypatch):
    project.set(distill__processes=2)
    monkeypatch.setattr(stages.distill, "start_processes", ended(None, words="error: the teacher is not well\n"))
    result = project.run("distill", capsys, monkeypatch)
    assert (result.code, result.error) == (4, "error: the teacher is not well\n")


def test_a_process_that_ends_without_a_word_is_named(project, capsys, monkeypatch):
    project.set(distill__processes=2)
    monkeypatch.setattr(stages.distill, "start_processes", ended(None))
    result = project.run("distill", capsys, monkeypatch)
    assert (result.code, result.error) == (4, "error: process 1 of 2 ended with code 4 as it started\n")


@pytest.mark.slow
def test_what_meets_every_process_is_said_once(project, capfd, monkeypatch):
    project.set(distill__processes=2, student__weights="/nowhere/student.safetensors")
    result = project.run("distill", capfd, monkeypatch)
    assert result.code == 4
    assert result.error.count("/nowhere/student.safetensors") == 1
    assert result.error.startswith("error: ")
    assert result.error.count("\n") == 1


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_finished_run_leaves_no_checkpoint(project, capsys, monkeypatch, processes):
    project.set(distill__processes=processes, distill__checkpoint_seconds=0.0)
    assert project.run("distill", capsys, monkeypatch).code == 0
    assert list((project.root / "artifacts/checkpoints/distill").iterdir()) == []
