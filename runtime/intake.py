"""Where the cameras' temporal patches wait for the one vision pass: bounded, fair, newest first under load."""

import threading
from collections import deque

from tvau_edge.runtime.sampler import TemporalPatch


class Intake:
    """A short queue per camera, and one reader that takes at most one patch of each at a time.

    Memory is bounded by `depth` patches per camera, whatever the cameras do. A file waits for room; a live camera
    does not: its oldest waiting patch is dropped and counted.

    Args:
        cameras: names of the cameras that will put patches.
        depth: patches that may wait, per camera.
    """

    def __init__(self, cameras: list[str], depth: int = 2) -> None:
        self._waiting: dict[str, deque[TemporalPatch]] = {camera: deque() for camera in cameras}
        self._dropped = dict.fromkeys(cameras, 0)
        self._open = set(cameras)
        self._depth = depth
        self._closed = False
        self._changed = threading.Condition()

    def put(self, patch: TemporalPatch, *, live: bool) -> None:
        """Hand over a patch; `live` sources never wait, others wait until there is room."""
        with self._changed:
            queue = self._waiting[patch.camera]
            if live:
                while len(queue) >= self._depth:
                    queue.popleft()
                    self._dropped[patch.camera] += 1
            else:
                self._changed.wait_for(lambda: len(queue) < self._depth or self._closed)
            if not self._closed:
                queue.append(patch)
                self._changed.notify_all()

    def end(self, camera: str) -> None:
        """Say that `camera` puts nothing more; what waits is still taken."""
        with self._changed:
            self._open.discard(camera)
            self._changed.notify_all()

    def take(self) -> list[TemporalPatch]:
        """Wait for patches and return the oldest of each camera that has one; empty once all have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._open or any(self._waiting.values()))
            batch = [queue.popleft() for queue in self._waiting.values() if queue]
            self._changed.notify_all()
            return [] if self._closed else batch

    def close(self) -> None:
        """Let everyone who waits go on; later patches are ignored."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def dropped(self) -> dict[str, int]:
        """Patches dropped so far, per camera."""
        with self._changed:
            return dict(self._dropped)
