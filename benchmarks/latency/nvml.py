"""NVIDIA's management library through ctypes: energy, temperature and memory of the first GPU, where there is one."""

import ctypes

_TEMPERATURE_GPU = 0


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """The first GPU; `open` gives None where there is none. What a card does not tell is None."""

    def __init__(self, library: ctypes.CDLL, device: ctypes.c_void_p) -> None:
        self._library, self._device = library, device

    @classmethod
    def open(cls, name: str = "libnvidia-ml.so.1") -> "Nvml | None":
        """Load the library and take the first GPU."""
        try:
            library = ctypes.CDLL(name)
        except OSError:
            return None
        device = ctypes.c_void_p()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
            return None
        return cls(library, device)

    def joules(self) -> float | None:
        """Energy since the driver was loaded."""
        value = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(value))
        return None if failed else value.value / 1e3

    def temperature(self) -> float | None:
        """Degrees Celsius."""
        value = ctypes.c_uint()
        failed = self._library.nvmlDeviceGetTemperature(self._device, _TEMPERATURE_GPU, ctypes.byref(value))
        return None if failed else float(value.value)

    def memory(self) -> int | None:
        """Bytes in use, by anyone."""
        value = _Memory()
        failed = self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(value))
        return None if failed else int(value.used)

    def name(self) -> str | None:
        """Of the card."""
        value = ctypes.create_string_buffer(96)
        failed = self._library.nvmlDeviceGetName(self._device, value, len(value))
        return None if failed else value.value.decode(errors="replace")
