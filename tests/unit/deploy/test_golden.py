from dataclasses import replace

import numpy as np
import pytest

from deploy.bundle import load_bundle, load_golden
from deploy.errors import BundleError, EngineError
from deploy.golden import GoldenCheck, check_golden


class Replay:
    """An engine that gives the expected outputs, changed by a function."""

    def __init__(self, bundle, change=lambda outputs: outputs) -> None:
        self.outputs = iter(change(load_golden(bundle)[1].copy()))

    def run(self, image, /):
        return next(self.outputs)[None]


def test_equal_outputs_pass(bundle):
    loaded = load_bundle(bundle)
    check = check_golden(Replay(loaded), loaded, precision="fp32")
    assert check.passed
    assert check.as_dict() == {"relative_error": 0.0, "tolerance": 0.001, "argmax_agreement": 1.0}


@pytest.mark.parametrize(("precision", "passed"), [("fp32", False), ("bf16", True)])
def test_error_is_relative_to_the_largest_output_and_judged_by_precision(bundle, precision, passed):
    loaded = load_bundle(bundle)

    def off_by_two_percent(outputs):
        outputs[3, 1] += 0.02 * np.abs(outputs).max()
        return outputs

    check = check_golden(Replay(loaded, off_by_two_percent), loaded, precision=precision)
    assert check.relative_error == pytest.approx(0.02, rel=1e-4)
    assert check.passed is passed


def test_a_check_that_was_not_passed_is_an_error():
    check = GoldenCheck(relative_error=0.02, tolerance=0.05, argmax_agreement=1.0)
    check.require("engine 'v'", remedy="build it")
    assert str(check) == "relative error 0.02 (at most 0.05)"
    for error in (0.06, float("nan")):
        words = rf"^engine 'v': relative error {error:g} on the golden inputs, at most 0\.05 allowed; build it$"
        with pytest.raises(EngineError, match=words):
            replace(check, relative_error=error).require("engine 'v'", remedy="build it")


def test_argmax_agreement_is_a_share(bundle):
    loaded = load_bundle(bundle)

    def turn_first(outputs):
        outputs[0] *= -1
        return outputs

    assert check_golden(Replay(loaded, turn_first), loaded, precision="int8").argmax_agreement == 0.875


def test_nan_is_refused(bundle):
    loaded = load_bundle(bundle)
    with pytest.raises(EngineError, match="0% finite"):
        check_golden(Replay(loaded, lambda outputs: outputs * np.nan), loaded, precision="fp32")


def test_other_shape_is_refused(bundle):
    loaded = load_bundle(bundle)
    with pytest.raises(EngineError, match=r"shape \(8, 4\), got shape \(8, 3\)"):
        check_golden(Replay(loaded, lambda outputs: outputs[:, :3]), loaded, precision="fp32")


def test_tolerance_that_is_missing(bundle, edit):
    edit(bundle / "bundle.json", golden__tolerance={"fp32": 0.1})
    loaded = load_bundle(bundle)
    with pytest.raises(BundleError, match=r"no `golden\.tolerance\.int8`"):
        check_golden(Replay(loaded), loaded, precision="int8")
