"""A target as plain values: the section `targets.<name>` of params.yaml, checked by dotted key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.errors import TargetError
from deploy.runtime import Option, OptionValue, Settings
from deploy.runtimes import RUNTIMES, get_runtime

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:/%\[\]-]*")  # a name, user@name, ssh://user@name:port; never an option
PYTHON = re.compile(r"[^~\s-]\S*")  # no shell there expands it
FOLDER = re.compile(r"/?[A-Za-z0-9_][A-Za-z0-9_./-]*")
KEYS = (
    "runtime", "host", "install", "options", "threads", "cpus", "variants", "allow_fallback", "build_limit_s",
    "conditions", "budget",
)  # fmt: skip
INSTALL_KEYS = (
    "folder", "python", "system_site_packages", "packages", "wheels", "architecture", "disk_mb", "memory_mb", "keep",
)  # fmt: skip
CONDITION_KEYS = ("power_mode", "load", "temperature_c")
BUILD_LIMIT_S = 3600
BUDGETS = {
    "latency_ms": "most milliseconds of the percentile",
    "percentile": "of latency, 50, 90 or 99",
    "accuracy_drop": "most points below the target's own fp32 engine",
    "size_mb": "most megabytes of the engine's file",
    "memory_mb": "most megabytes that the process which runs the engine takes at its peak",
    "energy_mj": "most millijoules of an inference, idle power subtracted; where no counter is readable, never kept",
}
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Variant:
    """One engine of a target.

    Attributes:
        name: folder of the engine.
        onnx: folder of its bundle.
        precision: what the engine computes in; "int8_bf16" is INT8 with the layers that are not quantised in bf16, and
            "int8_fp16" in FP16, which are in FP32 else.
    """

    name: str
    onnx: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Install:
    """How a target is installed on the machine that its `host` names.

    Attributes:
        folder: where all of it lies, absolute or below the account's home.
        python: the interpreter that makes the environment, a command or a path.
        system_site_packages: whether the environment sees the system's packages, such as JetPack's TensorRT.
        packages: requirements of pip in place of the runtime's own; None takes those.
        wheels: folder of this machine with the wheels to install; None lets pip on the device use its index.
        architecture: that the device must have, such as "aarch64"; None accepts any.
        disk_mb: megabytes of 10^6 bytes that must be free there beside what is sent.
        memory_mb: that must be available there.
        keep: number of releases that are kept.
    """

    folder: str = "slad-edge"
    python: str = "python3"
    system_site_packages: bool = False
    packages: tuple[str, ...] | None = None
    wheels: str | None = None
    architecture: str | None = None
    disk_mb: int = 1000
    memory_mb: int = 500
    keep: int = 3


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The state of the device in which alone a measurement is valid; None asks for nothing.

    Attributes:
        power_mode: as `nvpmodel -q`, or the platform profile, names it.
        load: most load average per core before the measurement; None is `deploy.conditions.rules.BUSY_LOAD_PER_CORE`.
        temperature_c: most degrees of the hottest zone, before and during the measurement.
    """

    power_mode: str | None = None
    load: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checked target.

    Attributes:
        name: its key in params.yaml.
        runtime: one of `deploy.runtimes.RUNTIMES`.
        host: name of another machine, as `ssh` takes it; None for this one.
        install: how it is installed there.
        options: all of the runtime's options.
        threads: of the CPU; 0 leaves the number to the runtime.
        cpus: numbers of the only cores that a measured engine may use; None pins nothing.
        variants: the engines.
        allow_fallback: whether nodes may run elsewhere than the options ask.
        build_limit_s: seconds after which the build of one engine is ended.
        conditions: in which alone a measurement is valid.
        budget: limits that an engine must keep to be chosen, by the names of `BUDGETS`.
    """

    name: str
    runtime: str
    host: str | None = None
    install: Install = field(default_factory=Install)
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    threads: int = 0
    cpus: tuple[int, ...] | None = None
    variants: tuple[Variant, ...] = ()
    allow_fallback: bool = False
    build_limit_s: int = BUILD_LIMIT_S
    conditions: Conditions = field(default_factory=Conditions)
    budget: Mapping[str, float] = field(default_factory=dict)

    def settings(self, precision: str) -> Settings:
        """Return how an engine of this target is built in a precision."""
        return Settings(precision=precision, threads=self.threads, options=self.options)


def read_target(name: str, spec: Mapping[str, Any]) -> Target:
    """Check a target's section.

    Args:
        name: of the target, for dotted keys in messages.
        spec: `runtime` and `variants`, each with `onnx` and `precision`; the other keys of `KEYS` where wanted.

    Raises:
        TargetError: a key is unknown or missing, or a value is wrong.
    """
    place = f"targets.{name}"
    _check_name(name, place)
    _check_keys(spec, place, known=KEYS, needed=("runtime", "variants"))
    if spec["runtime"] not in RUNTIMES:
        msg = f"`{place}.runtime` {spec['runtime']!r} is unknown; known ones: {', '.join(RUNTIMES)}"
        raise TargetError(msg)
    variants = spec["variants"]
    if not isinstance(variants, Mapping) or not variants:
        msg = f"`{place}.variants` should name at least one variant, got {variants!r}"
        raise TargetError(msg)
    runtime = get_runtime(spec["runtime"])
    precisions = tuple(runtime.EXPORTED_AS)
    if spec.get("threads") and not runtime.THREADED:
        msg = f"`{place}.threads` {spec['threads']!r} has no effect with runtime {spec['runtime']!r}; take it out"
        raise TargetError(msg)
    threads = _count(spec.get("threads", 0), f"{place}.threads", least=0, zero=" (the runtime's choice)")
    cpus = _cores(spec.get("cpus"), f"{place}.cpus")
    if cpus is not None and runtime.THREADED and not 1 <= threads <= len(cpus):
        msg = (
            f"`{place}.cpus` {list(cpus)} with `{place}.threads` {threads}: more threads than cores would take turns "
            f"on them; set threads to 1 to {len(cpus)}"
        )
        raise TargetError(msg)
    return Target(
        name=name,
        runtime=spec["runtime"],
        host=_pattern(spec.get("host"), f"{place}.host", HOST, "a name that ssh takes, such as user@jetson"),
        install=_read_install(_or_nothing(spec.get("install")), f"{place}.install"),
        options=read_options(spec["runtime"], _or_nothing(spec.get("options")), place=f"{place}.options"),
        threads=threads,
        cpus=cpus,
        variants=tuple(
            _read_variant(key, value, f"{place}.variants.{key}", precisions) for key, value in variants.items()
        ),
        allow_fallback=_switch(spec.get("allow_fallback", False), f"{place}.allow_fallback"),
        build_limit_s=_count(spec.get("build_limit_s", BUILD_LIMIT_S), f"{place}.build_limit_s", least=1),
        conditions=_read_conditions(_or_nothing(spec.get("conditions")), f"{place}.conditions"),
        budget=_read_budget(_or_nothing(spec.get("budget")), f"{place}.budget"),
    )


def read_options(runtime: str, given: Any, *, place: str) -> dict[str, OptionValue]:
    """Check a runtime's options and fill in those that are not given.

    Args:
        runtime: one of `RUNTIMES`.
        given: the options that are set.
        place: dotted key of `given`, for messages.

    Raises:
        TargetError: an option is unknown, or has a wrong value.
    """
    known = get_runtime(runtime).OPTIONS
    _check_keys(given, place, known=tuple(known), needed=())
    for name, (other, values) in ((name, known[name].only_with or ("", ())) for name in given):
        chosen = given.get(other, known[other].default) if other else None
        if other and chosen not in values and given[name] != known[name].default:
            msg = f"`{place}.{name}` {given[name]!r} has no effect with `{other}` {chosen!r}; take it out"
            raise TargetError(msg)
    return {
        name: _read_option(given.get(name, option.default), option, f"{place}.{name}") for name, option in known.items()
    }


def _read_option(value: Any, option: Option, place: str) -> OptionValue:
    if value is None and option.default is None:
        return None
    if isinstance(option.default, bool):
        return _switch(value, place)
    if isinstance(option.default, str):
        wanted = f"one of {', '.join(option.choices)}" if option.choices else f"like {option.default}"
        fits = isinstance(value, str) and (
            value in option.choices if option.choices else re.fullmatch(option.pattern, value)
        )
        if not fits:
            msg = f"`{place}` ({option.meaning}) should be {wanted}, got {value!r}"
            raise TargetError(msg)
        return str(value)
    number = _count(value, place, least=option.least, zero=f" ({option.meaning})")
    if option.most is not None and number > option.most:
        msg = f"`{place}` ({option.meaning}) should be {option.most} or less, got {value!r}"
        raise TargetError(msg)
    return number


def _read_variant(name: str, spec: Any, place: str, precisions: tuple[str, ...]) -> Variant:
    _check_name(name, place)
    if name.endswith(".json"):  # the folder of engines has files of such names
        msg = f"`{place}` should not end with .json; give the variant another name"
        raise TargetError(msg)
    _check_keys(spec, place, known=("onnx", "precision"), needed=("onnx", "precision"))
    _check_name(spec["onnx"], f"{place}.onnx")
    if spec["precision"] not in precisions:
        msg = f"`{place}.precision` should be one of {', '.join(precisions)}, got {spec['precision']!r}"
        raise TargetError(msg)
    return Variant(name=name, onnx=spec["onnx"], precision=spec["precision"])


def _read_budget(spec: Any, place: str) -> dict[str, float]:
    _check_keys(spec, place, known=tuple(BUDGETS), needed=())
    for key, value in spec.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            msg = f"`{place}.{key}` ({BUDGETS[key]}) should be a number of 0 or more, got {value!r}"
            raise TargetError(msg)
    percentile = spec.get("percentile", PERCENTILES[0])
    if ("latency_ms" in spec) != ("percentile" in spec) or type(percentile) is not int or percentile not in PERCENTILES:
        msg = f"`{place}` should give latency_ms and percentile (50, 90 or 99) together, got {dict(spec)!r}"
        raise TargetError(msg)
    return dict(spec)


def _read_conditions(spec: Any, place: str) -> Conditions:
    _check_keys(spec, place, known=CONDITION_KEYS, needed=())
    return Conditions(
        power_mode=_text(spec.get("power_mode"), f"{place}.power_mode"),
        load=_limit(spec.get("load"), f"{place}.load", "load average per core"),
        temperature_c=_limit(spec.get("temperature_c"), f"{place}.temperature_c", "degrees Celsius"),
    )


def _read_install(spec: Any, place: str) -> Install:
    _check_keys(spec, place, known=INSTALL_KEYS, needed=())
    given = {key: value for key, value in spec.items() if value is not None}
    default = Install()
    return Install(
        folder=_pattern(
            given.get("folder"), f"{place}.folder", FOLDER, "a folder, below the home there or absolute, without blanks"
        )
        or default.folder,
        python=_pattern(given.get("python"), f"{place}.python", PYTHON, "a command, or a path from / on")
        or default.python,
        system_site_packages=_switch(given.get("system_site_packages", False), f"{place}.system_site_packages"),
        packages=_texts(given.get("packages"), f"{place}.packages"),
        wheels=_text(given.get("wheels"), f"{place}.wheels"),
        architecture=_text(given.get("architecture"), f"{place}.architecture"),
        disk_mb=_count(given.get("disk_mb", default.disk_mb), f"{place}.disk_mb", least=0),
        memory_mb=_count(given.get("memory_mb", default.memory_mb), f"{place}.memory_mb", least=0),
        keep=_count(given.get("keep", default.keep), f"{place}.keep", least=1),
    )


def _or_nothing(spec: Any) -> Any:
    return {} if spec is None else spec


def _check_keys(spec: Any, place: str, *, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    """Report every unknown and missing key at once."""
    if not isinstance(spec, Mapping):
        msg = f"`{place}` should hold {', '.join(known)}, got {spec!r}"
        raise TargetError(msg)
    faults = [f"`{place}.{key}` is unknown" for key in spec if key not in known]
    faults += [f"`{place}.{key}` is missing" for key in needed if key not in spec]
    if faults:
        msg = f"{'; '.join(faults)}; known keys: {', '.join(known)}"
        raise TargetError(msg)


def _check_name(name: Any, place: str) -> None:
    """Accept names that stay one folder on every system."""
    if not isinstance(name, str) or not FOLDER_NAME.fullmatch(name):
        msg = f"`{place}` should be a plain name of at most 64 letters, digits, '.', '_' and '-', got {name!r}"
        raise TargetError(msg)


def _text(value: Any, place: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        msg = f"`{place}` should be a text or absent, got {value!r}"
        raise TargetError(msg)
    return value


def _pattern(value: Any, place: str, pattern: re.Pattern[str], wanted: str) -> str | None:
    text = _text(value, place)
    if text is not None and (not pattern.fullmatch(text) or ".." in text.split("/")):
        msg = f"`{place}` should be {wanted}, got {value!r}"
        raise TargetError(msg)
    return text


def _texts(value: Any, place: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) and item and item[0] != "-" for item in value):
        msg = f"`{place}` should be a list of requirements such as 'onnxruntime==1.23.2', got {value!r}"
        raise TargetError(msg)
    return tuple(value)


def _cores(value: Any, place: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(type(core) is int and core >= 0 for core in value):
        msg = f"`{place}` should be a list of core numbers, such as [2, 3], or absent, got {value!r}"
        raise TargetError(msg)
    return tuple(value)


def _count(value: Any, place: str, *, least: int, zero: str = "") -> int:
    if type(value) is not int or value < least:
        msg = f"`{place}` should be an integer of {least}{zero} or more, got {value!r}"
        raise TargetError(msg)
    return value


def _limit(value: Any, place: str, unit: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        msg = f"`{place}` (most {unit}) should be a number over 0 or absent, got {value!r}"
        raise TargetError(msg)
    return value


def _switch(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        msg = f"`{place}` should be true or false, got {value!r}"
        raise TargetError(msg)
    return value
