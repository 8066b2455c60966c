"""Composes `configs/` into `params.yaml` and tells when the two have drifted apart.

Plain `dvc repro` never composes, so an edited config would silently change nothing. `slad sync` and `slad repro`
compose; `dvc exp run` composes by DVC's own Hydra support; the first stage calls `check_fresh`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.base.errors import ParamsError
from pipeline.base.params import Params, read_yaml, validate

EXPERIMENT = "DVC_EXP_BASELINE_REV"  # set by DVC for every stage that `dvc exp run` starts
RECORD = "overrides"  # key of params.yaml that lists what was given on top of configs/


def compose_params(configs: Path, overrides: Sequence[str]) -> DictConfig:
    """Composes the parameters and checks them.

    Args:
        configs: folder with `config.yaml` and its groups.
        overrides: in Hydra's grammar, such as "student=vit_small" or "distill.rank=16".

    Returns:
        The composition with every interpolation resolved and the overrides recorded.

    Raises:
        ParamsError: Hydra cannot compose, or a value is unknown or out of range.
    """
    if not (configs / "config.yaml").is_file():
        msg = f"no {configs / 'config.yaml'} below {str(Path.cwd())!r}; run this in the project's folder"
        raise ParamsError(msg)
    try:
        # `version_base=None` is what DVC passes: both must compose alike.
        with initialize_config_dir(str(configs.resolve()), version_base=None):
            composed = compose(config_name="config", overrides=list(overrides))
        OmegaConf.resolve(composed)
    except (HydraException, OmegaConfBaseException) as error:
        # What Hydra adds names folders of this machine, or advises to append a key that would be refused.
        reason = " ".join(re.split("Config search path|To append to your config", str(error))[0].split())
        if found := re.fullmatch(r"Could not override '(.+)'\.", reason):  # nothing more: Hydra has no hint either
            # Most keys of a target have a default and stand in no file; elsewhere a new key would be refused.
            remedy = f"`+{found[1]}` adds it" if found[1].startswith("targets.") else "leave it out"
            reason = (
                f"`{found[1]}` is no key of what they choose (methods, for one, differ in their keys); {remedy}, or "
                "add --reset if it was recorded earlier"
            )
        msg = f"{configs}/ cannot be composed with overrides {list(overrides)!r}: {reason}"
        raise ParamsError(msg) from error
    OmegaConf.update(composed, RECORD, list(overrides), force_add=True)
    content: dict[str, Any] = OmegaConf.to_container(composed)  # type: ignore[assignment]
    validate(content, Params, source=f"{configs}/")
    return composed


def target_section(target: str, *, params: Path, configs: Path) -> dict[str, Any]:
    """Returns a target's section: of `params.yaml`, else of its own file in `configs/target/`.

    Raises:
        ParamsError: neither has it, or its file cannot be composed.
    """
    chosen = target_sections(params)
    if target in chosen:
        return dict(chosen[target])
    files = {file.stem for file in (configs / "target").glob("*.yaml")}
    if target not in files:
        msg = (
            f"no target {target!r} in {str(params)!r} or {str(configs / 'target')!r}; there are "
            f"{', '.join(sorted({*chosen, *files})) or 'none: run this in the folder of the project'}"
        )
        raise ParamsError(msg)
    try:
        with initialize_config_dir(str(configs.resolve()), version_base=None):
            section = compose(config_name=f"target/{target}").target
        content: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        msg = f"{configs / 'target' / target}.yaml cannot be composed: {' '.join(str(error).split())}"
        raise ParamsError(msg) from error
    return content


def target_sections(params: Path) -> dict[str, Any]:
    """Returns the sections of all targets of `params.yaml`; {} where there is no such file."""
    return dict(read_yaml(params).get("targets") or {}) if params.is_file() else {}


def quoted(value: str) -> str:
    """Quotes a value for Hydra's grammar: paths hold blanks, commas and quotes."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def to_yaml(composed: DictConfig) -> str:
    """Returns the text of `params.yaml`, byte for byte what DVC writes for the same composition."""
    return OmegaConf.to_yaml(composed)


def recorded_overrides(params: Path) -> list[str]:
    """Returns the overrides that an existing `params.yaml` was composed with."""
    return list(read_yaml(params).get(RECORD, [])) if params.is_file() else []


def joined_overrides(earlier: Sequence[str], later: Sequence[str]) -> list[str]:
    """Joins two lists of overrides; for a key named twice the later one stands."""
    return list({item.split("=", 1)[0]: item for item in (*earlier, *later)}.values())


def check_fresh(params: Path, configs: Path) -> None:
    """Refuses a `params.yaml` that is not what `configs/` and its recorded overrides compose to.

    Inside `dvc exp run` DVC has just composed the file with the experiment's own overrides (`-S`), which it records
    with the experiment: there only the values are checked.

    Raises:
        ParamsError: naming each differing key with both values, and the command that mends it.
    """
    content = read_yaml(params)
    validate(content, Params, source=str(params))
    if EXPERIMENT in os.environ:
        return
    composed = compose_params(configs, content.get(RECORD, []))
    fresh: dict[str, Any] = OmegaConf.to_container(composed)  # type: ignore[assignment]
    differing = [
        f"`{key}` is {ours!r} in {params.name}, {theirs!r} in {configs.name}/"
        for key, ours, theirs in _differences(content, fresh)
    ]
    if differing:
        msg = (
            f"{params.name} is stale: {'; '.join(differing)}; run `slad repro`, "
            f"with `key=value` for what is meant to differ"
        )
        raise ParamsError(msg)


def _differences(ours: Any, theirs: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [*ours, *(k for k in theirs if k not in ours)]:
            path = f"{prefix}.{key}" if prefix else str(key)
            yield from _differences(ours.get(key, "absent"), theirs.get(key, "absent"), path)
    elif ours != theirs:
        yield prefix, ours, theirs
