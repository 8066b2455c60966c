"""How alike two networks see the same images: linear CKA."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from pipeline.parts.decoders import PatchDecoder
from pipeline.parts.network import Network

FEWEST = 4  # the estimator divides by n - 3
LAST = "last"


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Centred kernel alignment with linear kernels, from unbiased estimates of HSIC.

    Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019), with the estimator of Song
    et al., "Feature Selection via Dependence Maximization" (JMLR 2012), eq. 5; for K = X X^T and L = Y Y^T with zero
    diagonals::

        HSIC_1(K, L) = [tr(K L) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n (n-3))
        CKA = HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L))

    The usual estimate is biased towards 1 when there are fewer images than features; this one is not, and can be a
    little below 0 for unrelated features.

    Args:
        one: features of shape (n, D).
        other: features of shape (n, d) of the same images.

    Returns:
        1 for features that are equal up to rotation and scale, about 0 for unrelated ones; NaN for fewer than 4 images
        or features without variance.
    """
    if len(one) < FEWEST:
        return float("nan")
    kernels = [_kernel(features) for features in (one, other)]
    cross, first, second = _hsic(*kernels), _hsic(kernels[0], kernels[0]), _hsic(kernels[1], kernels[1])
    spread = first * second
    return cross / spread**0.5 if spread > 0 else float("nan")


def _kernel(features: Tensor) -> Tensor:
    features = features.double()
    features = features - features.mean(0)  # leaves HSIC as it is and keeps the sums small
    return (features @ features.T).fill_diagonal_(0)


def _hsic(k: Tensor, l: Tensor) -> float:  # noqa: E741 - the formula's names
    n = len(k)
    rows_k, rows_l = k.sum(1), l.sum(1)
    total = (k * l).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_l)
    return float(total / (n * (n - 3)))


@torch.no_grad()
def features(model: Network, batches: Iterable[Tensor], *, blocks: Sequence[int] = ()) -> dict[str, Tensor]:
    """Returns what a network makes of images, per block and before its head.

    Args:
        model: any classifier of timm; left in its mode.
        batches: images of shape (batch, 3, height, width).
        blocks: indices of transformer blocks.

    Returns:
        "<i> class" and "<i> patches" of shape (n, width): the class token and the mean of the patch tokens after block
        i; "last" of shape (n, features): what the head gets, or the mean over patches of what a decoder gets.
    """
    found: dict[str, list[Tensor]] = {}

    def note(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, tokens: Tensor) -> None:
            prefix = getattr(model, "num_prefix_tokens", 1)
            if tokens.ndim == 4:  # a map of patches, without a class token
                tokens, prefix = tokens.flatten(1, 2), 0
            if prefix:
                found.setdefault(f"{index} class", []).append(tokens[:, 0].float().cpu())
            found.setdefault(f"{index} patches", []).append(tokens[:, prefix:].mean(1).float().cpu())

        return hook

    handles = [model.blocks[index].register_forward_hook(note(index)) for index in blocks]
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        for images in batches:
            pooled = model.forward_head(model.forward_features(images.to(device)), pre_logits=True)
            if isinstance(model.get_classifier(), PatchDecoder):
                pooled = pooled[:, model.num_prefix_tokens :].mean(1)
            found.setdefault(LAST, []).append(pooled.flatten(1).float().cpu())
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return {name: torch.cat(parts) for name, parts in found.items()}
