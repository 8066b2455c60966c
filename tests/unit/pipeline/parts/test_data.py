import numpy as np
import pytest
import torch

from pipeline.base.errors import ParamsError
from pipeline.parts.data import Augment, Images, ImageStream, Mixing, evaluation_batches
from pipeline.parts.index import read_index
from tests import tiny
from tests.alone import alone

PLAIN = Augment(degrees=0, translate=0, scale=(1, 1), flip=False)
STRONG = Augment(degrees=45, translate=0.2, scale=(0.5, 1.5), flip=True)


@pytest.fixture
def index(tmp_path):
    return tiny.prepared(tmp_path / "data", tiny.write_images(tmp_path / "images")), tmp_path / "images"


def source_of(index, *, augment=None, split="train", seed=0):
    found, root = index
    transform = None if augment is None else augment.transform((-1, -1, -1))
    return Images(root, found.parts[split], load=tiny.LOAD, transform=transform, seed=seed)


def stream_of(index, *, augment=None, seed=0, batch_size=6, **options):
    return ImageStream(source_of(index, augment=augment, seed=seed), batch_size=batch_size, seed=seed, **options)


def equal(one, other):
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_images_are_what_the_device_sees(index):
    found, root = index
    items = found.parts["test"]
    images = Images(root, items, load=tiny.LOAD)
    assert len(images) == len(items)
    for index, item in enumerate(items):
        image, label = images[0, index]
        assert np.array_equal(image.numpy(), tiny.LOAD.image(root / item.path))
        assert label == item.label


def test_no_augmentation_changes_nothing(index):
    found, root = index
    item = found.parts["train"][0]
    plain = torch.from_numpy(tiny.LOAD.image(root / item.path))
    assert torch.equal(PLAIN.transform((-1, -1, -1))(plain), plain)
    assert not torch.equal(STRONG.transform((-1, -1, -1))(plain), plain)


def test_augmentation_fills_with_black():
    far = Augment(degrees=0, translate=0, scale=(0.25, 0.25), flip=False)
    moved = far.transform((-1.0, -2.0, -3.0))(torch.ones(3, 16, 16))
    assert moved[:, 0, 0].tolist() == [-1, -2, -3]


def test_order_and_changes_follow_from_the_seed_alone(index):
    torch.manual_seed(0)
    one = list(stream_of(index, augment=STRONG).batches(0, 6))
    torch.rand(7)  # what else is drawn must not matter
    again = list(stream_of(index, augment=STRONG).batches(0, 6))
    other = list(stream_of(index, augment=STRONG, seed=1).batches(0, 6))
    assert len(one) == 6
    assert equal(one, again)
    assert not torch.equal(one[0][0], other[0][0])


def test_loading_draws_nothing_from_the_global_generator(index):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(stream_of(index, augment=STRONG).batches(0, 3))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_a_stream_can_be_entered_at_any_step(index, start):
    whole = list(stream_of(index, augment=STRONG, micro_batch=3).batches(0, 9))
    entered = list(stream_of(index, augment=STRONG, micro_batch=3).batches(start, 9))
    assert equal(entered, whole[2 * start :])


def with_workers(data):
    found = read_index(data)
    here = list(stream_of(found, augment=STRONG, workers=0).batches(1, 5))
    there = list(stream_of(found, augment=STRONG, workers=2).batches(1, 5))
    assert equal(here, there)
    images = source_of(found, split="validation")
    whole = list(evaluation_batches(images, range(len(images)), batch_size=2))
    assert equal(whole, list(evaluation_batches(images, range(len(images)), batch_size=2, workers=2)))


@pytest.mark.slow
def test_worker_processes_change_nothing(index, tmp_path):
    alone(with_workers, tmp_path / "data")


def test_the_same_image_changes_from_epoch_to_epoch_and_differs_from_others(index):
    images = source_of(index, augment=STRONG)
    assert torch.equal(images[3, 1][0], images[3, 1][0])
    assert not torch.equal(images[3, 1][0], images[4, 1][0])
    drawn = {(epoch, place): images[epoch, place][0] for epoch in range(2) for place in range(3)}
    keys = list(drawn)
    assert not any(torch.equal(drawn[a], drawn[b]) for i, a in enumerate(keys) for b in keys[:i])


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own(index):
    stream = stream_of(index)
    count = stream.steps * stream.images
    assert count == 18
    orders = [stream.order(epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("processes", [2, 3, 6])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_the_shares_of_all_processes_make_the_global_batch(index, processes, micro_batch):
    whole = list(stream_of(index, augment=STRONG).batches(0, 4))
    options = {"augment": STRONG, "processes": processes, "micro_batch": micro_batch}
    streams = [stream_of(index, process=process, **options) for process in range(processes)]
    assert {stream.steps for stream in streams} == {3}
    assert {stream.images for stream in streams} == {6}
    shares = [list(stream.batches(0, 4)) for stream in streams]
    parts = streams[0].accumulation
    assert parts == (1 if micro_batch is None else 6 // processes)
    for step, batch in enumerate(whole):
        mine = [share[step * parts + part] for share in shares for part in range(parts)]
        joined = torch.cat([images for images, _ in mine]), torch.cat([labels for _, labels in mine])
        assert equal([joined], [batch])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"processes": 4}, "6 images per step do not divide evenly by 4 processes"),
        ({"micro_batch": 4}, "6 images per step do not divide evenly by 1 processes and micro-batches of 4"),
        ({"processes": 3, "batch_size": 12, "micro_batch": 3}, "by 3 processes and micro-batches of 3"),
        ({"processes": 19, "batch_size": 19}, "0 images per step"),
    ],
    ids=["processes", "micro-batches", "both", "fewer images than processes"],
)
def test_a_batch_that_cannot_be_divided_is_refused(index, options, words):
    with pytest.raises(ParamsError, match=f"{words}.*`distill.batch_size`, `distill.processes` or `distill.micro_ba"):
        stream_of(index, **options)


def test_fewer_images_than_a_batch_make_one_step_of_what_divides(index):
    stream = stream_of(index, batch_size=100, processes=4)
    assert (stream.images, stream.steps, stream.share) == (16, 1, 4)


@pytest.mark.parametrize("places", [range(9), range(1, 9, 4), [0, 8, 3], range(0)], ids=str)
def test_evaluation_sees_what_it_is_told_to(index, places):
    images = source_of(index, split="validation")
    batches = list(evaluation_batches(images, places, batch_size=2))
    assert all(len(part) <= 2 for part, _ in batches)
    seen = [image for part, _ in batches for image in part]
    assert len(seen) == len(places)
    assert all(torch.equal(image, images[0, place][0]) for place, image in zip(places, seen, strict=True))


BLENDS = {
    "mixup": Mixing(mixup=0.4),
    "cutmix": Mixing(cutmix=1.0),
    "both": Mixing(mixup=0.4, cutmix=1.0, label_smoothing=0.1),
    "smoothing": Mixing(label_smoothing=0.1),
}


@pytest.mark.parametrize("kind", BLENDS)
def test_mixing_makes_shares_of_classes_that_sum_to_one(index, kind):
    images, labels = next(iter(stream_of(index).batches(0, 1)))
    np.random.seed(0)
    mixed, targets = BLENDS[kind].transform(3)(images.clone(), labels)
    assert targets.shape == (6, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert (targets > 0).sum() > 6
    assert torch.equal(mixed, images) == (kind == "smoothing")


def test_label_smoothing_gives_its_share_to_all_classes_alike(index):
    images, labels = next(iter(stream_of(index).batches(0, 1)))
    _, targets = Mixing(label_smoothing=0.3).transform(3)(images, labels)
    expected = torch.full((6, 3), 0.1)
    expected[torch.arange(6), labels] += 0.7
    torch.testing.assert_close(targets, expected)


def test_mixup_blends_images_as_it_blends_labels():
    images = torch.eye(2).reshape(2, 2, 1, 1).expand(2, 2, 4, 4).clone()  # the image tells its class
    np.random.seed(0)
    mixed, targets = Mixing(mixup=1.0).transform(2)(images, torch.tensor([0, 1]))
    torch.testing.assert_close(mixed.mean((2, 3)), targets)
    assert 0 < targets[0, 0] < 1


def test_no_mixing_is_none():
    assert Mixing().transform(3) is None
