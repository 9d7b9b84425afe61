"""Where the cameras' temporal patches wait for the one vision pass: bounded, fair, newest first under load."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from tvau_edge.runtime.cameras.sampler import TemporalPatch


@dataclass(frozen=True, slots=True)
class Cut:
    """The camera was away: what comes after does not follow what came before."""

    camera: str


class Intake:
    """A short queue per camera, and one reader that takes at most one patch of each at a time.

    Memory is bounded by `depth` patches per camera, whatever the cameras do. A file waits for room; a live camera
    does not: its oldest waiting patch is dropped and counted. When more cameras wait than fit into a batch, they take
    turns.

    Args:
        cameras: names of the cameras that will put patches.
        depth: patches that may wait, per camera.
        most: patches in a batch.
    """

    def __init__(self, cameras: list[str], depth: int = 2, most: int = 64) -> None:
        self._waiting: dict[str, deque[TemporalPatch | Cut]] = {camera: deque() for camera in cameras}
        self._dropped = dict.fromkeys(cameras, 0)
        self._open = set(cameras)
        self._depth, self._most = depth, most
        self._closed = False
        self._changed = threading.Condition()

    def change(self, remove: Iterable[str], add: Iterable[str]) -> None:
        """Forget cameras with what waits of them, and take patches of others, in one step.

        Args:
            remove: what they still put is ignored, unless they are added again.
            add: may hold names that are removed: they begin anew.
        """
        with self._changed:
            for camera in remove:
                self._waiting.pop(camera, None)
                self._dropped.pop(camera, None)
                self._open.discard(camera)
            for camera in add:
                self._waiting[camera], self._dropped[camera] = deque(), 0
                self._open.add(camera)
            self._changed.notify_all()

    def put(self, patch: TemporalPatch, *, live: bool) -> None:
        """Hand over a patch; `live` sources never wait, others wait until there is room."""
        with self._changed:
            queue = self._waiting.get(patch.camera)
            if queue is None:
                return
            if live:
                while sum(not isinstance(item, Cut) for item in queue) >= self._depth:
                    queue.remove(next(item for item in queue if not isinstance(item, Cut)))
                    self._dropped[patch.camera] += 1
            else:
                camera = patch.camera
                self._changed.wait_for(
                    lambda: len(queue) < self._depth or self._closed or self._waiting.get(camera) is not queue
                )
            if not self._closed and self._waiting.get(patch.camera) is queue:
                queue.append(patch)
                self._changed.notify_all()

    def cut(self, camera: str) -> None:
        """Say that `camera` went away; the reader hears of it after what waits."""
        with self._changed:
            queue = self._waiting.get(camera)
            if queue is not None and not (queue and isinstance(queue[-1], Cut)):
                queue.append(Cut(camera))
                self._changed.notify_all()

    def end(self, camera: str) -> None:
        """Say that `camera` puts nothing more; what waits is still taken."""
        with self._changed:
            self._open.discard(camera)
            self._changed.notify_all()

    def take(self) -> list[TemporalPatch | Cut]:
        """Wait for news and return the oldest of each camera that has some, as many as fit; empty once all ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._open or any(self._waiting.values()))
            if self._closed:
                return []
            served = [camera for camera, queue in self._waiting.items() if queue][: self._most]
            batch = [self._waiting[camera].popleft() for camera in served]
            if len(served) == self._most:  # they go behind those that were not served
                for camera in served:
                    self._waiting[camera] = self._waiting.pop(camera)
            self._changed.notify_all()
            return batch

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
