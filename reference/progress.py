"""How a stage of training runs: steps with a progress bar, a cosine learning rate, a log of its losses."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor


@dataclass
class Course:
    """One stage: how long, on what, from which seed.

    Attributes:
        length: optimizer steps.
        seed: of everything drawn during the stage.
        device: where it runs.
        losses: of each step so far.
    """

    length: int
    seed: int
    device: torch.device
    losses: list[float] = field(default_factory=list)
    _step: int = 0

    def steps(self, name: str) -> Iterator[int]:
        """Count the steps, shown as a bar with the mean loss of the last hundred."""
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        torch.manual_seed(self.seed)
        with Progress(*columns, refresh_per_second=1) as progress:
            task = progress.add_task(name, total=self.length, loss="-")
            for step in range(self.length):
                self._step = step
                yield step
                progress.update(task, advance=1, loss=f"{np.mean(self.losses[-100:]):.3f}")
                # A bar shows nothing in a log file; there, a line now and then does.
                if step % 100 == 99 and not progress.console.is_terminal:
                    progress.console.print(
                        f"{name} {step + 1}/{self.length} loss {np.mean(self.losses[-100:]):.3f}"
                    )

    def optimizer(self, parameters: Sequence[Tensor], rate: float) -> torch.optim.AdamW:
        """AdamW over `parameters`; `rate` is the peak of the schedule."""
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05, "peak": rate, "lr": 0.0},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "peak": rate, "lr": 0.0},
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def precision(self) -> AbstractContextManager[object]:
        """Bfloat16 where the device is fast at it: on a GPU, and on a CPU with AMX (half the time of fp32)."""
        fast = self.device.type == "cuda" or _has_amx()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    def update(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One step: warm-up over a twentieth of the course, then half a cosine down to nothing."""
        warm = max(1, self.length // 20)
        done = (self._step - warm) / max(1, self.length - warm)
        factor = (self._step + 1) / warm if self._step < warm else 0.5 * (1 + np.cos(np.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        self.losses.append(loss.item())


@cache
def _has_amx(facts: Path = Path("/proc/cpuinfo")) -> bool:
    return facts.exists() and "amx_bf16" in facts.read_text()
