"""The doctor's report as text: aligned, for a reader who does not know the project."""

from collections.abc import Iterator, Mapping
from typing import Any

from deploy.doctor import FAILS
from deploy.system import PACKAGES

UNKNOWN = "unknown"
Rows = Iterator[tuple[str, str]]


def to_text(report: Mapping[str, Any]) -> str:
    """Return what `examine` found as sections of aligned lines."""
    found = report["facts"]
    sections: list[tuple[str, Rows]] = [
        ("System", _system(found)),
        ("NVIDIA", _nvidia(found)),
        ("State", _state(found)),
        ("Packages", _packages(found["packages"])),
    ]
    sections += [(f"Runtime {name}", _runtime(each)) for name, each in report["runtimes"].items()]
    sections += [(f"Target {name}", _target(each)) for name, each in report["targets"].items()]
    if report["warnings"]:
        sections.append(("Warnings", ((str(number), text) for number, text in enumerate(report["warnings"], start=1))))
    return "\n".join(_section(title, list(rows)) for title, rows in sections)


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "".join([f"{title}\n", *(f"  {name:<{width}}  {text}".rstrip() + "\n" for name, text in rows)])


def _system(found: Mapping[str, Any]) -> Rows:
    system, cpu = found["system"], found["cpu"]
    yield "os", f"{system['os']}, kernel {system['kernel']}"
    yield "architecture", system["architecture"]
    yield "cpu", cpu["model"]
    yield "features", " ".join(cpu["features"]) or UNKNOWN
    usable = "" if cpu["usable"] in (None, cpu["cores"]) else f", {cpu['usable']} of them for this process"
    limit = "" if cpu["limit"] is None else f", limited to the time of {cpu['limit']:g}"
    yield "cores", f"{cpu['cores']}{usable}{limit}"
    where = "virtual machine" if system["virtual_machine"] else "no sign of a virtual machine"
    inside = f"container ({system['container']})" if system["container"] else "no sign of a container"
    yield "inside", f"{inside}, {where}"
    yield "python", f"{system['python']} ({system['interpreter']})"
    for each in found["other_accelerators"]:
        yield each["device"], f"{each['vendor'] or UNKNOWN}{'' if each['may_open'] else ', closed to this account'}"


def _nvidia(found: Mapping[str, Any]) -> Rows:
    nvidia, packages = found["nvidia"], found["packages"]
    if nvidia["board"]:
        yield "board", nvidia["board"]
    if nvidia["l4t"]:
        yield "l4t", nvidia["l4t"]
        yield "jetpack", nvidia["jetpack"] or "of no release that is known here"
    for number, gpu in enumerate(nvidia["gpus"]):
        memory = "memory shared with the CPU" if gpu["memory_mb"] is None else f"{gpu['memory_mb']} MB"
        capability, driver = gpu["compute_capability"] or UNKNOWN, gpu["driver"] or UNKNOWN
        yield f"gpu {number}", f"{gpu['name']}, compute capability {capability}, {memory}, driver {driver}"
    if not nvidia["gpus"]:
        yield "gpu", "none: nvidia-smi is not there, or lists nothing"
    yield "cuda", f"the driver is made for {nvidia['driver_cuda']}" if nvidia["driver_cuda"] else "no driver (libcuda)"
    yield "libcudart", ", ".join(nvidia["libcudart"]) or "not found"
    wheels = [f"{name} {version}" for name, version in packages.items() if name.startswith("tensorrt")]
    yield "tensorrt", ", ".join([*wheels, *nvidia["libnvinfer"]]) or "not found"


def _state(found: Mapping[str, Any]) -> Rows:
    now, memory = found["state"], found["memory"]
    yield "power mode", now["power_mode"] or UNKNOWN
    yield "governor", now["cpu"]["governor"] or UNKNOWN
    yield "temperature", UNKNOWN if now["temperature_c"] is None else f"{now['temperature_c']} °C"
    yield "load", UNKNOWN if now["load_average"] is None else f"{now['load_average']} on {found['cpu']['cores']} cores"
    if memory["total_mb"] is None:
        yield "memory", UNKNOWN
    else:
        limit = "" if memory["limit_mb"] is None else f", limited to {memory['limit_mb']} MB"
        yield "memory", f"{memory['available_mb']} of {memory['total_mb']} MB free{limit}"
    for disk in found["disks"]:
        yield "disk", f"{disk['free_gb']} GB free for {', '.join(disk['for'])}"


def _packages(versions: Mapping[str, str]) -> Rows:
    yield from versions.items()
    yield "not there", ", ".join(name for name in PACKAGES if name not in versions)


def _runtime(answers: Mapping[str, Any]) -> Rows:
    version, places = answers["version"], answers["places"]
    if "error" in version:
        yield ("missing" if version["missing"] else "fails"), version["error"]
        return
    yield "version", version["value"]
    if "error" in places:
        yield "fails", places["error"]
        return
    for name, reason in places["value"].items():
        yield name, "runs" if reason is None else f"does not run here: {reason}"


def _target(each: Mapping[str, Any]) -> Rows:
    yield "runtime", ", ".join([each["runtime"], *(f"{key} {value}" for key, value in each["options"].items())])
    if each["place"]:
        yield "device", ", ".join(_flat(each["place"]))
    for variant, reason in each["variants"].items():
        yield variant, "runs natively" if reason is None else f"skipped: {reason}"
    wanted, mode = each["power_mode"]["wanted"], each["power_mode"]["found"]
    if wanted is not None:
        yield "power mode", wanted if wanted == mode else f"{mode or UNKNOWN}, {wanted} is wanted"
    if each["verdict"] == FAILS:
        yield "verdict", f"{FAILS}: {'; '.join(each['reasons'])}"
        return
    skipped = ", ".join(variant for variant, reason in each["variants"].items() if reason)
    yield "verdict", each["verdict"] + (f", without {skipped}" if skipped else "")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        elif item is not None:
            yield f"{prefix}{key} {item}"
