"""Whether two measurement records of one target may be compared: the same device, profile and classes, valid runs."""

from collections.abc import Iterator

from deploy.document import Document

SOFTWARE = ("schema", "target", "runtime", "runtime_version", "python", "memory_gb")  # else it is another device


def obstacles(before: Document, after: Document, common: list[str]) -> Iterator[str]:
    """Say why two records of a target should not be compared.

    Args:
        before: a record.
        after: the other.
        common: the variants that both have.
    """
    others = _differing(before, after)
    if others:
        yield f"measured on different devices: {others}"
    profiles = before.text("profile"), after.text("profile")
    if profiles[0] != profiles[1]:
        yield f"measured with different profiles: {profiles[0]!r} and {profiles[1]!r}"
    for record in (before, after):
        if record.get("partial") is not None:
            yield f"{record.path} is of a partial run: {record.get('partial')}"
        elif record.get("valid") is not True:
            reasons = record.get("invalid_reasons") or ["it gives no reason"]
            yield f"{record.path} is of an invalid run: {'; '.join(map(str, reasons))}"
    for name in common:
        ours, theirs = _classes(before, name), _classes(after, name)
        if ours != theirs:
            yield f"{name!r} knows other classes: in one record only {', '.join(sorted(ours ^ theirs)[:5])}"
    for name, reason in after.mapping("failed").items():
        if name in before.mapping("variants"):
            yield f"{name!r} was not measured in {after.path}: {reason}"
    if not common:
        yield f"no variant in common: {_names(before)} and {_names(after)}"


def _classes(record: Document, name: str) -> set[str]:
    return set(record.mapping("variants")[name]["accuracy"].get("per_class_percent") or {})


def _differing(before: Document, after: Document) -> str:
    """Name what the fingerprints say differently of the hardware."""
    ours, theirs = before.mapping("device"), after.mapping("device")
    keys = [key for key in {**ours, **theirs} if key not in SOFTWARE and ours.get(key) != theirs.get(key)]
    return "; ".join(f"{key} {ours.get(key)!r} and {theirs.get(key)!r}" for key in keys)


def notes(before: Document, after: Document, common: list[str]) -> Iterator[str]:
    """Say what a reader should know besides; see `obstacles`."""
    for one, other in ((before, after), (after, before)):
        alone = [name for name in one.mapping("variants") if name not in other.mapping("variants")]
        if alone and common:
            yield f"only in {one.path}: {', '.join(alone)}"
    for key in ("runtime", "runtime_version"):
        if before.text(key) != after.text(key):
            yield f"{key}: {before.text(key)} in {before.path}, {after.text(key)} in {after.path}"
    if before.text("data_sha256") != after.text("data_sha256"):
        yield "measured on other test images: accuracies are compared as of independent samples"
    for key in ("cpus", "minimum"):
        if before.content.get(key) != after.content.get(key):
            yield f"{key}: {before.content.get(key)} in {before.path}, {after.content.get(key)} in {after.path}"
    for record in (before, after):
        if record.content.get("noise"):
            yield f"{record.path} is of a noisy run: {'; '.join(map(str, record.content['noise']))}"
    engines = [each.mapping("statistics_engine").get("name") for each in (before, after)]
    if engines[0] != engines[1]:
        yield f"statistics by {engines[0]} in {before.path}, by {engines[1]} in {after.path}"


def _names(record: Document) -> str:
    return ", ".join(record.mapping("variants")) or "none"
