"""Is this engine the one that was built here, and does it still give its model's answers?"""

from pathlib import Path

from deploy.engine import check_placement, open_engine
from deploy.errors import EngineError
from deploy.golden import check_golden
from deploy.target import Target


def selftest(bundle: Path, engine: Path | None, *, target: Target | None = None) -> str:
    """Verify a bundle and its engine, load the engine, and run the golden inputs.

    Args:
        bundle: folder of the bundle.
        engine: folder of the engine; None is the folder `engine` beside the bundle.
        target: what the engine is wanted for; None takes it as it was built, with every node where it should be.

    Returns:
        One line: the engine, its error, and where its nodes run.

    Raises:
        BundleError: the bundle is faulty.
        EngineError: the engine is faulty, was built elsewhere, from another model, with another release or otherwise
            than the target asks, gives other answers, or runs elsewhere than it was asked to.
        RuntimeMissingError: its runtime is not installed.
    """
    model, loaded = open_engine(bundle, engine, target=target)
    manifest = loaded.manifest
    if target is not None and manifest.precision not in _precisions(target, manifest.variant):
        msg = f"engine {manifest.variant!r} is in {manifest.precision}, which {target.name!r} does not ask for"
        raise EngineError(msg)
    name = f"engine {manifest.variant!r}"
    golden = check_golden(loaded.engine, model, precision=manifest.precision)
    golden.require(name, remedy=f"build it again with `dvc repro -sf compile@{manifest.target}`")
    placement = loaded.engine.placement()
    check_placement(
        placement,
        manifest.settings,
        target=manifest.target,
        allow_fallback=target is not None and target.allow_fallback,
        name=manifest.variant,
    )
    return f"{manifest.variant} on {manifest.target}: {golden}, {placement}"


def _precisions(target: Target, variant: str) -> set[str]:
    return {each.precision for each in target.variants if each.name == variant}
