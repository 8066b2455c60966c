"""Distill: trains with the chosen method and records how well teacher and student do on validation."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.base.errors import ModelError, ParamsError
from pipeline.base.progress import notice
from pipeline.base.seeding import derived, draw_from, seed_everything
from pipeline.parts.adapters.inject import adapters, prove_gradients
from pipeline.parts.checkpoints import Checkpoints, State
from pipeline.parts.data import Augment, Images, ImageStream, Mixing, evaluation_batches
from pipeline.parts.index import IGNORED, Index, Load, kept_places, read_index
from pipeline.parts.losses import CrossEntropy
from pipeline.parts.models import RANDOM, ModelSpec, build_model
from pipeline.parts.network import Network
from pipeline.parts.pixels import KeptPixels
from pipeline.parts.predict import at_once
from pipeline.parts.scores import score_of
from pipeline.parts.training import Phase, Run, make_accelerator
from pipeline.steps.distill.alignment import Alignment
from pipeline.steps.distill.method import Method
from pipeline.steps.distill.record import Record, write

PACKAGE = Path(__file__).parents[2]  # the host library


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How images reach the models.

    Attributes:
        load: decodes and preprocesses one file.
        kept: does the same with images, but keeps what it decoded; None decodes every time.
        augment: random changes to training images.
        mixing: changes to whole batches.
        black: value of a black pixel after preprocessing, per channel.
        batch_size: images per step over all processes.
        micro_batch: images per forward pass of one process; None takes its whole share, and up to 256 in validation.
        workers: processes that load images; 0 loads them in this one.
        validate_every: epochs from one validation to the next; a stage's last epoch is always validated.
        class_weights: of the cross-entropy of masks, by class; None weighs all alike.
    """

    load: Load
    kept: KeptPixels | None = None
    augment: Augment
    mixing: Mixing
    black: tuple[float, ...]
    batch_size: int
    micro_batch: int | None = None
    workers: int = 0
    validate_every: int = 1
    class_weights: tuple[float, ...] | None = None


def distill(
    output: Path,
    *,
    data: Path,
    teacher: ModelSpec,
    student: ModelSpec,
    method: Method,
    feed: Feed,
    precision: str,
    seed: int,
    checkpoints: Path | None = None,
    checkpoint_s: float = 60.0,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Trains, and writes what the later steps need to `output`.

    That is `<role>.safetensors` with everything that was trained, `metrics.json`, `curves.csv`, `cka.csv`, `cost.json`,
    and `validation_logits.npz` for the parity chain. The test split is not read.

    Args:
        output: existing folder to write to; of several processes the first one writes.
        data: folder of the index.
        teacher: architecture and weights of the teacher; not used by methods without one.
        student: architecture and weights of the student.
        method: what is trained, and how.
        feed: how images reach the models.
        precision: "auto", "fp32" or "bf16".
        seed: fixes adapters, heads, order and random changes.
        checkpoints: folder of the checkpoint that a killed run goes on from; None keeps none. It is left for the
            caller to `discard` once the output is in its place.
        checkpoint_s: seconds between two checkpoints at least.
        settings: all that decides about the result, to tell whether a checkpoint belongs to this run.

    Returns:
        Accuracy, or mean IoU, on the validation split in percent, by role.
    """
    specs = {"teacher": teacher, "student": student} if method.has_teacher else {"student": student}
    seed_everything(seed)
    index, root = read_index(data)
    _check_task(specs, index, feed)
    _check_size(specs, feed.load.image(root / index.parts["train"][0].path).shape[1:])
    _rehearse(specs, method)
    models = {role: build_model(spec, num_classes=len(index.labels), role=role) for role, spec in specs.items()}
    accelerator = make_accelerator(precision)
    session = _Session(models, method, feed=feed, index=index, root=root, accelerator=accelerator, seed=seed)
    store = None
    if checkpoints is not None:
        identity = {**(settings or {}), **_identity(specs, data)}
        main = accelerator.is_main_process
        store = Checkpoints(checkpoints, settings=identity, every_s=checkpoint_s, writes=main)
    record = session.train(store)
    if accelerator.is_main_process:
        write(output, record)
    accelerator.wait_for_everyone()
    return record.accuracies


def _rehearse(specs: Mapping[str, ModelSpec], method: Method) -> None:
    """Refuses models that the method cannot train, before any weights are fetched."""
    empty = {role: build_model(replace(spec, weights=RANDOM), num_classes=2, role=role) for role, spec in specs.items()}
    method.phases(empty.get("teacher"), empty["student"])


def _check_task(specs: Mapping[str, ModelSpec], index: Index, feed: Feed) -> None:
    """Refuses data that the models do not learn from.

    Raises:
        ParamsError: naming the keys.
    """
    if index.masked != (specs["student"].decoder is not None):
        msg = (
            f"`task` is for {'a class per image' if index.masked else 'masks'}, but the data has "
            f"{'masks' if index.masked else 'no masks'}; choose data=folder_seg for masks, other data for classes"
        )
        raise ParamsError(msg)
    if feed.class_weights is not None and len(feed.class_weights) != len(index.labels):
        msg = (
            f"`task.class_weights` holds {len(feed.class_weights)} weights for the {len(index.labels)} classes "
            f"{', '.join(index.labels)}; give one each"
        )
        raise ParamsError(msg)


def _check_size(specs: Mapping[str, ModelSpec], size: tuple[int, ...]) -> None:
    """Refuses images of another size than the networks take, before anything is loaded.

    Raises:
        ModelError: naming the sizes and the keys.
    """
    for role, spec in specs.items():
        wanted = (spec.image_size,) * 2 if isinstance(spec.image_size, int) else spec.image_size
        if wanted is not None and wanted != size:
            named = spec.image_size if isinstance(spec.image_size, int) else list(wanted)
            msg = f"`preprocess.crop` is {list(size)}, but `{role}.image_size` is {named}; make them equal"
            raise ModelError(msg)


def _identity(specs: Mapping[str, ModelSpec], data: Path) -> dict[str, str]:
    """Hashes of the data, of the weights in files and of our own code, and the versions of what trains."""
    files = {"data": data / "index.json"}
    files |= {f"{role}.weights": Path(spec.weights) for role, spec in specs.items() if Path(spec.weights).is_file()}
    hashes = {f"{name} sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items()}
    ours = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(PACKAGE.rglob("*.py")))).hexdigest()[:16]
    return {**hashes, "code sha256": ours, "torch": str(torch.__version__), "timm": timm.__version__}


class _Session:
    """One training from pretrained models to a record."""

    def __init__(
        self,
        models: Mapping[str, Network],
        method: Method,
        *,
        feed: Feed,
        index: Index,
        root: Path,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.models, self.method, self.feed, self.accelerator, self.seed = models, method, feed, accelerator, seed
        transform = feed.augment.transform(feed.black)
        self.index = index
        images = partial(Images, root, load=feed.load, kept=feed.kept, ignore=index.ignore)
        self.training = images(items=index.parts["train"], transform=transform, seed=seed)
        self.validation = images(items=index.parts["validation"])
        image = self.validation[0, 0][0]
        answer = (len(index.labels), *image.shape[1:]) if index.masked else (len(index.labels),)
        self.at_once = at_once(max(image.numel(), math.prod(answer)))
        self.places: list[int] = kept_places(len(self.validation), answer).tolist()
        self.mix = feed.mixing.transform(len(index.labels))
        for model in models.values():
            model.to(accelerator.device)
        self.alignment = Alignment(models, self._images())
        draw_from(derived(seed, "adapters"))
        self.phases = method.phases(models.get("teacher"), models["student"])
        for model in models.values():
            model.to(accelerator.device)  # the factors are new
        if index.masked:
            weights = None if feed.class_weights is None else torch.tensor(feed.class_weights)
            for phase in self.phases:
                phase.objective.cross_entropy = CrossEntropy(weights, ignored=IGNORED).to(accelerator.device)
        self._known: dict[str, float] = {}  # validation accuracy of each role, as of its last change
        self.curve: list[dict[str, Any]] = []
        self.costs: list[dict[str, Any]] = []

    def train(self, store: Checkpoints | None) -> Record:
        """Runs every phase, from the checkpoint where there is one."""
        first, run_state = self._resume(store)
        for number in range(first, len(self.phases)):
            run = self._begin(self.phases[number], run_state)
            run_state = None
            run.train(on_epoch=partial(self._end_epoch, run), checkpoints=store, around=partial(self._around, number))
            self._known.clear()  # an early stop went back to the best epoch
        accuracies = self._accuracies(list(self.models))
        return Record(
            method=self.method.name,
            models=self.models,
            trained=[parameter for phase in self.phases for parameter in phase.trained.values()],
            metric=score_of(self.index).metric,
            accuracies=accuracies,
            places=self.places,
            logits={role: self._logits(model) for role, model in self.models.items()},
            alignment=self.alignment.rows(self.models, self._images()),
            curve=self.curve,
            costs=self.costs,
        )

    def _begin(self, phase: Phase, state: State | None) -> Run:
        title = self.method.name if len(self.phases) == 1 else f"{self.method.name} {phase.name}"
        run = Run(phase, self._stream(), accelerator=self.accelerator, seed=self.seed, title=title, mix=self.mix)
        if state is None:
            self._prove()
        else:
            run.load(state)
            if self.accelerator.is_main_process:
                notice(f"{title} goes on from step {run.step} of {run.total}")
        phase.objective.train()
        return run

    def _stream(self) -> ImageStream:
        stream = ImageStream(
            self.training,
            batch_size=self.feed.batch_size,
            micro_batch=self.feed.micro_batch,
            workers=self.feed.workers,
            seed=self.seed,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        if self.mix is not None and stream.micro_batch % 2:
            msg = (
                f"mixup, cutmix and label smoothing take images in pairs, but {stream.micro_batch} are in a forward "
                f"pass; change `distill.batch_size` or `distill.micro_batch`, or set those of `augment` to 0"
            )
            raise ParamsError(msg)
        return stream

    def _prove(self) -> None:
        images = self.training[0, 0][0][None].to(self.accelerator.device)
        for model in self.models.values():
            if adapters(model):
                prove_gradients(model, images)

    def _resume(self, store: Checkpoints | None) -> tuple[int, State | None]:
        state = None if store is None else store.load()
        if state is None:
            return 0, None
        with torch.no_grad():
            for name, tensor in self._kept().items():
                tensor.copy_(state["models"][name])
        self.curve, self.costs = state["curve"], state["costs"]
        phase: int = state["phase"]
        return phase, state["run"]

    def _kept(self) -> dict[str, Tensor]:
        """Everything in the models that training changes."""
        kept: dict[str, Tensor] = {}
        for phase in self.phases:
            kept |= {name: parameter.detach() for name, parameter in phase.trained.items()}
        for role, model in self.models.items():
            kept |= {f"{role}.{name}": buffer for name, buffer in model.named_buffers()}
        return kept

    def _around(self, number: int, state: State) -> State:
        return {
            "phase": number,
            "run": state,
            "models": self._kept(),
            "curve": self.curve,
            "costs": self.costs,
        }

    def _end_epoch(self, run: Run, means: dict[str, float]) -> float | None:
        """Notes an epoch; returns the accuracy of the model that is judged, where it is this epoch's turn."""
        accuracies: dict[str, float] = {}
        if run.step == run.total or run.step // run.stream.steps % self.feed.validate_every == 0:
            # A model that this phase leaves alone was right as often an epoch ago.
            changed = {name.split(".", 1)[0] for name in run.phase.trained}
            roles = [role for role in self.models if role in changed or role not in self._known]
            self._known |= self._accuracies(roles)
            accuracies = {role: self._known[role] for role in self.models}
        rate, memory = means.pop("images_per_second"), means.pop("memory_mb")
        number = len(self.curve) + 1
        scores = {f"{role}_accuracy_percent": value for role, value in accuracies.items()}
        self.curve.append({"epoch": number, "phase": run.phase.name, **means, **scores})
        seconds = run.stream.steps * run.stream.images / rate
        self.costs.append({"epoch": number, "seconds": seconds, "images_per_second": rate, "memory_mb": memory})
        return accuracies.get(run.phase.judged)

    def _evaluation(self, places: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields validation images and targets: all of them, or those at some places."""
        # Who lowers the micro-batch is short of memory.
        size = min(self.at_once, self.feed.micro_batch or self.at_once)
        chosen = range(len(self.validation)) if places is None else places
        return evaluation_batches(self.validation, chosen, batch_size=size, workers=self.feed.workers)

    def _images(self) -> Iterable[Tensor]:
        return (images for images, _ in self._evaluation())

    @torch.inference_mode()
    def _accuracies(self, roles: Sequence[str]) -> dict[str, float]:
        """Validation accuracy, or mean IoU, in percent by role; each process counts its share of the images."""
        device = self.accelerator.device
        scores = {role: score_of(self.index) for role in roles}
        for role in roles:
            self.models[role].eval()
        mine = range(self.accelerator.process_index, len(self.validation), self.accelerator.num_processes)
        for images, targets in self._evaluation(mine):
            for role, score in scores.items():
                score.add(self.models[role](images.to(device)).argmax(1).cpu().numpy(), targets.numpy())
        for score in scores.values():
            score.counts = self.accelerator.reduce(torch.from_numpy(score.counts).to(device)).cpu().numpy()
        return {role: score.percent() for role, score in scores.items()}

    @torch.inference_mode()
    def _logits(self, model: Network) -> Tensor:
        """Logits of the validation images that later steps compare with."""
        model.eval()
        device = self.accelerator.device
        return torch.cat([model(images.to(device)).float().cpu() for images, _ in self._evaluation(self.places)])
