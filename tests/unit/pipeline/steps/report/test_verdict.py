from dataclasses import replace

import pytest

from pipeline.base.errors import DataError, ParamsError
from pipeline.steps.report.verdict import judge


def words_of(verdict):
    return {judged.name: judged.word for judged in verdict.variants}


def test_fastest_within_the_budget_is_chosen(variant, target):
    found = judge(
        target(variant("fp32", p90=2.0), variant("bf16", p90=1.5), variant("int8", p90=1.0, correct=966)),
        max_drop_points=1.0,
    )
    assert found.chosen == "int8"
    assert found.words == (
        "Use int8: 2.00 times as fast as fp32 (p90 1.00 ms against 2.00 ms) with no measurable difference in accuracy "
        "(96.6 % against 97.0 % on 1,000 images)."
    )
    assert words_of(found) == {"fp32": "slower", "bf16": "slower", "int8": "chosen"}
    assert found.of("int8").points == pytest.approx(-0.4)
    assert found.of("int8").speedup == pytest.approx(2.0)


def test_over_budget_is_not_chosen_however_fast(variant, target):
    found = judge(
        target(variant("fp32", p90=2.0), variant("bf16", p90=1.5), variant("int8", p90=0.5, correct=958)),
        max_drop_points=1.0,
    )
    assert found.chosen == "bf16"
    assert words_of(found)["int8"] == "over budget (-1.2 points)"
    assert "at the same accuracy (97.0 % on 1,000 images)" in found.words


# 0.3 and 0.7 are not doubles; 97.0 - 96.7 exceeds 0.3 in floating point.
@pytest.mark.parametrize(("budget", "correct"), [(0.3, 967), (0.1, 969), (0.7, 963), (1.1, 959)])
def test_budget_exactly_met_is_within(variant, target, budget, correct):
    variants = variant("fp32", p90=2.0), variant("int8", p90=1.0, correct=correct)
    assert judge(target(*variants), max_drop_points=budget).chosen == "int8"


def test_one_image_over_the_budget_is_over(variant, target):
    variants = variant("fp32", p90=2.0), variant("int8", p90=1.0, correct=966)
    found = judge(target(*variants), max_drop_points=0.3)
    assert found.chosen == "fp32"
    assert (
        found.words == "Use fp32: no other variant is within the accuracy budget of 0.3 points (int8 loses 0.4 points)."
    )
    assert words_of(found)["int8"] == "over budget (-0.4 points)"


def test_variant_over_the_targets_own_budget_is_not_chosen(variant, target):
    large = replace(variant("int8", p90=0.5), over_budget=("9 MB, at most 4 allowed",))
    found = judge(target(variant("fp32", p90=2.0), variant("bf16", p90=1.5), large), max_drop_points=1.0)
    assert found.chosen == "bf16"
    assert words_of(found)["int8"] == "over budget (9 MB, at most 4 allowed)"
    alone = judge(target(variant("fp32", p90=2.0), large), max_drop_points=1.0)
    assert alone.words == "Use fp32: no other variant is within the budgets (int8 9 MB, at most 4 allowed)."


def test_nothing_within_the_targets_own_budget_names_the_nearest(variant, target):
    slow = [
        replace(variant(name, p90=p90), over_budget=(f"p90 {p90:g} ms, at most 0.1 allowed",))
        for name, p90 in (("fp32", 2.0), ("int8", 1.0))
    ]
    found = judge(target(*slow), max_drop_points=1.0)
    assert found.words.startswith(
        "No variant keeps the budget of this target; the nearest is int8, p90 1 ms, at most 0.1 allowed."
    )
    assert {judged.status for judged in found.variants} == {"over budget"}


def test_reference_over_the_targets_own_budget(variant, target):
    base = replace(variant("fp32", p90=2.0), over_budget=("p90 2 ms, at most 1.5 allowed",))
    found = judge(target(base, variant("int8", p90=1.0)), max_drop_points=1.0)
    assert found.chosen == "int8"
    assert found.words.startswith("Use int8: 2.00 times as fast as fp32")
    assert words_of(found)["fp32"] == "over budget (p90 2 ms, at most 1.5 allowed)"


def test_budget_of_zero_admits_equal_accuracy(variant, target):
    assert judge(target(variant("fp32"), variant("int8", p90=1.0)), max_drop_points=0).chosen == "int8"


def test_nothing_within_the_budget_and_int8_slower_is_said_too(variant, target):
    found = judge(target(variant("fp32"), variant("int8", p90=2.5, correct=900)), max_drop_points=1.0)
    assert found.chosen == "fp32"
    assert "int8 loses 7.0 points" in found.words
    assert found.words.endswith("int8 (p90 2.50 ms) is not faster than fp32 (2.00 ms).")


def test_tie_goes_to_the_more_accurate(variant, target):
    found = judge(
        target(
            variant("fp32", p90=4.0),
            variant("bf16", p90=2.00, spread=0.1, correct=970),
            variant("int8", p90=1.95, spread=0.1, correct=965),
        ),
        max_drop_points=1.0,
    )
    assert found.chosen == "bf16"
    assert words_of(found)["int8"] == "equal"
    assert found.words.endswith("int8 (p90 1.95 ms) is not faster than bf16 (2.00 ms, intervals overlap).")


def test_tie_of_equal_accuracy_goes_to_the_smaller(variant, target):
    found = judge(
        target(variant("fp32", spread=0.2, size=20_000_000), variant("int8", p90=2.1, spread=0.2, size=5_000_000)),
        max_drop_points=1.0,
    )
    assert found.chosen == "int8"
    assert found.words == (
        "Use int8: it is not measurably faster than fp32 (p90 2.10 ms against 2.00 ms, intervals overlap) but as "
        "accurate (97.0 %) and smaller (5.00 MB against 20.0 MB)."
    )


def test_tie_with_the_reference_measurably_more_accurate_keeps_it(variant, target, difference):
    variants = variant("fp32", spread=0.2), variant("int8", p90=1.9, spread=0.2, correct=966, size=5_000_000)
    paired = difference("int8", "fp32", points=(-0.4, -0.7, -0.1))
    found = judge(target(*variants, differences=paired), max_drop_points=1.0)
    assert found.chosen == "fp32"
    assert words_of(found) == {"fp32": "chosen", "int8": "equal"}
    assert found.words == (
        "Use fp32: int8 is not measurably faster (p90 1.90 ms against 2.00 ms, intervals overlap), and fp32 is "
        "more accurate by 0.4 points (97.0 % against 96.6 % on 1,000 images; 95 %, paired: 0.1 to 0.7 points)."
    )


@pytest.mark.parametrize("points", [(-0.4, -0.9, 0.1), (-0.4, -0.8, 0.0), None], ids=["around 0", "from 0", "unpaired"])
def test_tie_without_a_measurable_difference_in_accuracy_is_decided_by_size(variant, target, difference, points):
    variants = variant("fp32", spread=0.2), variant("int8", p90=1.9, spread=0.2, correct=966, size=5_000_000)
    found = judge(target(*variants, differences=difference("int8", "fp32", points=points)), max_drop_points=1.0)
    assert found.chosen == "int8"
    paired = f"; 95 %, paired: {points[1]} to {points[2]} points" if points else ""
    assert found.words == (
        "Use int8: it is not measurably faster than fp32 (p90 1.90 ms against 2.00 ms, intervals overlap) but smaller "
        "(5.00 MB against 10.0 MB) with no measurable difference in accuracy (96.6 % against 97.0 % on 1,000 images"
        f"{paired})."
    )


def test_the_ratio_of_the_interleaved_run_decides_on_speed_and_not_the_overlap(variant, target, difference):
    variants = variant("fp32", p90=2.0, spread=0.2), variant("int8", p90=1.9, spread=0.2)
    apart = judge(
        target(*variants, differences=difference("int8", "fp32", ratio=(0.95, 0.93, 0.97))), max_drop_points=1
    )
    assert (apart.chosen, words_of(apart)["fp32"]) == ("int8", "slower")
    assert apart.words.startswith("Use int8: 1.05 times as fast as fp32 (p90 1.90 ms against 2.00 ms)")
    variants = variant("fp32", p90=2.0), variant("int8", p90=1.9)
    equal = judge(
        target(*variants, differences=difference("int8", "fp32", ratio=(0.95, 0.89, 1.01))), max_drop_points=1
    )
    assert words_of(equal)["fp32"] == "equal"
    assert "not measurably faster than fp32 (p90 1.90 ms against 2.00 ms, ratio 0.95 (0.89 to 1.01))" in equal.words


def test_a_ratio_counts_the_same_from_both_sides(variant, target, difference):
    variants = variant("fp32", p90=2.0, spread=0.2), variant("int8", p90=1.9, spread=0.2)
    turned = difference("fp32", "int8", ratio=(1.05, 1.03, 1.08))
    assert judge(target(*variants, differences=turned), max_drop_points=1).chosen == "int8"


def test_pairs_that_beat_each_other_in_a_circle_leave_a_choice(variant, target, difference):
    """No interval can contradict the figures it belongs to, and if one did, the fastest would still be in the tie."""
    variants = [variant(name, p90=p90) for name, p90 in (("fp32", 2.0), ("bf16", 1.9), ("int8", 1.8))]
    circle = difference("fp32", "bf16", ratio=(0.9, 0.8, 0.95)) | difference("bf16", "int8", ratio=(0.9, 0.8, 0.95))
    circle |= difference("int8", "fp32", ratio=(0.9, 0.8, 0.95))
    found = judge(target(*variants, differences=circle), max_drop_points=1)
    assert found.of("int8").status in ("chosen", "equal")
    assert found.of("fp32").status == "slower"


def test_a_larger_variant_that_wins_says_against_whom_the_smaller_one_lost(variant, target, difference):
    fp32 = variant("fp32", p90=2.0, spread=0.3, size=9_000_000)
    bf16 = variant("bf16", p90=2.0, spread=0.3, size=7_000_000, correct=968)
    int8 = variant("int8", p90=1.9, spread=0.3, size=5_000_000, correct=963)
    paired = difference("bf16", "fp32", points=(-0.2, -0.5, 0.1)) | difference(
        "int8", "fp32", points=(-0.7, -1.0, -0.2)
    )
    paired |= difference("int8", "bf16", points=(-0.5, -1.1, 0.1))
    found = judge(target(fp32, bf16, int8, differences=paired), max_drop_points=1, reference="int8")
    assert found.chosen == "bf16"
    assert (
        "but not measurably less accurate than fp32, as int8 is (97.0 % against 96.3 % on 1,000 images" in found.words
    )


def test_a_reference_that_only_a_third_variant_beats(variant, target, difference):
    base, wide = variant("fp32", p90=2.0), variant("bf16", p90=1.9, size=1_000_000)
    paired = difference("bf16", "fp32", ratio=(0.95, 0.8, 1.1)) | difference("int8", "fp32", ratio=(0.9, 0.85, 0.95))
    paired |= difference("int8", "bf16", ratio=(0.95, 0.9, 1.05))
    found = judge(target(base, wide, variant("int8", p90=1.8), differences=paired), max_drop_points=1)
    assert found.chosen == "bf16"
    assert found.words.startswith(
        "Use bf16: it is not measurably faster than fp32 (p90 1.90 ms against 2.00 ms, ratio 0.95 (0.80 to 1.10)) at "
        "the same accuracy (97.0 % on 1,000 images), and fp32 is measurably slower than int8 (p90 2.00 ms against "
        "1.80 ms)."
    )


def test_intervals_that_touch_overlap(variant, target):
    found = judge(
        target(variant("fp32", p90=2.0, spread=0.5), variant("int8", p90=1.0, spread=0.5, correct=965)),
        max_drop_points=1.0,
    )
    assert found.chosen == "fp32"


def test_a_chain_of_overlaps_does_not_admit_a_clearly_slower_variant(variant, target):
    # wide overlaps both others, yet `slow` is clearly slower than `quick`.
    quick = variant("quick", p90=1.1, spread=0.4, correct=966)
    wide = variant("wide", p90=1.0, spread=0.98, correct=965)
    slow = variant("slow", p90=1.95, spread=0.05, correct=970)
    found = judge(target(variant("fp32", p90=9.0), quick, wide, slow), max_drop_points=1.0)
    assert found.chosen == "quick"
    assert words_of(found) == {"fp32": "slower", "quick": "chosen", "wide": "equal", "slow": "slower"}


def test_int8_slower_than_the_reference_is_said_with_numbers(variant, target):
    found = judge(target(variant("fp32", p90=2.0), variant("int8", p90=2.5)), max_drop_points=1.0)
    assert found.words == (
        "Use fp32: it is the fastest within the accuracy budget of 1.0 points; int8 is not faster "
        "(p90 2.50 ms against 2.00 ms, 0.80 times as fast)."
    )


def test_int8_slower_than_both_is_said_of_both(variant, target):
    found = judge(
        target(variant("fp32", p90=2.0), variant("bf16", p90=1.0), variant("int8", p90=2.5)), max_drop_points=1.0
    )
    assert found.chosen == "bf16"
    assert found.words.endswith("int8 (p90 2.50 ms) is not faster than fp32 (2.00 ms) or bf16 (1.00 ms).")


def test_int8_is_told_by_precision_not_by_name(variant, target):
    variants = variant("fp32", p90=2.0), variant("half", precision="fp16", p90=1.0)
    found = judge(target(*variants, variant("mixed", precision="int8", p90=1.2)), max_drop_points=1.0)
    assert found.words.endswith("mixed (p90 1.20 ms) is not faster than half (1.00 ms).")


def test_of_several_int8_variants_the_fastest_speaks(variant, target):
    floats = variant("fp32", p90=2.0), variant("bf16", p90=1.0)
    mixed = variant("int8_bf16", precision="int8_bf16", p90=1.2), variant("int8_full", precision="int8", p90=1.3)
    found = judge(target(*floats, variant("int8", p90=2.5), *mixed), max_drop_points=1.0)
    assert found.chosen == "bf16"
    assert found.words.endswith(
        ". The fastest INT8 variant, int8_bf16 (p90 1.20 ms), is not faster than bf16 (1.00 ms)."
    )
    assert found.words.count("not faster") == 1


def test_more_accurate_than_the_reference(variant, target, difference):
    variants = variant("fp32"), variant("int8", p90=1.0, correct=972)
    paired = difference("int8", "fp32", points=(0.2, 0.1, 0.4))
    assert "at 0.2 points more accuracy" in judge(target(*variants, differences=paired), max_drop_points=1.0).words
    assert "with no measurable difference in accuracy" in judge(target(*variants), max_drop_points=1.0).words


def test_single_variant(variant, target):
    found = judge(target(variant("fp32")), max_drop_points=1.0)
    assert found.chosen == "fp32"
    expected = "Use fp32: it is the only variant measured (p90 2.00 ms, accuracy 97.0 % on 1,000 images)."
    assert found.words == expected


def test_invalid_run_says_so_first(variant, target):
    record = target(
        variant("fp32"), variant("int8", p90=1.0), valid=False, invalid_reasons=("throttled", "power mode is 7W.")
    )
    found = judge(record, max_drop_points=1.0)
    assert found.words.startswith(
        "Invalid run: throttled; power mode is 7W. Its figures, which decide nothing, speak for int8"
    )
    assert not found.valid


def test_invalid_run_without_a_reason(variant, target):
    found = judge(target(variant("fp32"), valid=False), max_drop_points=1.0)
    assert found.words.startswith("Invalid run: the record gives no reason.")


def test_failed_and_skipped_are_named(variant, target):
    record = target(variant("fp32"), failed={"int8": "no kernel"}, skipped={"bf16": "no native bf16"})
    found = judge(record, max_drop_points=1.0)
    assert words_of(found) == {"fp32": "chosen", "int8": "failed: no kernel", "bf16": "skipped: no native bf16"}
    assert found.of("int8").speedup is None


def test_other_reference(variant, target):
    variants = variant("fp16", p90=2.0, correct=960), variant("int8", p90=1.0, correct=955)
    found = judge(target(*variants), max_drop_points=0.5, reference="fp16")
    assert (found.chosen, found.reference) == ("int8", "fp16")


@pytest.mark.parametrize(
    ("changes", "why"), [({}, "counts; measured"), ({"failed": {"fp32": "out of memory"}}, "(failed: out of memory)")]
)
def test_missing_reference_names_the_remedy(variant, target, changes, why):
    with pytest.raises(DataError, match="run `dvc repro`") as caught:
        judge(target(variant("int8"), **changes), max_drop_points=1.0)
    assert why in str(caught.value)
    assert "'fp32'" in str(caught.value)
    assert "measured: int8" in str(caught.value)


def test_nothing_measured_is_a_missing_reference(target):
    with pytest.raises(DataError, match="measured: none"):
        judge(target(), max_drop_points=1.0)


@pytest.mark.parametrize("budget", [-0.1, float("nan")])
def test_budget_that_is_none_is_refused(variant, target, budget):
    with pytest.raises(ParamsError, match="max_drop_points"):
        judge(target(variant("fp32")), max_drop_points=budget)
