"""Time stamps that only rise, whatever a camera or a file says."""

import time

_REPEAT = 1e-3  # seconds by which a repeated stamp is moved on
_JUMP = 5.0  # seconds by which a camera's clock may run ahead of ours between two frames
_RATE = 25.0  # frames per second where a source tells nothing usable


class Stamps:
    """Turns a source's stamps into seconds since its first frame.

    A stamp that is missing is put one frame after the one before (for a live source: as long after as it came). A
    single stamp that repeats or lies back is moved just past the one before; if the next lies back as well, the
    source's clock has jumped, and its stamps are followed from there. A live source whose stamps leap ahead of the
    time that really passed has had its clock set: its leap is not followed. In a file a leap ahead is a pause.

    Args:
        rate: frames per second that the source announces; 0 where it does not.
        live: whether frames come as they are taken.
    """

    def __init__(self, rate: float, live: bool) -> None:
        self.period = 1 / (rate if 0 < rate <= 1000 else _RATE)
        self._live = live
        self._offset: float | None = None  # of the source's clock to ours
        self._last = self._came = 0.0
        self._back = 0  # stamps in a row that did not rise
        self._began = False

    def next(self, stamp: float | None, now: float | None = None) -> float:
        """Take a frame's stamp and return its seconds since the first frame.

        Args:
            stamp: seconds on the source's clock, None where the frame has none.
            now: seconds on our monotonic clock; None reads it.
        """
        now = time.monotonic() if now is None else now
        passed, self._came = now - self._came, now
        if not self._began:
            self._began = True
            self._offset = stamp
            return 0.0
        step = max(passed, _REPEAT) if self._live else self.period
        if stamp is None:
            self._last += step
            return self._last
        if self._offset is None:  # the first that has a stamp
            self._offset = stamp - self._last - step
        pts = stamp - self._offset
        if pts < self._last + _REPEAT / 2:  # not just "<=": sums of floats differ in their last digits
            self._back += 1
            pts = self._last + (_REPEAT if self._back == 1 else self.period)
            if self._back > 1:
                self._offset = stamp - pts
        else:
            self._back = 0
            if self._live and pts - self._last > passed + _JUMP:
                pts = self._last + step
                self._offset = stamp - pts
        self._last = pts
        return pts
