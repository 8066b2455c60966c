"""Groups of layers that are quantised, or left in high precision, together: a block's qkv, proj, fc1 and fc2, ..."""

import re

import onnx

WEIGHTED = ("MatMul", "Gemm", "Conv")
BLOCK = re.compile(r"(?P<block>(?:.*\.)?blocks\.\d+)\.(?P<rest>.+)")
# timm's names within a block. Gated MLPs have fc1_g and fc1_x, EVA-02 apart from those q_proj, k_proj and v_proj.
MEMBERS = {
    "qkv": re.compile(r"attn(\.(qkv|[qkv]_proj))?$"),  # a call of the weights alone belongs to attn itself
    "proj": re.compile(r"attn\.proj$"),
    "fc1": re.compile(r"mlp\.(fc1|fc1_[gx]|w1|w2|w12)$"),
    "fc2": re.compile(r"mlp\.(fc2|w3)$"),
}


def group_of(module: str) -> str:
    """Returns the group of a layer by its path in the network, "blocks.3.attn.q_proj" -> "blocks.3.qkv".

    A layer that is in no transformer block is a group of its own but for the head's and the patch embedding's; so is
    every convolution of a CNN.
    """
    within = BLOCK.fullmatch(module)
    if within:
        name = next((name for name, pattern in MEMBERS.items() if pattern.search(within["rest"])), None)
        return f"{within['block']}.{name}" if name else module
    first = module.split(".", maxsplit=1)[0]
    return first if first in {"patch_embed", "head"} else module


def module_of(node: str) -> str:
    """Returns the path of the layer that a node of an exported graph belongs to: what stands before the slash."""
    return node.split("/", maxsplit=1)[0]


def groups_of(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Returns the nodes with weights of each group of an exported graph, in the order of the graph.

    A node has weights where its second input is a constant; attention's two MatMuls have none.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    groups: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constants:
            groups.setdefault(group_of(module_of(node.name)), []).append(node.name)
    return groups
