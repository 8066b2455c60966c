import pytest

from deploy.conditions.noise import noise

QUIET = {
    "seconds": 10.0, "cores": 2, "load_average": 2.0, "background_cores": 0.2, "most_background_cores": 1.9,
    "steal_percent": 1.0, "iowait_percent": 40.0, "waiting_percent": 80.0,
    "mhz": {"min": 1000, "low": 2080, "median": 2600, "max": 3400}, "temperature_c": 99.0, "throttled": 0,
    "alerts": [], "stopped": 0, "gpu": None, "cost_percent": 0.2,
}  # fmt: skip
GPU = {"mhz": None, "temperature_c": 60, "reasons": ["SW Power Cap"], "throttled": 0}


def test_a_quiet_run():
    assert noise(QUIET) == []
    assert noise({**QUIET, "gpu": GPU}) == []


def test_what_could_not_be_read_is_no_noise():
    assert noise({name: value if name in {"cores", "alerts"} else None for name, value in QUIET.items()}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"background_cores": 0.8},
            "other programs used 0.8 of 2 cores on average, at most 0.2 is quiet",
        ),
        ({"steal_percent": 3.1}, "the hypervisor took 3.1 % of the cores' time (steal), at most 1 % is quiet"),
        (
            {"mhz": {"min": 800, "low": 1200, "median": 2600, "max": 2600}},
            "the CPU's clock fell to 1200 of 2600 MHz, at least 80% is steady",
        ),
        ({"stopped": 12}, "the container's limit of CPU time stopped it 12 times"),
        ({"throttled": 3}, "the device throttled itself 3 times, for heat or over-current"),
        ({"throttled": 1}, "the device throttled itself once, for heat or over-current"),
        ({"alerts": ["cpu", "gpu"]}, "the device throttled its cpu, gpu for heat"),
        (
            {"gpu": {**GPU, "reasons": ["HW Thermal Slowdown"], "throttled": 2}},
            "the GPU was slowed down in 2 samples (HW Thermal Slowdown)",
        ),
    ],
    ids=["background", "steal", "clock", "limit", "throttled", "once", "alerts", "gpu"],
)
def test_noise_is_said_in_words(change, words):
    assert noise({**QUIET, **change}) == [words]


def test_all_noise_is_said():
    assert len(noise({**QUIET, "background_cores": 2.0, "steal_percent": 9.0, "stopped": 1, "throttled": 1})) == 4
