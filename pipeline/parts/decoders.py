"""Decoders that turn the patch tokens of a vision transformer into a class per pixel.

Marrie et al., "On Good Practices for Task-Specific Distillation of Large Pretrained Visual Models" (TMLR 2024), adapt
teacher and student to segmentation with a linear decoder, or a light one of convolutions, on the last block's tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.base.errors import ModelError
from pipeline.parts.network import Network

KINDS = ("linear", "conv")
HIDDEN = 128  # channels of the decoder of convolutions


class PatchDecoder(nn.Module):
    """Maps tokens of shape (batch, prefix + h * w, width) to logits of shape (batch, classes, height, width).

    The tokens of the prefix are left out; the logits of the patches are resized bilinearly to the image's size.

    Args:
        kind: "linear": one linear layer per token; "conv": width -> 128 per token, then two convolutions of 3 x 3.
        width: of the tokens.
        classes: number of classes.
        prefix: tokens before those of the patches, such as the class token and registers.
        grid: patches of an image, (h, w).
        size: of an image in pixels, (height, width).
    """

    def __init__(
        self, kind: str, *, width: int, classes: int, prefix: int, grid: tuple[int, int], size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.prefix, self.grid, self.size = prefix, grid, size
        inner = classes if kind == "linear" else HIDDEN
        self.project = nn.Linear(width, inner)
        # GELU, whose quantiser can be signed; behind a ReLU it is unsigned, and loses a bit when made signed.
        self.refine = (
            nn.Identity()
            if kind == "linear"
            else nn.Sequential(
                nn.GELU(),
                nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(HIDDEN, classes, 3, padding=1),
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits of every pixel."""
        patches = self.project(tokens[:, self.prefix :])
        maps = patches.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(self.refine(maps), size=self.size, mode="bilinear", align_corners=False)


def add_decoder(model: Network, kind: str, *, classes: int, role: str) -> None:
    """Puts a decoder in the place of a transformer's head, so that it returns logits per pixel.

    What trains, saves or measures a head finds the decoder where it looks for one, `get_classifier()`.

    Raises:
        ModelError: the model has no patches in a grid, or they do not cover the image.
    """
    patches: Network = getattr(model, "patch_embed", None)
    grid, size = (getattr(patches, name, None) for name in ("grid_size", "img_size"))
    if grid is None or size is None or not hasattr(model, "num_prefix_tokens"):
        msg = f"`{role}.model` is a {type(model).__name__} without a grid of patches; segmentation needs a plain ViT"
        raise ModelError(msg)
    ratio = patches.feat_ratio()
    strides = (ratio, ratio) if isinstance(ratio, int) else tuple(ratio)
    covered = tuple(count * stride for count, stride in zip(grid, strides, strict=True))
    if covered != tuple(size):
        msg = (
            f"`{role}.model` sees {covered[0]} x {covered[1]} of {size[0]} x {size[1]} pixels in patches of "
            f"{strides[0]} x {strides[1]}, and its masks would be displaced; set `preprocess.crop` to {list(covered)}"
        )
        raise ModelError(msg)
    model.reset_classifier(0, "")
    model.head = PatchDecoder(
        kind, width=model.num_features, classes=classes, prefix=model.num_prefix_tokens, grid=grid, size=size
    )
    model.num_classes = classes
