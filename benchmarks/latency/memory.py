"""What a process weighs before any model is loaded."""

import subprocess
import sys

_SAY = (
    "import gc; gc.collect()\n"
    "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS:')][0])"
)
_PROCESSES = {
    "interpreter with numpy": "import numpy",
    "runtime": "import numpy, tvau_edge.runtime.service.watching",
}


def idle_processes() -> dict[str, int]:
    """Resident bytes of a bare interpreter with numpy, and of one with all that `tvau run` imports.

    A back end's library is not among it: it comes with the first graph.
    Empty where the system does not tell.
    """
    found = {}
    for name, imports in _PROCESSES.items():
        command = [sys.executable, "-c", f"{imports}\n{_SAY}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip().isdigit():
            found[name] = int(done.stdout) * 1024
    return found
