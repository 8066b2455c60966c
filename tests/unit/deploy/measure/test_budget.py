import pytest

from deploy.errors import OverBudgetError
from deploy.measure.budget import check_budget, judged, outcome


def measured(precision, *, percent=90.0, p90=2.0, memory_mb=None):
    return {
        "precision": precision,
        "accuracy": {"percent": percent},
        "latency_ms": {"p50": 1.0, "p90": p90, "p99": 3.0},
        "engine_bytes": 2_000_000,
        "memory_mb": memory_mb,
        "energy": None,
        "energy_reason": "no counter of this processor can be read",
    }


def overruns(budget, **changes):
    variants = {"fp32": measured("fp32"), "int8": {**measured("int8"), **changes}}
    return judged(variants, budget)["int8"]["over_budget"]


@pytest.mark.parametrize(
    ("budget", "changes", "expected"),
    [
        ({}, {}, []),
        ({"latency_ms": 2, "percentile": 90}, {}, []),
        ({"latency_ms": 1.5, "percentile": 90}, {}, ["p90 2.0 ms, at most 1.5 allowed, 33 % more"]),
        ({"latency_ms": 2, "percentile": 99}, {}, ["p99 3.0 ms, at most 2 allowed, 50 % more"]),
        ({"accuracy_drop": 0.5}, {"accuracy": {"percent": 89.5}}, []),
        (
            {"accuracy_drop": 0.5},
            {"accuracy": {"percent": 89.0}},
            ["1.0 points below fp32, at most 0.5 allowed, 2 times that"],
        ),
        ({"accuracy_drop": 0}, {"accuracy": {"percent": 89.5}}, ["0.5 points below fp32, at most 0 allowed"]),
        ({"size_mb": 1.9}, {}, ["2.0 MB, at most 1.9 allowed, 5 % more"]),
        ({"memory_mb": 100}, {"memory_mb": 120.0}, ["120 MB of memory, at most 100 allowed, 20 % more"]),
        ({"memory_mb": 100}, {}, ["memory_mb: not measured on this device"]),
        ({"memory_mb": 1233}, {"memory_mb": 1233.7}, ["1234 MB of memory, at most 1233 allowed, less than 1 % more"]),
        (
            {"memory_mb": 1234},
            {"memory_mb": 1234.25},
            ["1234.25 MB of memory, at most 1234 allowed, less than 1 % more"],
        ),
        ({"energy_mj": 1}, {}, ["energy_mj: not measured: no counter of this processor can be read"]),
        (
            {"energy_mj": 1},
            {"energy": {"mj_per_inference": 1.5}},
            ["1.5 mJ an inference, at most 1 allowed, 50 % more"],
        ),
        ({"energy_mj": 2}, {"energy": {"mj_per_inference": 1.5}}, []),
    ],
)
def test_each_limit(budget, changes, expected):
    assert overruns(budget, **changes) == expected


def test_drop_needs_an_fp32_engine():
    found = judged({"int8": measured("int8")}, {"accuracy_drop": 1})
    assert found["int8"]["over_budget"] == [
        "accuracy_drop: no fp32 variant of this target was measured to compare with"
    ]


def test_everything_else_of_a_variant_is_kept():
    variants = {"fp32": measured("fp32")}
    assert judged(variants, {})["fp32"] == {**variants["fp32"], "over_budget": []}


def record(**over):
    variants = {name: {"over_budget": phrases} for name, phrases in over.items()}
    return {"target": "board", "budget": {"size_mb": 1}, "variants": variants, "failed": {}}


def test_a_target_with_a_variant_within_its_budget_passes():
    found = record(fp32=["2 MB, at most 1 allowed"], int8=[])
    check_budget(found)
    assert outcome(found) == "the budget is kept by int8; over it: fp32 (2 MB, at most 1 allowed)"


def test_a_target_whose_budget_no_variant_keeps_is_refused():
    found = record(fp32=["2 MB, at most 1 allowed"], int8=["p90 3 ms, at most 2 allowed", "too large"])
    with pytest.raises(OverBudgetError, match="target 'board': no variant keeps its budget: fp32") as caught:
        check_budget(found)
    assert "int8 (p90 3 ms, at most 2 allowed, too large); give it a faster or smaller variant" in str(caught.value)
    assert caught.value.exit_code == 11
    assert outcome(found).startswith("the budget is kept by none; over it: fp32 (2 MB, at most 1 allowed); int8")


def test_a_target_without_a_budget_passes():
    found = {**record(fp32=[]), "budget": {}, "failed": {"int8": "out of memory"}}
    check_budget(found)
    assert outcome(found) == "no budget; measured: fp32; failed: int8 (out of memory)"
