"""The chain that the tests of merge, export and quantize look at, made once."""

from tests.unit.pipeline.steps.chained import chain

__all__ = ["chain"]
