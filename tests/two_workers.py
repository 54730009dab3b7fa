"""Two processes that speak through gloo, as nnU-Net's speak through NCCL on GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def in_two_workers(function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Return what `function(rank, *args)` returns in either of two workers; `folder` takes their files."""
    multiprocessing.spawn(_work, args=(function, str(folder), args), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _work(rank: int, function: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(function(rank, *args), f"{folder}/{rank}.pt")
    distributed.barrier()
    # Taking gloo down can abort a process whose work is done: its threads may still run when the interpreter ends.
    os._exit(0)
