"""The newest frames of a live source, read on a thread of its own."""

import threading
from collections.abc import Iterator
from types import TracebackType

from tvau_edge.runtime.cameras.frame import Frame
from tvau_edge.runtime.cameras.source import Source

_JOIN_SECONDS = 1.0  # that closing waits for a reader; one that FFmpeg holds ends by its own time limit


class LatestFrames:
    """Reads a live source on a thread of its own and keeps only its newest frames.

    Args:
        source: an open live source; closed with this.
        depth: frames that may wait; when another comes, the oldest is dropped and counted in `dropped`.

    Raises:
        SourceError: while iterating: what the source raised, or it has been silent for too long.
    """

    def __init__(self, source: Source, depth: int = 2) -> None:
        self._source = source
        self._depth = depth
        self._frames: list[Frame] = []
        self._error: Exception | None = None
        self._done = False
        self._changed = threading.Condition()
        self.dropped = 0
        self._thread = threading.Thread(target=self._read, name=f"camera {source.camera}", daemon=True)
        self._thread.start()

    def __enter__(self) -> "LatestFrames":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        try:
            for frame in self._source:
                with self._changed:
                    if self._done:
                        return
                    self._frames.append(frame)
                    if len(self._frames) > self._depth:
                        self._frames.pop(0)
                        self.dropped += 1
                    self._changed.notify()
        except Exception as error:  # raised again where the frames are taken
            if not self._done:
                self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                # The source sees its silence itself, except where a driver never returns from a read.
                patience = self._source.stall_seconds + _JOIN_SECONDS
                if not self._changed.wait_for(lambda: self._frames or self._done, patience):
                    raise self._source._stalled()
                if not self._frames:
                    break
                frame = self._frames.pop(0)
            yield frame
        # Let go of the error, whose traceback leads back to us: a cycle would keep the decoder's memory for long.
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    @property
    def ended(self) -> bool:
        """Whether the thread that reads has ended; a driver may hold it beyond `close`."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Stop reading and let go of the source."""
        with self._changed:
            self._done = True
            self._frames.clear()
            self._changed.notify()
        self._source.close()
        self._thread.join(timeout=_JOIN_SECONDS)
        self._error = None  # nobody takes it any more; see `__iter__`
