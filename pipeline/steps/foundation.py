"""Foundation: pretrains a small teacher on drawn images, then distils a narrower, shallower student from it.

Stands in for a published foundation family where none can be downloaded: same recipe at the smallest scale, teacher
supervised on formula-drawn images (Kataoka et al. 2020), student from the teacher's features and logits. Dropping a
share of the teacher's tokens makes its pretraining cheaper in proportion (Li et al., "Scaling Language-Image
Pre-training via Masking", CVPR 2023).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.base.errors import ParamsError
from pipeline.base.seeding import derived, draw_from, seed_everything
from pipeline.parts.fractals import fractal_images
from pipeline.parts.losses import distillation_kl, feature_cosine
from pipeline.parts.models import ModelSpec, build_model
from pipeline.parts.network import Network
from pipeline.parts.scenes import scene_images
from pipeline.parts.slices import slice_weights
from pipeline.parts.training import Losses, Phase, Run, Schedule, make_accelerator

TEMPERATURE = 2.0
MAX_ANGLE = 0.5  # radians
MIN_ZOOM, MAX_ZOOM = 0.8, 1.3  # above 1 the picture shrinks
MAX_SHIFT = 0.2  # of half the side
HELD_OUT = 2  # images per class that are only looked at afterwards
MAX_TINT = 0.3  # change of a channel's contrast and of the brightness, in images with colours


class DrawnStream:
    """Shuffled batches of drawn images, turned, moved, zoomed, degraded and recoloured at random.

    The order follows from `seed` and the epoch; the changes are drawn from torch's global generator, which the training
    loop seeds at every step.

    Args:
        images: of shape (count, channels, size, size), 0 to 255; one channel is repeated to three.
        labels: classes of shape (count,).
        batch_size: images of shape (batch_size, 3, size, size) in [-1, 1] a step.
        seed: of the order.
    """

    accumulation = 1

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> None:
        self._source, self._labels, self._seed = images, labels, seed
        self.images, self.steps = batch_size, len(images) // batch_size
        if not self.steps:
            msg = f"`batch_size` {batch_size} is more than the {len(images)} images there are; lower it or draw more"
            raise ParamsError(msg)

    def batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the images and labels of steps `start` to `stop` - 1."""
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps)
            generator = torch.Generator().manual_seed(derived(self._seed, "order", epoch))
            order = torch.randperm(len(self._source), generator=generator)
            chosen = order[place * self.images : (place + 1) * self.images]
            yield self._augment(self._source[chosen]), self._labels[chosen]

    @staticmethod
    def _augment(images: Tensor) -> Tensor:
        count, channels, size = images.shape[:3]
        angle = (torch.rand(count) * 2 - 1) * MAX_ANGLE
        zoom = MIN_ZOOM + torch.rand(count) * (MAX_ZOOM - MIN_ZOOM)
        shift = (torch.rand(count, 2) * 2 - 1) * MAX_SHIFT
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(count, 2, 2)
        maps = torch.cat([turn * zoom[:, None, None], shift[..., None]], dim=2)
        grid = F.affine_grid(maps, [count, channels, size, size], align_corners=False)
        drawn = F.grid_sample(images.float() / 255, grid, align_corners=False) * 2 - 1
        coarse = int(torch.randint(size // 4, size + 1, ()))
        drawn = F.interpolate(drawn, coarse, mode="bilinear", antialias=True, align_corners=False)
        drawn = F.interpolate(drawn, size, mode="bilinear", align_corners=False)
        if channels == 1:
            return drawn.expand(-1, 3, -1, -1)
        gain = 1 + (torch.rand(count, 3, 1, 1) * 2 - 1) * MAX_TINT
        return drawn * gain + (torch.rand(count, 1, 1, 1) * 2 - 1) * MAX_TINT


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The images to pretrain on.

    Attributes:
        kind: "fractals", grey; or "scenes", in colour.
        size: side in pixels.
        classes: number of classes.
        instances: images per class.
    """

    kind: str
    size: int
    classes: int
    instances: int

    def draw(self, seed: int) -> tuple[Tensor, Tensor]:
        """Returns images of shape (count, channels, size, size), 0 to 255, and labels; two more of each class."""
        source = {"fractals": fractal_images, "scenes": scene_images}[self.kind]
        images, labels = source(classes=self.classes, instances=self.instances + HELD_OUT, size=self.size, seed=seed)
        pixels = torch.from_numpy(images.copy())
        return (pixels if pixels.ndim == 4 else pixels[:, None]), torch.from_numpy(labels.copy())


def foundation(
    output: Path,
    *,
    teacher: ModelSpec,
    student: ModelSpec,
    drawing: Drawing,
    batch_size: int,
    teacher_schedule: Schedule,
    student_schedule: Schedule,
    student_init: str,
    token_drop: float,
    precision: str,
    seed: int,
) -> dict[str, float]:
    """Writes `teacher.safetensors`, `student.safetensors` (16-bit floats, no head) and `record.json` to `output`.

    Args:
        output: existing folder to write to.
        teacher: architecture of the teacher.
        student: architecture of the student.
        drawing: the images.
        batch_size: images per step.
        teacher_schedule: of the supervised pretraining.
        student_schedule: of the distillation.
        student_init: "slice" of the teacher's weights, or "random".
        token_drop: share of the patch tokens left out while the teacher learns.
        precision: "auto", "fp32" or "bf16".
        seed: fixes every draw.

    Returns:
        Accuracies in percent on held-out instances of the same classes.
    """
    seed_everything(seed)
    accelerator = make_accelerator(precision)
    images, labels = drawing.draw(seed)
    held = HELD_OUT * drawing.classes
    stream = DrawnStream(images[:-held], labels[:-held], batch_size=batch_size, seed=seed)
    test = DrawnStream(images[-held:], labels[-held:], batch_size=min(100, held), seed=seed)

    big = build_model(_with(teacher, token_drop), num_classes=drawing.classes, role="teacher")
    small = build_model(student, num_classes=drawing.classes, role="student")
    _train("teacher", _Pretraining(big), stream, teacher_schedule, accelerator, seed)
    record = {"teacher_accuracy_percent": _accuracy(big, test)}
    if student_init == "slice":
        slice_weights(big, small)
    _train("student", _Imitation(big, small), stream, student_schedule, accelerator, seed)
    record["student_accuracy_percent"] = _accuracy(small, test)
    for role, spec, model in (("teacher", teacher, big), ("student", student, small)):
        head = f"{spec.classifier}."
        weights = {k: v.cpu().half().contiguous() for k, v in model.state_dict().items() if not k.startswith(head)}
        save_file(weights, output / f"{role}.safetensors")
    (output / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _with(spec: ModelSpec, token_drop: float) -> ModelSpec:
    return replace(spec, overrides=spec.overrides | {"patch_drop_rate": token_drop}) if token_drop else spec


class _Pretraining(nn.Module):
    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        return {"loss": F.cross_entropy(self.model(images).float(), labels, label_smoothing=0.1)}


class _Imitation(nn.Module):
    """Cosine of all tokens' features, and KL of the logits."""

    def __init__(self, teacher: Network, student: Network) -> None:
        super().__init__()
        self.student, self._teacher = student, (teacher,)  # in a tuple: it is not trained and stays in its mode
        # The projection only lifts the student's width to the teacher's; it is dropped afterwards.
        self.lift = nn.Linear(student.embed_dim, teacher.embed_dim)

    def forward(self, images: Tensor, _labels: Tensor) -> Losses:
        teacher = self._teacher[0]
        with torch.no_grad():
            target = teacher.forward_features(images)
            target_logits = teacher.forward_head(target)
        features = self.student.forward_features(images)
        feature = feature_cosine(self.lift(features), target)
        logit = distillation_kl(self.student.forward_head(features), target_logits, temperature=TEMPERATURE)
        return {"loss": feature + logit, "feature": feature, "logit": logit}


def _train(
    role: str, objective: nn.Module, stream: DrawnStream, schedule: Schedule, accelerator: Accelerator, seed: int
) -> None:
    objective.to(accelerator.device).train()
    phase = Phase(name=role, objective=objective, trained=dict(objective.named_parameters()), schedule=schedule)
    Run(phase, stream, accelerator=accelerator, seed=seed, title=f"foundation {role}").train()
    objective.eval()


@torch.inference_mode()
def _accuracy(model: Network, stream: DrawnStream) -> float:
    device = next(model.parameters()).device
    draw_from(0)
    right = total = 0
    for images, labels in stream.batches(0, stream.steps):
        right += int((model(images.to(device)).argmax(dim=-1).cpu() == labels).sum())
        total += len(labels)
    return 100 * right / total
