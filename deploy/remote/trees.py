"""What is sent to a device: folders as tables of relative path and content, whatever lies where on this machine."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle import load_bundle
from deploy.data import load_split
from deploy.errors import ImageError
from deploy.files import sha256_file


@dataclass(frozen=True)
class Blob:
    """One file's content.

    Attributes:
        sha256: of its bytes.
        size: in bytes.
        source: the file, or the bytes themselves.
    """

    sha256: str
    size: int
    source: Path | bytes


Tree = Mapping[str, Blob]
"""Contents by relative POSIX path."""


def text_blob(content: str) -> Blob:
    """Make a blob of a text."""
    data = content.encode()
    return Blob(hashlib.sha256(data).hexdigest(), len(data), data)


def bundle_tree(folder: Path) -> Tree:
    """List a bundle: the files it names, verified, and `bundle.json`.

    Raises:
        BundleError: the bundle is faulty.
    """
    bundle = load_bundle(folder)
    listed = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["files"]
    tree = {name: Blob(entry["sha256"], entry["bytes"], bundle.folder / name) for name, entry in listed.items()}
    return {"bundle.json": _file_blob(folder / "bundle.json"), **tree}


def bundles_tree(onnx_root: Path, names: Iterable[str]) -> Tree:
    """List several bundles, each in its own folder.

    Raises:
        BundleError: a bundle is faulty.
    """
    trees = {name: bundle_tree(onnx_root / name) for name in dict.fromkeys(names)}
    return {f"{name}/{path}": blob for name, tree in trees.items() for path, blob in tree.items()}


def test_split_tree(data: Path) -> Tree:
    """List the test split of a data folder as a data folder of its own, with its images and masks in `images/`.

    Files are named by the hashes of the index: one that has changed since then arrives damaged, and is told.

    Raises:
        BundleError: the index is faulty.
        ImageError: an image or mask is missing.
    """
    split = load_split(data, "test")
    files = {item.path: item.sha256 for item in split.items}
    files |= {item.mask: item.mask_sha256 for item in split.items if item.mask is not None}
    images = {}
    for path, sha256 in files.items():
        try:
            size = path.stat().st_size
        except OSError as cause:
            msg = f"test file {path}: cannot be read ({cause.strerror}); restore it, or run `dvc repro prepare`"
            raise ImageError(msg) from cause
        images[f"images/{path.relative_to(split.root).as_posix()}"] = Blob(sha256, size, path)
    index = json.loads((data / "index.json").read_text(encoding="utf-8"))
    moved = json.dumps({**index, "root": "images"}, indent=2, ensure_ascii=False)
    return {"index.json": text_blob(moved), "test.csv": _file_blob(data / "test.csv"), **images}


def hashes(tree: Tree) -> dict[str, str]:
    """Return the sha256 of each path."""
    return {name: blob.sha256 for name, blob in tree.items()}


def _file_blob(path: Path) -> Blob:
    return Blob(sha256_file(path), path.stat().st_size, path)
