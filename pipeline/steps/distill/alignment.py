"""How alike teacher and student see the validation images, before and after training."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from pipeline.parts.adapters.sites import is_adaptable
from pipeline.parts.cka import LAST, features, linear_cka
from pipeline.parts.network import Network
from pipeline.parts.slices import layer_map

MOST_IMAGES = 1024  # kernels of n^2 are quick at this, and the estimate is unbiased at any n


class Alignment:
    """Features of the frozen pair, kept to compare the trained pair with.

    Args:
        models: by role, as they were pretrained.
        images: validation images.
    """

    def __init__(self, models: Mapping[str, Network], images: Iterable[Tensor]) -> None:
        teacher, student = models.get("teacher"), models["student"]
        self._blocks: list[tuple[int, int]] = []
        if teacher is not None and is_adaptable(teacher) and is_adaptable(student):
            depths = len(teacher.blocks), len(student.blocks)
            deep, shallow = max(depths), min(depths)
            even = layer_map(deep, shallow, "even")
            pairs = list(zip(even, range(shallow), strict=True))
            self._blocks = pairs if depths[0] >= depths[1] else [(small, large) for large, small in pairs]
        self._before = self._features(models, images)

    def _features(self, models: Mapping[str, Network], images: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
        chosen = {"teacher": [pair[0] for pair in self._blocks], "student": [pair[1] for pair in self._blocks]}
        batches: list[Tensor] = []
        for batch in images:
            batches.append(batch[: MOST_IMAGES - sum(map(len, batches))])
            if sum(map(len, batches)) == MOST_IMAGES:
                break
        return {role: features(model, batches, blocks=chosen[role]) for role, model in models.items()}

    def rows(self, models: Mapping[str, Network], images: Iterable[Tensor]) -> list[dict[str, str | float]]:
        """Compares the trained models with each other and with what they were.

        Returns:
            One row per layer: `layer`; `before` and `after`, the CKA of teacher and student when frozen and when
            trained; `teacher_kept` and `student_kept`, the CKA of each model with itself before training.
        """
        before, after = self._before, self._features(models, images)
        names = [(f"{t} {kind}", f"{s} {kind}") for t, s in self._blocks for kind in ("class", "patches")]
        rows: list[dict[str, str | float]] = []
        for theirs, ours in [*names, (LAST, LAST)]:
            if ours not in after["student"] or ("teacher" in after and theirs not in after["teacher"]):
                continue
            row: dict[str, str | float] = {"layer": LAST if ours == LAST else f"student {ours}"}
            if "teacher" in models:
                row["before"] = linear_cka(before["teacher"][theirs], before["student"][ours])
                row["after"] = linear_cka(after["teacher"][theirs], after["student"][ours])
                row["teacher_kept"] = linear_cka(before["teacher"][theirs], after["teacher"][theirs])
            row["student_kept"] = linear_cka(before["student"][ours], after["student"][ours])
            rows.append(row)
        return rows
