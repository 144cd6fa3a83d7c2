"""Write the loss of many users and its gradient down as one list of plain tensor operations.

The task's own loss is mapped over a stack of weights and batches, differentiated, and traced; each
random draw becomes one by user, and a gradient that is a product of two matrices is handed out as
its two factors, so that the product can be added to the weights as it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from clients.task import Batch, Task

Tensors = list[torch.Tensor]
Node = Any
"""A node of a graph; torch types its arguments as a union of all that they could ever be."""

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.expand.default)
VIEWS = (*RESHAPES, aten.transpose.int, aten.t.default, aten.permute.default)


class Unstackable(Exception):
    """Say why users of this task are trained one at a time."""


@dataclass(frozen=True)
class Trace:
    """Hold the operations of one step: weights and batch, flat, to what `results` lists.

    graph: called with the stacked weights, then the batch's tensors; returns losses (users,), then
    by layer the gradient, or the two factors of it where `fused` says so.
    """

    graph: Callable[..., list[torch.Tensor]]
    fused: tuple[bool, ...]
    draws: UserDraws


class _Loss(torch.nn.Module):
    """Call the task's loss from a module, so that the model's weights can be exchanged."""

    def __init__(self, task: Task, model: torch.nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.task.loss(self.model, batch)


def trace(
    task: Task,
    model: torch.nn.Module,
    names: Sequence[str],
    weights: Tensors,
    leaves: Tensors,
    rebuild: Callable[[Tensors], Batch],
    *,
    fuse: bool,
) -> Trace:
    """Trace loss and gradient of a stack; fuse: hand out factors of products where there are any.

    names: of the trained parameters. weights: (users, *shape) each. leaves: the tensors of a
    stacked batch, (users, ...) each, from which `rebuild` makes one user's batch.

    Raises: Unstackable where the loss is not tensor operations that treat each user alone: control
    flow that depends on data, buffers that change, random draws of an unknown kind.
    """
    module = _Loss(task, model)

    def one(weights: Tensors, leaves: Tensors) -> torch.Tensor:
        named = {f"model.{name}": weight for name, weight in zip(names, weights, strict=True)}
        loss: torch.Tensor = functional_call(module, named, (rebuild(leaves),))
        return loss

    graph = _traced(vmap(grad_and_value(one), randomness="different"), model, weights, leaves)
    graph.graph.set_codegen(CodeGen())  # type: ignore[no-untyped-call]
    draws = take_over_draws(graph, len(weights[0]))
    leave_out_nothings(graph)
    leave_out_repeats(graph)
    fused = hand_out(graph, len(weights), fuse)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Trace(graph, fused, draws)


def _traced(
    function: Callable[..., Any], model: torch.nn.Module, weights: Tensors, leaves: Tensors
) -> GraphModule:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    state = torch.random.get_rng_state()
    try:
        with torch.no_grad():
            graph = make_fx(function, decomposition_table=FEW_CLASSES)(weights, leaves)
    except Exception as problem:
        reason = (str(problem).strip().splitlines() or [repr(problem)])[0]
        raise Unstackable(f"the loss cannot be mapped over users ({reason[:160]})") from problem
    finally:
        torch.random.set_rng_state(state)
    if any(not torch.equal(buffer, before) for buffer, before in buffers):
        raise Unstackable("the model changes buffers while it trains")
    return graph


class UserDraws:
    """Draw each user's random numbers from that user's own generator."""

    generators: Sequence[torch.Generator] = ()

    def bernoulli(self, like: torch.Tensor, probability: float) -> torch.Tensor:
        """Draw zeros and ones of the shape of `like`, (users, ...), by user."""
        drawn = torch.empty_like(like, memory_format=torch.contiguous_format)
        for row, generator in zip(drawn, self.generators, strict=True):
            row.bernoulli_(probability, generator=generator)
        return drawn


def take_over_draws(graph: GraphModule, users: int) -> UserDraws:
    """Replace every random draw by one from the users' own generators."""
    draws = UserDraws()
    for node in list(graph.graph.nodes):
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        if node.target is not aten.bernoulli.p or shape_of(node)[:1] != (users,):
            raise Unstackable(f"the model draws random numbers by {node.target}")
        with graph.graph.inserting_before(node):
            own = graph.graph.call_function(draws.bernoulli, node.args)
        node.replace_all_uses_with(own)
        graph.graph.erase_node(node)
    return draws


def leave_out_nothings(graph: GraphModule) -> None:
    """Take out operations that give what they got: reshapes to the same shape, products with 1."""
    for node in list(graph.graph.nodes):
        same = node.target in RESHAPES and shape_of(node) == shape_of(node.args[0])
        once = node.target is aten.mul.Scalar and node.args[1] == 1
        if same or (once and node.meta["val"].dtype == node.args[0].meta["val"].dtype):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def leave_out_repeats(graph: GraphModule) -> None:
    """Compute once what loss and gradient both ask for; a graph that changes tensors is left alone.

    Random draws are no operations of torch by now and are never merged.
    """
    calls = [node for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if any(node.target._schema.is_mutable for node in calls):
        return
    first: dict[Any, Node] = {}
    for node in calls:
        known = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if known is not node:
            node.replace_all_uses_with(known)
            graph.graph.erase_node(node)


def log_softmax(scores: torch.Tensor, dim: int, half_to_float: bool) -> Any:
    """Give log probabilities; for few classes torch's own kernel takes twice as long."""
    if not _few(scores, dim) or half_to_float:
        return NotImplemented
    below = scores - scores.amax(dim, keepdim=True)
    return below - below.exp().sum(dim, keepdim=True).log()


def log_softmax_backward(
    gradient: torch.Tensor, output: torch.Tensor, dim: int, dtype: torch.dtype
) -> Any:
    """Give the gradient of `log_softmax` from that of its output."""
    if not _few(output, dim) or dtype != output.dtype:
        return NotImplemented
    return gradient - output.exp() * gradient.sum(dim, keepdim=True)


FEW_CLASSES: Mapping[Any, Callable[..., Any]] = {
    aten._log_softmax.default: log_softmax,
    aten._log_softmax_backward_data.default: log_softmax_backward,
}


def _few(values: torch.Tensor, dim: int) -> bool:
    """Tell rows that are shorter than what a processor's vector unit takes at once."""
    return values.device.type == "cpu" and values.shape[dim] < 16


def hand_out(graph: GraphModule, layers: int, fuse: bool) -> tuple[bool, ...]:
    """Let the graph return losses, then each layer's gradient or its two factors."""
    nodes = list(graph.graph.nodes)
    inputs, output = nodes[:layers], nodes[-1]
    *gradients, losses = output.args[0]
    results, fused = [losses], []
    with graph.graph.inserting_before(output):
        for gradient in gradients:
            factors = factors_of(gradient, inputs) if fuse else None
            fused.append(factors is not None)
            if factors is None:
                results.append(gradient)
                continue
            left, right, turned = factors
            if turned:
                left, right = (
                    graph.graph.call_function(aten.transpose.int, (factor, 1, 2))
                    for factor in (right, left)
                )
            results += [left, right]
    output.args = (results,)
    return tuple(fused)


def factors_of(gradient: Node, weights: Sequence[Node]) -> tuple[Node, Node, bool] | None:
    """Follow a gradient back to the product of matrices that it is, and say whether it is turned.

    Returns: left (users, rows, inner), right (users, inner, columns), turned; or None.
    """
    node, turned = gradient, False
    if len(shape_of(gradient)) != 3:
        return None
    while node.target is not aten.bmm.default:
        if node.target is aten.transpose.int and {d % 3 for d in node.args[1:]} == {1, 2}:
            turned = not turned
        elif node.target not in RESHAPES or shape_of(node) != shape_of(node.args[0]):
            return None
        node = node.args[0]
    left, right = node.args
    # A factor that is a view of weights would change while they are stepped.
    if base_of(left) in weights or base_of(right) in weights:
        return None
    return left, right, turned


def base_of(node: Node) -> Node:
    """Follow views back to the result or input they show."""
    while node.target in VIEWS:
        node = node.args[0]
    return node


def shape_of(node: Node) -> tuple[int, ...]:
    """Give the shape that a node had when it was written down."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
