"""The one type that timm's classifiers have in common."""

from typing import Any, TypeAlias

Network: TypeAlias = Any
"""A classifier of timm: an `nn.Module` with `forward_features`, `forward_head` and `get_classifier`, whose transformers
also have `blocks`, `embed_dim` and `num_prefix_tokens`. timm is untyped, and torch types every attribute of a module as
`Tensor | Module`."""
