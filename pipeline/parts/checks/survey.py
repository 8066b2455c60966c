"""A look at every file of a data set: in several processes, in order, bounded in memory, and only where it changed."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import imagehash
import PIL

from pipeline.base.errors import DataError
from pipeline.base.progress import Reporter
from pipeline.parts.checks.cache import Cache, stamp_of
from pipeline.parts.checks.look import Seen

Look = Callable[[Path], Seen]
BATCH = 64  # files that travel to a process at once
AHEAD = 4  # batches per process that wait for their turn
WORTH_PROCESSES = 512  # files; for fewer, starting processes takes longer than the work


class Survey:
    """Looks at files.

    Args:
        cache: of what was seen before.
        workers: processes; 0 takes one per core, 1 none but this.
    """

    def __init__(self, cache: Cache, *, workers: int) -> None:
        self._cache = cache
        self._kind = ""
        self._workers = workers or len(os.sched_getaffinity(0))

    def look(self, paths: Iterable[Path], look: Look, *, count: int, title: str) -> Iterator[Seen]:
        """Yields what a look sees of each path, in order; files that cannot be read are "broken".

        Args:
            paths: of the files.
            look: at one file; it must be picklable.
            count: of the files.
            title: what they are called; what was seen of a file is kept under it.

        Raises:
            DataError: a process was killed.
        """
        # A look of another kind, or with other eyes, may see something else.
        self._kind = f"{title} Pillow {PIL.__version__} ImageHash {imagehash.__version__}"
        alone = self._workers == 1 or count < WORTH_PROCESSES
        left = iter(paths)
        batches = iter(lambda: list(islice(left, BATCH)), [])
        with Reporter(title, count) as reporter:
            for seen in self._here(batches, look) if alone else self._there(batches, look):
                for one in seen:
                    yield one
                    reporter.advance()

    def _here(self, batches: Iterator[list[Path]], look: Look) -> Iterator[list[Seen]]:
        for batch in batches:
            known, new = self._known(batch)
            yield self._joined(batch, known, new, _look_at(list(new), look))

    def _there(self, batches: Iterator[list[Path]], look: Look) -> Iterator[list[Seen]]:
        # Forked processes would share the locks of threads that are not there.
        with ProcessPoolExecutor(self._workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting: deque[tuple[Sequence[Path], dict[Path, Seen], dict[Path, str], Future[list[Seen]] | None]] = (
                deque()
            )
            while True:
                batch: Sequence[Path] = ()
                try:
                    for batch in islice(batches, AHEAD * self._workers - len(waiting)):
                        known, new = self._known(batch)
                        # The first one submitted starts the processes.
                        future = pool.submit(_look_at, list(new), look) if new else None
                        waiting.append((batch, known, new, future))
                    if not waiting:
                        return
                    batch, known, new, future = waiting.popleft()
                    found = future.result() if future is not None else []
                except BrokenProcessPool as error:
                    msg = (
                        f"a process that read {str(batch[0])!r} or one of the {len(batch) - 1} files after it was "
                        f"killed, perhaps for want of memory; lower `prepare.workers`"
                    )
                    raise DataError(msg) from error
                yield self._joined(batch, known, new, found)

    def _known(self, batch: Sequence[Path]) -> tuple[dict[Path, Seen], dict[Path, str]]:
        """Returns what is known of the files of a batch, and the stamps of the others."""
        known, new = {}, {}
        for path in batch:
            try:
                stamp = f"{stamp_of(path)} {self._kind}"
            except OSError as error:
                known[path] = _unreadable(error)
                continue
            seen = self._cache.get(path, stamp)
            if seen is None:
                new[path] = stamp
            else:
                known[path] = seen
        return known, new

    def _joined(
        self, batch: Sequence[Path], known: dict[Path, Seen], new: dict[Path, str], found: Sequence[Seen]
    ) -> list[Seen]:
        fresh = dict(zip(new, found, strict=True))
        self._cache.put((path, new[path], seen) for path, seen in fresh.items() if seen.sha256)
        both = known | fresh
        return [both[path] for path in batch]


def _look_at(paths: Sequence[Path], look: Look) -> list[Seen]:
    seen = []
    for path in paths:
        try:
            seen.append(look(path))
        except OSError as error:
            seen.append(_unreadable(error))
    return seen


def _unreadable(error: OSError) -> Seen:
    return Seen("", kind="broken", reason=f"the file cannot be read ({error.strerror})")
