"""Give the server optimizers what they share: checked steps, cache-sized blocks, layer norms."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from privacy.errors import SettingsError
from strategies.hyperparameters import RULES, Rule, check_values

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
Method = TypeVar("Method", bound=Callable[..., Any])

# On fewer than 2^15 values torch works in the calling thread. On more it waits for all threads
# after every operation, which is slow where the cores are shared.
CPU_PIECE = 3 << 13
# The pieces of one block: few enough to stay in a cache, enough to hide the cost of a call.
CPU_BLOCK = 10 * CPU_PIECE
# On an accelerator a block only bounds the scratch memory (256 MiB in float32).
ACCELERATOR_BLOCK = 1 << 26
# The norm of such a row is one thread's work, so it does not depend on the number of threads.
NORM_ROW = CPU_PIECE


def unguarded(method: Method) -> Method:
    """Give a method of torch's optimizers without its guard for torch.compile.

    No server step is compiled, and a guard's first call imports the whole compiler: a second.
    """
    return getattr(method, "__wrapped__", method)


class ServerOptimizer(torch.optim.Optimizer):
    """Step on the pseudo-gradient, minus the aggregated update, held in each tensor's ``.grad``.

    Weights are float32 or float64 and are changed in place; ``.grad`` is read and never written.
    A tensor without ``.grad`` is left alone, its state too. State values are tensors or plain
    numbers. ``relative_to`` in a parameter group is the clip norm in whose units eps, tau
    (and v_init, in its square) are given; 1 means absolute values.
    """

    add_param_group = unguarded(torch.optim.Optimizer.add_param_group)
    state_dict = unguarded(torch.optim.Optimizer.state_dict)
    load_state_dict = unguarded(torch.optim.Optimizer.load_state_dict)
    zero_grad = unguarded(torch.optim.Optimizer.zero_grad)

    def __init__(
        self,
        params: Parameters,
        hyperparameters: dict[str, Any],
        rules: Mapping[str, Rule] = RULES,
    ) -> None:
        problems = check_values(hyperparameters, rules)
        if problems:
            raise SettingsError(problems)
        super().__init__(params, hyperparameters)

    @torch.no_grad()
    def step(  # type: ignore[override]  # one signature for torch's two overloads
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take one server step and return the closure's loss, if a closure was given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self.update_in_place(group, params)
        return loss

    @abstractmethod
    def update_in_place(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Change the given tensors of one parameter group; each of them has a ``.grad``."""

    def moments(self, params: Sequence[Tensor], name: str, start: float = 0.0) -> list[Tensor]:
        """Return one state tensor per parameter, filled with ``start`` at its first use."""
        for param in params:
            if name not in self.state[param]:
                self.state[param][name] = torch.full_like(
                    param, start, memory_format=torch.preserve_format
                )
        return [self.state[param][name] for param in params]


def gradients(params: Sequence[Tensor]) -> list[Tensor]:
    """Return the pseudo-gradients of tensors that all have one."""
    return [param.grad for param in params if param.grad is not None]


@dataclass(frozen=True)
class Block:
    """Hold matching pieces of several tensor lists, and the number of the tensor of each piece."""

    numbers: list[int]
    columns: list[list[Tensor]]

    def pick(self, values: Sequence[float]) -> list[float]:
        """Return the value of each piece from one value per tensor."""
        return [values[number] for number in self.numbers]


def for_each_block(work: Callable[[Block], None], *columns: Sequence[Tensor]) -> None:
    """Do the work on every block of parallel lists of equally shaped tensors.

    A step that does all its work on one block before the next reads main memory once, and its
    scratch is one block instead of one model. On the CPU as many threads as torch has share
    the blocks; no value depends on which thread did which block.
    """
    waiting = _blocks(columns)
    cpu = all(tensor.device.type == "cpu" for tensor in columns[0])
    large = sum(tensor.numel() for tensor in columns[0]) > CPU_BLOCK
    workers = torch.get_num_threads() if cpu and large else 1
    if workers == 1:
        for block in waiting:
            work(block)
        return
    lock = Lock()

    def drain() -> None:
        # Each thread has a gradient mode of its own.
        with torch.no_grad():
            while (block := _next(waiting, lock)) is not None:
                work(block)

    with ThreadPoolExecutor(workers) as pool:
        for finished in [pool.submit(drain) for _ in range(workers)]:
            finished.result()


def _next(waiting: Iterator[Block], lock: Lock) -> Block | None:
    with lock:
        return next(waiting, None)


def _blocks(columns: Sequence[Sequence[Tensor]]) -> Iterator[Block]:
    numbers: list[int] = []
    held: list[list[Tensor]] = [[] for _ in columns]
    count = 0
    for number, tensors in enumerate(zip(*columns, strict=True)):
        piece_size, block_size = _sizes(tensors[0])
        for pieces in _split(tensors, piece_size):
            numbers.append(number)
            for column, piece in zip(held, pieces, strict=True):
                column.append(piece)
            count += pieces[0].numel()
            if count >= block_size:
                yield Block(numbers, held)
                numbers, held, count = [], [[] for _ in columns], 0
    if numbers:
        yield Block(numbers, held)


def _sizes(tensor: Tensor) -> tuple[int, int]:
    if tensor.device.type != "cpu":
        return ACCELERATOR_BLOCK, ACCELERATOR_BLOCK
    return CPU_BLOCK if torch.get_num_threads() == 1 else CPU_PIECE, CPU_BLOCK


def _split(tensors: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    # A flat view of a tensor with gaps would be a copy, and writing to it would be lost.
    if tensors[0].numel() <= size or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    yield from zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)


def roots(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the square roots in new tensors."""
    # torch's sqrt waits for all threads even on small tensors; the power 0.5 is the same root.
    return list(torch._foreach_pow(list(tensors), 0.5))


class RowNorms:
    """Gather squared Euclidean norms of tensors that arrive piece by piece, in any order.

    On the CPU the norms of short rows are kept and added exactly at the end, so the result does
    not depend on the number of threads. Other devices are waited for once a block.
    """

    def __init__(self, count: int) -> None:
        self._norms: list[list[float]] = [[] for _ in range(count)]

    def add(self, numbers: Sequence[int], pieces: Sequence[Tensor]) -> None:
        """Add one piece to each of the numbered tensors; a number may come more than once."""
        if not all(piece.device.type == "cpu" for piece in pieces):
            found = torch.stack([norm.double() for norm in torch._foreach_norm(list(pieces))])
            for number, norm in zip(numbers, found.tolist(), strict=True):
                self._norms[number].append(norm)
            return
        for number, piece in zip(numbers, pieces, strict=True):
            self._norms[number] += _row_norms(piece)

    def squares(self) -> list[float]:
        """Return the squared norm of every tensor; 0 for a tensor without pieces."""
        return [math.fsum(norm * norm for norm in norms) for norms in self._norms]


def sums_of_squares(tensors: Sequence[Tensor]) -> list[float]:
    """Return the squared Euclidean norm of each tensor, as Python floats."""
    norms = RowNorms(len(tensors))
    for_each_block(lambda block: norms.add(block.numbers, block.columns[0]), tensors)
    return norms.squares()


def _row_norms(tensor: Tensor) -> list[float]:
    flat = tensor.reshape(-1)
    in_rows = flat.numel() - flat.numel() % NORM_ROW
    rows, rest = flat[:in_rows].view(-1, NORM_ROW), flat[in_rows:]
    norms: list[float] = torch.linalg.vector_norm(rows, dim=1).tolist() if in_rows else []
    return [*norms, float(torch.linalg.vector_norm(rest))] if in_rows < flat.numel() else norms
