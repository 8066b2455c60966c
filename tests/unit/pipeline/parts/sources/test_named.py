"""The sources that timm reads, each from files that the test writes in the source's own format."""

import io
import json
import struct
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.parts.sources import named
from pipeline.parts.sources.listing import ALL
from pipeline.parts.sources.named import write_named

# The readers leave tar files to the garbage collector.
leaves_tar_open = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def picture(number, form="PNG"):
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_tar(path):
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            content = picture(number, "JPEG")
            member = tarfile.TarInfo(f"{'cat' if number % 2 else 'dog'}/{number}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_mnist(root, *, count=6):
    """The files of torchvision's MNIST, with fewer images."""
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


@leaves_tar_open
def test_a_tar_file_is_copied_byte_by_byte(tmp_path):
    write_tar(tmp_path / "images.tar")
    listing = write_named(
        tmp_path / "out", name="", root=tmp_path / "images.tar", splits={"train": "train"}, download=False
    )
    assert listing.labels == ("cat", "dog")
    assert list(listing.parts) == [ALL]
    written = {(listing.root / item.path).read_bytes(): listing.labels[item.label] for item in listing.parts[ALL]}
    assert written == {picture(number, "JPEG"): "cat" if number % 2 else "dog" for number in range(6)}
    assert all(item.path.endswith(".jpg") for item in listing.parts[ALL])


def test_torchvisions_sets_become_files(tmp_path):
    write_mnist(tmp_path)
    listing = write_named(
        tmp_path / "out",
        name="torch/mnist",
        root=tmp_path,
        splits={"train": "train", "test": "test"},
        download=False,
    )
    assert len(listing.labels) >= 6
    assert {name: len(items) for name, items in listing.parts.items()} == {"train": 6, "test": 6}
    assert [item.label for item in listing.parts["train"]] == [0, 1, 2, 3, 4, 5]
    with Image.open(listing.root / listing.parts["train"][0].path) as image:
        assert image.size == (28, 28)


def test_hugging_face_sets_keep_their_files_and_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    content = {"image": [{"bytes": picture(n, "JPEG"), "path": None} for n in range(6)], "label": [0, 1, 0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    datasets.Dataset.from_dict(content, features=features).to_parquet(str(tmp_path / "source/train.parquet"))
    listing = write_named(
        tmp_path / "out",
        name=f"hfds/{tmp_path / 'source'}",
        root=tmp_path / "cache",
        splits={"train": "train"},
        download=False,
    )
    assert listing.labels == ("dog", "cat")
    assert [item.label for item in listing.parts[ALL]] == [0, 1, 0, 1, 0, 1]
    written = [(listing.root / item.path).read_bytes() for item in listing.parts[ALL]]
    assert written == [image["bytes"] for image in content["image"]]


def write_shards(root, *, broken=False):
    """Two shards of webdataset, as its tools write them."""
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number in range(3 * shard, 3 * shard + 3):
                image = b"no image" if broken and number == 4 else picture(number)
                for suffix, content in (("png", image), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    split = {"name": "train", "num_samples": 6, "filenames": ["0.tar", "1.tar"], "shard_lengths": [3, 3]}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))


def of_shards(tmp_path):
    splits = {"train": "train"}
    return write_named(tmp_path / "out", name="wds/some", root=tmp_path / "shards", splits=splits, download=False)


@leaves_tar_open
def test_webdataset_shards_become_files(tmp_path):
    pytest.importorskip("webdataset")
    write_shards(tmp_path / "shards")
    listing = of_shards(tmp_path)
    assert listing.labels == ("0", "1")
    assert [item.label for item in listing.parts[ALL]] == [0, 1, 0, 1, 0, 1]
    for number, item in enumerate(listing.parts[ALL]):
        with Image.open(listing.root / item.path) as image:
            assert np.array_equal(image, np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@leaves_tar_open
def test_what_webdataset_leaves_out_is_told(tmp_path):
    pytest.importorskip("webdataset")
    write_shards(tmp_path / "shards", broken=True)
    with pytest.raises(DataError, match="split 'train' of 'wds/some' gave 5 images of the 6 it says it holds"):
        of_shards(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch/nothing", r"split 'train' of data set 'torch/nothing' cannot be opened \(Unknown torchvision dataset"),
        ("torch/mnist", "cannot be opened .*Dataset not found"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, name, words):
    with pytest.raises(DataError, match=words) as caught:
        write_named(tmp_path / "out", name=name, root=tmp_path, splits={"train": "train"}, download=False)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)  # it may have been imported before
    with pytest.raises(DataError, match="data set 'hfds/a/b' needs a package that is not installed"):
        write_named(tmp_path / "out", name="hfds/a/b", root=None, splits={"train": "train"}, download=False)


class Synonyms:
    """A data set whose classes have several names each, as torchvision's ImageNet."""

    def __init__(self, labels):
        self.labels = labels
        self.class_to_idx = {"tench": 0, "Tinca tinca": 0, "goldfish": 1, "Carassius auratus": 1}

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, place):
        return Image.new("RGB", (4, 4)), self.labels[place]


def test_a_class_has_the_first_of_its_names(tmp_path, monkeypatch):
    monkeypatch.setattr(named, "_open", lambda *_: Synonyms([1, 0, 1]))
    listing = write_named(tmp_path / "out", name="some", root=None, splits={"train": "train"}, download=False)
    assert listing.labels == ("tench", "goldfish")


def test_an_image_of_a_class_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(named, "_open", lambda *_: Synonyms([0, 2]))
    with pytest.raises(DataError, match="data set 'some' has 2 names of classes, but an image of class 2"):
        write_named(tmp_path / "out", name="some", root=None, splits={"train": "train"}, download=False)
