"""Stage distill: trains teacher and student with the chosen method."""

import argparse
import json
import logging
import os
import socket
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import PIL
import torch
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from deploy.bundle import Preprocess
from deploy.files import replaced_folder
from deploy.preprocess import fit_image, load_image, load_mask, normalised
from pipeline.base.errors import ModelError, ParamsError
from pipeline.base.methods import (
    FinetuneParams,
    IdatParams,
    JointParams,
    KdLoraParams,
    LoraKdParams,
    LoraParams,
    SladParams,
    StudentOnlyParams,
)
from pipeline.base.params import DistillStage, read_params
from pipeline.parts.adapters.sharing import Sharing
from pipeline.parts.checkpoints import discard
from pipeline.parts.data import Augment, Mixing
from pipeline.parts.index import Load
from pipeline.parts.models import ModelSpec
from pipeline.parts.pixels import KeptPixels
from pipeline.parts.training import Schedule
from pipeline.steps.distill.alone import StudentOnly
from pipeline.steps.distill.idat import Idat
from pipeline.steps.distill.joint import JointLora
from pipeline.steps.distill.method import Lora, Method
from pipeline.steps.distill.objective import Weights
from pipeline.steps.distill.staged import TRAININGS, Staged
from pipeline.steps.distill.step import Feed, distill
from stages.boundary import run

NEUTRAL = {"workers", "pixels", "checkpoint_seconds"}
"""Keys that do not decide about the result: a checkpoint is good for a run that differs in them."""


def main() -> None:
    """Reads paths and parameters, and trains, in as many processes as `distill.processes` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, DistillStage)
    processes = params.distill.processes
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        msg = f"`distill.processes` is {processes}, but this machine has {gpus} GPU(s); lower it"
        raise ParamsError(msg)
    with replaced_folder(args.output) as output:
        train = partial(_train, params, data=args.data, checkpoints=args.checkpoints, output=output)
        if processes == 1:
            train()
        else:
            _launch(train, processes)
    discard(args.checkpoints)  # not before the output is in its place


def _launch(train: "partial[None]", processes: int) -> None:
    """Trains in several processes on this machine, and exits as the first that fails, with what it says."""
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that the others are stopped is no news
    with tempfile.TemporaryDirectory() as said:
        args = (train, processes, _free_port(), Path(said))
        try:
            start_processes(_join, args=args, nprocs=processes, start_method="spawn")
        except ProcessExitedException as error:
            if error.signal_name is None:
                words = Path(said, str(error.error_index))
                if not words.is_file():
                    msg = f"process {error.error_index} of {processes} ended with code {error.exit_code} as it started"
                    raise ModelError(msg) from error
                sys.stderr.write(words.read_text(encoding="utf-8"))
                sys.exit(error.exit_code)
            msg = (
                f"process {error.error_index} of {processes} was ended by {error.signal_name}, which is what a system "
                f"does that runs out of memory; lower `distill.processes` or `distill.micro_batch`"
            )
            raise ModelError(msg) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _join(process: int, train: "partial[None]", processes: int, port: int, said: Path) -> None:
    """Trains as one of several processes on this machine; what it has to say is left in `said`."""
    here = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes, "MASTER_PORT": port}
    here["OMP_NUM_THREADS"] = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(here["OMP_NUM_THREADS"])
    os.environ.update({name: str(value) for name, value in here.items()} | {"MASTER_ADDR": "127.0.0.1"})
    # Most errors meet every process: one of them is shown.
    with (said / str(process)).open("w", encoding="utf-8") as voice:
        run(train, voice=voice)


def _train(params: DistillStage, *, data: Path, checkpoints: Path, output: Path) -> None:
    settings, preprocess = params.distill, params.preprocess
    identity = params.model_dump(mode="json")
    identity["distill"] = {key: value for key, value in identity["distill"].items() if key not in NEUTRAL}
    recipe = Preprocess(**preprocess.model_dump())
    augment = params.augment.model_dump()
    mixing = {key: augment.pop(key) for key in ("mixup", "cutmix", "label_smoothing")}
    distill(
        output,
        data=data,
        teacher=ModelSpec(**params.teacher.model_dump(), decoder=params.task.decoder),
        student=ModelSpec(**params.student.model_dump(), decoder=params.task.decoder),
        method=method_of(params),
        feed=Feed(
            load=Load.by(load_image, load_mask, preprocess=recipe),
            kept=None if settings.pixels is None else _kept(Path(settings.pixels).expanduser(), recipe),
            augment=Augment(**augment),
            mixing=Mixing(**mixing),
            black=tuple(-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)),
            batch_size=settings.batch_size,
            micro_batch=settings.micro_batch,
            workers=settings.workers,
            validate_every=settings.validate_every,
            class_weights=params.task.class_weights,
        ),
        precision=settings.precision,
        seed=params.seed,
        checkpoints=checkpoints,
        checkpoint_s=settings.checkpoint_seconds,
        settings=identity,
    )


def _kept(folder: Path, recipe: Preprocess) -> KeptPixels:
    return KeptPixels(
        folder,
        fit=partial(fit_image, preprocess=recipe),
        normalise=partial(normalised, preprocess=recipe),
        recipe=json.dumps(asdict(recipe) | {"pillow": PIL.__version__}, sort_keys=True),
    )


def method_of(params: DistillStage) -> Method:
    """Returns the method that the parameters describe."""
    settings = params.distill
    schedule = Schedule(**settings.schedule.model_dump())
    match settings:
        case JointParams():
            sharing = Sharing(share="none")
            if isinstance(settings, SladParams):
                sharing = Sharing(
                    share=settings.share,
                    layer_map=settings.layer_map,
                    subset=settings.subset,
                    private_rank=settings.private_rank,
                    student_scale=1.0 if settings.student_scale == 1 else None,
                    teacher_blocks=settings.teacher_blocks,
                    seed=params.seed,
                )
            weights = Weights(
                student=settings.weight_student,
                teacher=settings.weight_teacher,
                distillation=settings.weight_kl,
                temperature=settings.temperature,
                detach=settings.detach,
            )
            return JointLora(
                name=settings.method, lora=_lora(settings), sharing=sharing, weights=weights, schedule=schedule
            )
        case IdatParams():
            weights = Weights(
                kind=settings.loss, temperature=settings.temperature, detach=False, squared_temperature=False
            )
            return Idat(hidden=settings.hidden, weights=weights, schedule=schedule)
        case StudentOnlyParams():
            return StudentOnly(training=settings.training, lora=_lora(settings), schedule=schedule)
        case FinetuneParams() | KdLoraParams() | LoraKdParams():
            return _staged(settings, schedule)


def _staged(settings: FinetuneParams | KdLoraParams | LoraKdParams, schedule: Schedule) -> Staged:
    teacher, student = TRAININGS[settings.method]
    if isinstance(settings, LoraKdParams):
        student = settings.student_training
    return Staged(
        name=settings.method,
        teacher_training=teacher,
        student_training=student,
        lora=None if isinstance(settings, FinetuneParams) else _lora(settings),
        weights=Weights(
            student=settings.weight_student, distillation=settings.weight_kl, temperature=settings.temperature
        ),
        teacher_schedule=Schedule(**settings.teacher_schedule.model_dump()),
        schedule=schedule,
    )


def _lora(settings: LoraParams) -> Lora:
    return Lora(
        targets=settings.targets,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        norms=settings.norms,
        depth=settings.depth,
    )


if __name__ == "__main__":
    run(main)
