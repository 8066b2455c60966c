import pytest

from deploy.budget import judged


def measured(precision, *, percent=90.0, p90=2.0, memory_mb=None):
    return {
        "precision": precision,
        "accuracy": {"percent": percent},
        "latency_ms": {"p50": 1.0, "p90": p90, "p99": 3.0},
        "engine_bytes": 2_000_000,
        "memory_mb": memory_mb,
    }


def overruns(budget, **changes):
    variants = {"fp32": measured("fp32"), "int8": {**measured("int8"), **changes}}
    return judged(variants, budget)["int8"]["over_budget"]


@pytest.mark.parametrize(
    ("budget", "changes", "expected"),
    [
        ({}, {}, []),
        ({"latency_ms": 2, "percentile": 90}, {}, []),
        ({"latency_ms": 1.5, "percentile": 90}, {}, ["p90 2.0 ms, at most 1.5 allowed"]),
        ({"latency_ms": 2, "percentile": 99}, {}, ["p99 3.0 ms, at most 2 allowed"]),
        ({"accuracy_drop": 0.5}, {"accuracy": {"percent": 89.5}}, []),
        ({"accuracy_drop": 0.5}, {"accuracy": {"percent": 89.0}}, ["1.0 points below fp32, at most 0.5 allowed"]),
        ({"size_mb": 1.9}, {}, ["2.0 MB, at most 1.9 allowed"]),
        ({"memory_mb": 100}, {"memory_mb": 120.0}, ["120 MB of memory, at most 100 allowed"]),
        ({"memory_mb": 100}, {}, ["memory_mb: not measured on this device"]),
        ({"memory_mb": 1233}, {"memory_mb": 1233.7}, ["1234 MB of memory, at most 1233 allowed"]),
        ({"memory_mb": 1234}, {"memory_mb": 1234.25}, ["1234.25 MB of memory, at most 1234 allowed"]),
        ({"energy_mj": 1}, {}, ["energy_mj: not measured on this device"]),
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
