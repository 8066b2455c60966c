"""Foundation: pretrains the small teacher on fractals, then distils a narrower, shallower student from it.

Stands in for a published foundation family where none can be downloaded: same recipe at the smallest scale, teacher
supervised on formula-drawn images (Kataoka et al. 2020), student from the teacher's features and logits.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import Tensor, nn

from pipeline.base.seeding import seed_everything
from pipeline.parts.fractals import fractal_images
from pipeline.parts.losses import distillation_kl, feature_cosine
from pipeline.parts.models import HEAD_PREFIX, ModelSpec, build_model, slice_weights
from pipeline.parts.training import Losses, Schedule, fit, make_accelerator

TEMPERATURE = 2.0
MAX_ANGLE = 0.5  # radians
MIN_ZOOM, MAX_ZOOM = 0.8, 1.3  # above 1 the picture shrinks
MAX_SHIFT = 0.2  # of half the side
COARSEST = 8  # pixels: images are degraded down to this resolution so that soft, small pictures are not foreign


class FractalBatches:
    """Shuffled batches of fractals, turned, moved, zoomed and degraded at random.

    Args:
        images: grey images of shape (count, size, size), 0 to 255.
        labels: classes of shape (count,).
        batch_size: images of shape (batch_size, 3, size, size) in [-1, 1] a step.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int) -> None:
        self._images, self._labels, self._batch = images, labels, batch_size

    def __len__(self) -> int:
        return len(self._images) // self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images))
        for step in range(len(self)):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            yield self._augment(self._images[chosen]), self._labels[chosen]

    @staticmethod
    def _augment(images: Tensor) -> Tensor:
        count, size = len(images), images.shape[-1]
        angle = (torch.rand(count) * 2 - 1) * MAX_ANGLE
        zoom = MIN_ZOOM + torch.rand(count) * (MAX_ZOOM - MIN_ZOOM)
        shift = (torch.rand(count, 2) * 2 - 1) * MAX_SHIFT
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(count, 2, 2)
        maps = torch.cat([turn * zoom[:, None, None], shift[..., None]], dim=2)
        grid = F.affine_grid(maps, [count, 1, size, size], align_corners=False)
        grey = F.grid_sample(images[:, None].float() / 255, grid, align_corners=False) * 2 - 1
        coarse = int(torch.randint(COARSEST, size + 1, ()))
        grey = F.interpolate(grey, coarse, mode="bilinear", antialias=True, align_corners=False)
        grey = F.interpolate(grey, size, mode="bilinear", align_corners=False)
        return grey.expand(-1, 3, -1, -1)


def foundation(
    output: Path,
    *,
    teacher: ModelSpec,
    student: ModelSpec,
    image_size: int,
    classes: int,
    instances: int,
    batch_size: int,
    teacher_schedule: Schedule,
    student_schedule: Schedule,
    student_init: str,
    seed: int,
) -> dict[str, float]:
    """Writes `teacher.safetensors`, `student.safetensors` (16-bit floats, no head) and `record.json` to `output`.

    Args:
        output: existing folder to write to.
        teacher: architecture of the teacher; its weights are ignored.
        student: architecture of the student; its weights are ignored.
        image_size: side of the fractals in pixels.
        classes: number of fractal classes.
        instances: fractals per class.
        batch_size: images per step.
        teacher_schedule: of the supervised pretraining.
        student_schedule: of the distillation.
        student_init: "slice" of the teacher's weights, or "random".
        seed: fixes every draw.

    Returns:
        Accuracies in percent on held-out instances of the same classes.
    """
    seed_everything(seed)
    images, labels = (
        torch.from_numpy(a.copy())
        for a in fractal_images(classes=classes, instances=instances + 2, size=image_size, seed=seed)
    )
    held = 2 * classes
    batches = FractalBatches(images[:-held], labels[:-held], batch_size=batch_size)
    test = FractalBatches(images[-held:], labels[-held:], batch_size=100)

    big = build_model(ModelSpec(teacher.model, overrides=teacher.overrides), num_classes=classes, role="teacher")
    small = build_model(ModelSpec(student.model, overrides=student.overrides), num_classes=classes, role="student")
    _pretrain(big, batches, teacher_schedule)
    record = {"teacher_accuracy_percent": _accuracy(big, test)}
    if student_init == "slice":
        slice_weights(big, small)
    _distil(big, small, batches, student_schedule)
    record["student_accuracy_percent"] = _accuracy(small, test)
    for role, model in (("teacher", big), ("student", small)):
        weights = {k: v.half() for k, v in model.state_dict().items() if not k.startswith(HEAD_PREFIX)}
        save_file(weights, output / f"{role}.safetensors")
    (output / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _pretrain(model: VisionTransformer, batches: FractalBatches, schedule: Schedule) -> None:
    accelerator = make_accelerator("auto")
    model.to(accelerator.device).train()

    def loss(images: Tensor, labels: Tensor) -> Losses:
        return {"loss": F.cross_entropy(model(images).float(), labels, label_smoothing=0.1)}

    fit(model, batches, loss=loss, schedule=schedule, accelerator=accelerator, title="foundation teacher")
    model.cpu().eval()


def _distil(teacher: VisionTransformer, student: VisionTransformer, batches: FractalBatches, plan: Schedule) -> None:
    accelerator = make_accelerator("auto")
    # The projection only lifts the student's width to the teacher's; it is dropped afterwards.
    lift = nn.Linear(student.embed_dim, teacher.embed_dim)
    trained = nn.ModuleDict({"student": student, "lift": lift}).to(accelerator.device).train()
    teacher.to(accelerator.device).eval()

    def loss(images: Tensor, _labels: Tensor) -> Losses:
        with torch.no_grad():
            target = teacher.forward_features(images)
            target_logits = teacher.forward_head(target)
        features = student.forward_features(images)
        feature = feature_cosine(lift(features), target)
        logit = distillation_kl(student.forward_head(features), target_logits, temperature=TEMPERATURE)
        return {"loss": feature + logit, "feature": feature, "logit": logit}

    fit(trained, batches, loss=loss, schedule=plan, accelerator=accelerator, title="foundation student")
    student.cpu().eval()
    teacher.cpu()


@torch.inference_mode()
def _accuracy(model: VisionTransformer, batches: FractalBatches) -> float:
    right = total = 0
    for images, labels in batches:
        right += int((model(images).argmax(dim=-1) == labels).sum())
        total += len(labels)
    return 100 * right / total
