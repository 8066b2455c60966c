"""Intervals of a change on the same images, against formulas and draws written out here."""

import math
from itertools import pairwise

import numpy as np
import pytest

from pipeline.parts.scores import Accuracy, MeanIoU


def accuracy_changes(before, after):
    right = [[np.array([int(each), 1]) for each in answers] for answers in (before, after)]
    return Accuracy().change(*right)


@pytest.mark.parametrize(("lost", "won", "count"), [(0, 0, 90), (3, 0, 450), (2, 7, 100)])
def test_the_interval_of_accuracy_is_that_of_agresti_and_min(lost, won, count):
    before = [True] * (count - won) + [False] * won
    after = [False] * lost + [True] * (count - lost)
    n = count + 2
    centre, spread = (won - lost) / n, (won + lost + 1 - (won - lost) ** 2 / n) / n**2
    expected = [100 * (centre + sign * 1.959964 * math.sqrt(spread)) for sign in (-1, 1)]
    assert accuracy_changes(before, after) == pytest.approx(expected, abs=1e-4)


def test_an_interval_of_accuracy_stays_possible():
    assert accuracy_changes([True] * 5, [False] * 5)[0] == -100.0


def shares(truth, answers):
    score = MeanIoU(["a", "b", "c"])
    found = []
    for image, answer in zip(truth, answers, strict=True):
        earlier = score.counts.copy()
        score.add(answer[None], image[None])
        found.append(score.share(score.counts - earlier))
    return score, found


def test_the_interval_of_mean_iou_draws_the_same_images_for_both():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, (12, 6, 6))
    hard = np.linspace(0, 0.8, 12)[:, None, None]  # some images are hard for both
    drawn, wrong = rng.random(truth.shape), rng.integers(0, 3, truth.shape)
    answers = [np.where(drawn < hard + extra, wrong, truth) for extra in (0.0, 0.1)]
    (score, before), (_, after) = (shares(truth, each) for each in answers)
    low, high = score.change(before, after)

    def mean_iou(answer, chosen):
        each = []
        for label in range(3):
            true, taken = truth[chosen] == label, answer[chosen] == label
            each.append((true & taken).sum() / (true | taken).sum())
        return 100 * np.mean(each)

    draws = [rng.integers(0, 12, 12) for _ in range(2000)]
    changes = [mean_iou(answers[1], chosen) - mean_iou(answers[0], chosen) for chosen in draws]
    apart = [mean_iou(answers[1], one) - mean_iou(answers[0], other) for one, other in pairwise(draws)]
    assert (low, high) == pytest.approx(np.quantile(changes, (0.025, 0.975)), abs=1.0)
    assert high - low < 0.9 * np.diff(np.quantile(apart, (0.025, 0.975)))[0]  # pairing narrows it
    assert score.change(before, before) == (0.0, 0.0)


def test_what_is_kept_of_an_image_is_three_numbers_a_class():
    _, found = shares(np.array([[[0, 1], [1, 2]]]), np.array([[[0, 1], [2, 2]]]))
    assert found[0].tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 2]]  # hit, of the class, taken for it
