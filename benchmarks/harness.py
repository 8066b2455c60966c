"""Does the measurement measure right? Its latency against the runtimes' own tools, and what it adds to a query.

An engine is measured in turns, of random order, by this project (SingleStream, in the worker and the turns of a real
measurement) and by a reference in a process of its own; a ratio is the median over the rounds of the ratio within a
round, with the distribution-free interval of a median. References:

- OpenVINO: its `benchmark_app -api sync -hint latency`, unchanged. In release 2026.4.1 it cannot read a compiled blob
  (it takes an unset precision for a set one, and hands the blob's path to what wants its bytes), so it gets the ONNX
  file that the engine was built from, with what the engine's manifest says OpenVINO was told; that both graphs have the
  same layers, kernels and precisions is checked. It reports OpenVINO's own clock, which runs within the call: what the
  call from Python and the copies of image and answer take beside it is in our latency alone. That is measured too, with
  the same engine, in the same rounds ("call"); "less call" is the ratio without it.
- ONNX Runtime: a loop around `session.run` on the engine's file, and nothing else. Both sides hold the whole call.

What the harness adds is measured with an engine that does nothing, through both issuers, in the worker's own code.

Command: `python -m benchmarks.harness`, after `make repro`; about 12 minutes on 2 cores, which nothing else should use:
a round in which other programs did is measured again. It ends with 1 where a median is off by more than 3 %, the
machine is too noisy to tell, or the harness adds more than 20 microseconds to a query.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("NNCF_CI", "1")  # no telemetry

import numpy as np

from benchmarks.overhead import MOST_ADDED_US, QUERIES, measure_added
from benchmarks.references import Median, Plant, call, reference, say
from deploy.build import build_target
from deploy.bundle import load_bundle
from deploy.conditions.noise import noise
from deploy.conditions.watch import Watch
from deploy.device import cpu_model, fingerprint
from deploy.errors import DeployError
from deploy.measure import issuer, loadgen
from deploy.measure.crew import Turns, Worker, interleave
from deploy.measure.plan import SINGLE_STREAM, WARM_UP_LIMIT_S
from deploy.measure.run import TURN_NS, TURN_QUERIES
from deploy.measure.scenarios import Rules
from deploy.measure.statistics import Interval, interval_ranks
from deploy.runtimes import get_runtime
from deploy.target import read_target

STUDENT, VIT = "student", "vit_tiny_patch16_224"
RUNTIMES, VARIANTS = ("openvino", "onnxruntime"), ("fp32", "int8")
MOST_OFF = 0.03
NOISY = 4  # noisy rounds, as a multiple of those asked for, after which a machine is too busy
OPSET, CALIBRATION, CLASSES, SIZE = 18, 16, 10, 224
HEADER = (
    f"{'model':<21} {'runtime':<11} {'':<4} {'ours ms':>9} {'theirs ms':>9} {'more us':>8} {'call us':>8} "
    f"{'ratio':>6} {'95 % interval':>16} {'less call':>9} {'rounds':>9}  within {MOST_OFF:.0%}"
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table.

    Attributes:
        name: of model, runtime and variant.
        ours: median of each round in nanoseconds.
        theirs: the reference's.
        call: what of ours the reference does not time; none where it times all.
        quiet: whether nothing else disturbed these rounds; else there were too few such, and they are all that ran.
        tried: number of rounds that ran.
    """

    name: tuple[str, str, str]
    ours: Sequence[float]
    theirs: Sequence[float]
    call: Sequence[float] = ()
    quiet: bool
    tried: int

    @property
    def ratio(self) -> Interval:
        """Ours as a multiple of theirs."""
        return paired(self.ours, self.theirs)

    @property
    def ratio_less_call(self) -> Interval | None:
        """The same without the call, where the reference does not time it."""
        if not self.call:
            return None
        return paired([all_ - call for all_, call in zip(self.ours, self.call, strict=True)], self.theirs)

    @property
    def fits(self) -> bool:
        """Whether the medians are as close as is promised, and the machine was quiet enough to tell."""
        return self.quiet and abs(self.ratio.value - 1) <= MOST_OFF

    def __str__(self) -> str:
        (ours, theirs), ratio, less = (
            (float(np.median(each)) / 1e6 for each in (self.ours, self.theirs)),
            self.ratio,
            "",
        )
        if self.ratio_less_call is not None:
            less = f"{self.ratio_less_call.value:.3f}"
        call = f"{np.median(self.call) / 1e3:.1f}" if self.call else ""
        verdict = "yes" if self.fits else "NO" if self.quiet else "too noisy to tell"
        model, runtime, variant = self.name
        return (
            f"{model:<21} {runtime:<11} {variant:<4} {ours:9.4f} {theirs:9.4f} {1000 * (ours - theirs):8.1f} {call:>8} "
            f"{ratio.value:6.3f} {f'{ratio.low:.3f} to {ratio.high:.3f}':>16} {less:>9} "
            f"{f'{len(self.ours)} of {self.tried}':>9}  {verdict}"
        )


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Returns the median of the ratios within rounds, with its interval by order statistics."""
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    lower, upper = interval_ranks(len(ratios), 0.5)
    return Interval(float(np.median(ratios)), ratios[lower - 1], ratios[upper - 1])


def write_vit(folder: Path) -> None:
    """Exports a vision transformer with random weights, and writes its bundles in fp32 and INT8."""
    import timm
    import torch

    from pipeline.parts.bundle import BundleInfo, save_onnx, write_bundle
    from pipeline.steps.export import to_onnx
    from pipeline.steps.quantize.int8 import Int8, to_int8

    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((CALIBRATION, 3, SIZE, SIZE)).astype(np.float32)
    exported = to_onnx(timm.create_model(VIT, num_classes=CLASSES), torch.from_numpy(images[:1]), opset=OPSET)
    how = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")
    means = [0.5] * 3
    preprocess = {"resize": SIZE, "resize_mode": "squash", "crop": [SIZE, SIZE], "interpolation": "bilinear"}
    preprocess |= {"mean": means, "std": means, "color": "RGB"}
    for variant, network in (("fp32", exported), ("int8", to_int8(exported, how, images=images))):
        (folder / variant).mkdir(parents=True)
        save_onnx(network, folder / variant)
        labels = [str(label) for label in range(CLASSES)]
        info = BundleInfo(
            name=VIT, variant=variant, precision=variant, preprocess=preprocess, labels=labels, lineage=dict.fromkeys(
                ("git_revision", "params_sha256", "data_sha256", "parent_sha256")
            ),
        )  # fmt: skip
        write_bundle(folder / variant, info, golden=images[:4])


def build(model: str, runtime: str, *, onnx: Path, data: Path, work: Path, threads: int, seconds: float) -> Plant:
    """Builds the engines of a model for a runtime, as `compile` does."""
    variants = {name: {"onnx": name, "precision": name} for name in VARIANTS}
    spec = {"runtime": runtime, "threads": threads, "variants": variants}
    device = fingerprint(read_target(runtime, spec))
    work.mkdir(parents=True)
    build_target(work, target=runtime, spec=spec, onnx_root=onnx, device=device, on_progress=say)
    return Plant(model=model, spec=spec, device=device, onnx=onnx, data=data, work=work, seconds=seconds)


def harness(plant: Plant, variant: str, worker: Worker) -> Median:
    """Loads and warms the engine; the turns are those of a measurement."""
    worker.ask(
        "open", engine=str(plant.work / variant), bundle=str(plant.onnx / variant), data=str(plant.data),
        target=plant.runtime, spec=dict(plant.spec), device=dict(plant.device),
    )  # fmt: skip
    median_ns = worker.ask("warm_up", limit_s=WARM_UP_LIMIT_S["standard"])["median_ns"]
    rules = Rules(scenario=SINGLE_STREAM, min_queries=1, min_seconds=plant.seconds)
    request = {"rules": asdict(rules), "engine": issuer_name(), "seed": 0, "expected_ns": max(1, median_ns // 2)}

    def measure() -> float:
        found = {variant: Turns()}
        failed = interleave(
            {variant: worker}, {variant: request}, turn_ns=max(TURN_NS, TURN_QUERIES * median_ns), seed=0, found=found,
            on_round=lambda: None,
        )  # fmt: skip
        if failed:
            sys.exit(failed[variant])
        return float(np.median(found[variant].samples))

    return measure


def contest(plant: Plant, variant: str, *, rounds: int, shuffle: Callable[[list[str]], None]) -> Result:
    """Measures one engine in both ways, until there were as many quiet rounds as asked for, or too many others."""
    worker = Worker(variant, say=say)
    quiet, noisy = [], []
    try:
        bundle = load_bundle(plant.onnx / variant)
        sides = {"ours": harness(plant, variant, worker), "theirs": reference(plant, variant, bundle)}
        if plant.runtime == "openvino":
            sides["call"] = call(plant, variant, bundle)
        while len(quiet) < rounds and len(noisy) < NOISY * rounds:
            order = list(sides)
            shuffle(order)
            with Watch(pids=lambda: [worker.pid]) as watch:
                medians = {side: sides[side]() for side in order}
            reasons = noise(watch.summary())
            (noisy if reasons else quiet).append(medians)
            if reasons:
                say(f"{variant}: a round does not count: {'; '.join(reasons)}")
    finally:
        worker.close()
    enough, tried = len(quiet) == rounds, len(quiet) + len(noisy)
    kept = quiet if enough else quiet + noisy
    found = {side: [medians[side] for medians in kept] for side in sides}
    return Result(name=(plant.model, plant.runtime, variant), quiet=enough, tried=tried, **found)


def issuer_name() -> str:
    """Says what issues the queries: what a measurement takes here."""
    return loadgen.NAME if loadgen.available() else issuer.NAME


def measure_all(args: argparse.Namespace, work: Path) -> list[Result]:
    """Holds all contests; prints a row after each."""
    shuffle = random.Random(0).shuffle
    results = []
    for model in args.models:
        onnx = args.artifacts / "onnx" if model == STUDENT else work / "onnx"
        if model == VIT:
            with contextlib.redirect_stdout(sys.stderr):  # the quantiser shows its progress there
                write_vit(onnx)
        for runtime in RUNTIMES:
            plant = build(
                model, runtime, onnx=onnx, data=args.artifacts / "data", work=work / model / runtime,
                threads=args.threads, seconds=args.seconds,
            )  # fmt: skip
            for variant in VARIANTS:
                results.append(contest(plant, variant, rounds=args.rounds, shuffle=shuffle))
                print(results[-1], flush=True)
    return results


def main() -> None:
    """Prints the machine, a row for each contest, and what the harness adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="with the student's onnx, and data")
    parser.add_argument("--models", nargs="+", choices=(STUDENT, VIT), default=(STUDENT, VIT))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=2, help="of a turn; whole ones, as benchmark_app takes them")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as each runtime likes")
    args = parser.parse_args()
    if min(args.rounds, args.seconds) < 1:
        parser.error(f"--rounds {args.rounds} of --seconds {args.seconds}: give at least 1 of each")
    args.artifacts = args.artifacts.absolute()  # the references run in another folder
    versions = ", ".join(f"{name} {get_runtime(name).version()}" for name in RUNTIMES)
    print(f"{cpu_model()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d %H:%M')}; {versions}")
    print(
        f"{args.rounds} rounds of {args.seconds} s for each; queries issued by {issuer_name()}\n\n{HEADER}", flush=True
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            results = measure_all(args, Path(folder))
    except DeployError as error:
        sys.exit(str(error))
    print(f"\nWith an engine that does nothing, {QUERIES} queries; at most {MOST_ADDED_US:g} us:")
    costs = measure_added()
    for cost in costs:
        print(cost)
    sys.exit(not all(each.fits for each in (*results, *costs)))


if __name__ == "__main__":
    main()
