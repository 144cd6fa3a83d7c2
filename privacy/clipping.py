"""Bound one user's update in L2 norm, whole or layer by layer.

A layer is one trainable parameter tensor. Bounds C_h satisfy sum C_h^2 = C^2, so every mode has
the sensitivity C of a flat clip; they differ in how the bound is shared among layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

Clipping = Literal[
    "global", "per-layer-uniform", "per-layer-dim", "normalise-uniform", "normalise-dim"
]
CLIPPINGS: tuple[Clipping, ...] = get_args(Clipping)

CHUNK = 1 << 16  # elements turned to float64 at a time: small enough to stay in the cache
DEVICE_CHUNK = 1 << 24  # the same where there is no such cache: 128 MB, and few kernels to start


@dataclass(frozen=True)
class ClippedUpdate:
    """Hold a clipped update and what clipping did to it.

    norms: L2 norm of each layer before clipping. bounds: C_h of each layer ("global": C for all).
    was_clipped: whether each layer was changed. finite: False where the update held NaN or
    infinity and was therefore replaced by zeros.
    """

    update: dict[str, torch.Tensor]
    norms: dict[str, float]
    bounds: dict[str, float]
    was_clipped: dict[str, bool]
    finite: bool = True


def layer_bounds(clipping: str, clip_norm: float, sizes: Sequence[int]) -> list[float]:
    """Share the clip norm C among layers of the given sizes (elements each).

    uniform: C / sqrt(H). dim: C sqrt(d_h / D). global: C for every layer, bounded together.

    Reference: Pelikan et al. 2025 (arXiv 2310.00098), Definition 3.

    >>> layer_bounds("per-layer-dim", 1.0, [9, 16])
    [0.6, 0.8]
    """
    if clipping not in CLIPPINGS:
        raise SettingsError(f"clipping must be one of {', '.join(CLIPPINGS)}, got {clipping!r}")
    if clipping == "global":
        return [clip_norm] * len(sizes)
    if clipping.endswith("uniform"):
        return [clip_norm / math.sqrt(max(len(sizes), 1))] * len(sizes)
    total = max(sum(sizes), 1)
    return [clip_norm * math.sqrt(size / total) for size in sizes]


def squared_norm(tensor: torch.Tensor) -> torch.Tensor:
    """Sum the squares of a tensor in float64; returns a scalar tensor on its device.

    A float32 accumulation is 6 % off at 10^8 elements, which would break the bound. Every device
    widens one chunk after the other; a processor takes as much as its cache holds.
    """
    import torch

    size = CHUNK if tensor.device.type == "cpu" else DEVICE_CHUNK
    wide = (part.to(torch.float64) for part in torch.split(tensor.reshape(-1), size))
    squares = [torch.dot(part, part) for part in wide]
    # A small layer, the usual case, is one chunk: nothing is left to add.
    return squares[0] if len(squares) == 1 else sum(squares[1:], squares[0])


def clip_scales(clipping: str, norms: Sequence[float], bounds: Sequence[float]) -> list[float]:
    """Compute the factor of each layer from its norm and bound; 1.0 leaves a layer untouched.

    strict: min(1, C_h / norm_h). normalise: C_h / norm_h for every layer once the whole norm
    exceeds C (what the code of arXiv 2310.00098 does), so a small layer may grow to its bound.
    """
    if clipping == "global":
        scale = _shrink(math.sqrt(math.fsum(norm**2 for norm in norms)), bounds[0])
        return [scale] * len(norms)
    if clipping.startswith("normalise"):
        whole = math.sqrt(math.fsum(norm**2 for norm in norms))
        if whole <= math.sqrt(math.fsum(bound**2 for bound in bounds)):
            return [1.0] * len(norms)
        pairs = zip(norms, bounds, strict=True)
        return [bound / norm if norm > 0.0 else 1.0 for norm, bound in pairs]
    return [_shrink(norm, bound) for norm, bound in zip(norms, bounds, strict=True)]


def _shrink(norm: float, bound: float) -> float:
    return 1.0 if norm <= bound else bound / norm


def scale_in_place(tensors: Sequence[torch.Tensor], scales: Sequence[float]) -> None:
    """Multiply each tensor by its factor so that rounding cannot lift a norm above its bound.

    Rounding to a type of spacing eps raises a norm by at most a factor 1 + eps / 2, and so does
    rounding the factor itself; the margin of 2 eps covers both.
    """
    import torch

    for tensor, scale in zip(tensors, scales, strict=True):
        if scale == 1.0:
            continue
        info = torch.finfo(tensor.dtype)
        safe = scale * (1.0 - 2.0 * info.eps)
        # A factor beyond the type's range would turn zeros into NaN; staying below only shrinks.
        # One below 1.2e-38 is denormal in float32 and may be rounded up by half or more: take 0.
        tensor.mul_(min(safe, float(info.max)) if safe > 1.2e-38 else 0.0)


def clip_tensors_in_place(
    tensors: Sequence[torch.Tensor], clipping: str, bounds: Sequence[float]
) -> tuple[list[float], list[float], bool]:
    """Clip the layers of one update in place; returns norms before, factors, and finiteness.

    An update with NaN or infinity becomes zeros: a broken user contributes nothing.
    """
    import torch

    if not tensors:
        return [], [], True
    squares = torch.stack([squared_norm(tensor) for tensor in tensors]).tolist()
    norms = [math.sqrt(square) if square >= 0.0 else math.nan for square in squares]
    if not all(map(math.isfinite, norms)):
        for tensor in tensors:
            tensor.zero_()
        return norms, [0.0] * len(norms), False
    scales = clip_scales(clipping, norms, bounds)
    scale_in_place(tensors, scales)
    return norms, scales, True


def clip_update(
    update: Mapping[str, torch.Tensor],
    clip_norm: float,
    clipping: str = "per-layer-dim",
    *,
    bounds: Mapping[str, float] | None = None,
    in_place: bool = False,
) -> ClippedUpdate:
    """Clip one user's update so that its whole L2 norm is at most `clip_norm`.

    update: mapping of layer name to floating tensor, any shapes, CPU or GPU.
    clipping: "global", "per-layer-uniform", "per-layer-dim" only ever shrink;
    "normalise-uniform", "normalise-dim" set layers to their bounds once the whole norm exceeds C.
    bounds: own C_h by layer name, in place of the mode's share; sum C_h^2 <= clip_norm^2.
    in_place: overwrite the given tensors instead of copying them.

    Raises: SettingsError for an unknown mode, a bad norm, bounds that do not fit, or a tensor
    that is not floating.
    Reference: arXiv 2310.00098, Definition 3; flat clip: McMahan et al. 2018 (arXiv 1710.06963).
    Guarantee: the L2 norm over all layers, after rounding, is at most clip_norm; so adding or
    removing the user changes a sum of clipped updates by at most clip_norm.
    Not covered: which layers were clipped and the norms returned here are not private.

    >>> import torch
    >>> clipped = clip_update({"w": torch.tensor([3.0, 4.0])}, 1.0, "global")
    >>> round(clipped.norms["w"], 6), clipped.was_clipped["w"]
    (5.0, True)
    """
    _check(update, clip_norm, clipping, bounds)
    names = list(update)
    tensors = [update[name] if in_place else update[name].detach().clone() for name in names]
    shares = layer_bounds(clipping, clip_norm, [tensor.numel() for tensor in tensors])
    limits = shares if bounds is None else [float(bounds[name]) for name in names]
    norms, scales, finite = clip_tensors_in_place(tensors, clipping, limits)
    return ClippedUpdate(
        update=dict(zip(names, tensors, strict=True)),
        norms=dict(zip(names, norms, strict=True)),
        bounds=dict(zip(names, limits, strict=True)),
        was_clipped={name: scale != 1.0 for name, scale in zip(names, scales, strict=True)},
        finite=finite,
    )


def _check(
    update: Mapping[str, torch.Tensor],
    clip_norm: float,
    clipping: str,
    bounds: Mapping[str, float] | None,
) -> None:
    problems = []
    if clipping not in CLIPPINGS:
        problems.append(f"clipping must be one of {', '.join(CLIPPINGS)}, got {clipping!r}")
    if not (isinstance(clip_norm, int | float) and 0.0 < clip_norm < math.inf):
        problems.append(f"clip-norm must be a finite number > 0, got {clip_norm}; try 0.1 to 10")
    problems += [
        f"layer {name!r} must hold floating numbers, got {tensor.dtype}; leave it out of the update"
        for name, tensor in update.items()
        if not tensor.dtype.is_floating_point
    ]
    # float16 is denormal below 6e-5, where rounding may lift a norm by more than any margin.
    problems += [
        f"layer {name!r} must be float32, float64 or bfloat16, got float16; convert it to float32"
        for name, tensor in update.items()
        if str(tensor.dtype) == "torch.float16"
    ]
    if bounds is not None:
        problems += _check_bounds(update, clip_norm, clipping, bounds)
    if problems:
        raise SettingsError(problems)


def _check_bounds(
    update: Mapping[str, torch.Tensor], clip_norm: float, clipping: str, bounds: Mapping[str, float]
) -> list[str]:
    if set(bounds) != set(update):
        return [f"bounds must name the layers {sorted(update)}, got {sorted(bounds)}"]
    if clipping == "global":
        return ["bounds need a per-layer or normalise clipping, got global; leave bounds out"]
    if not all(0.0 <= bound < math.inf for bound in bounds.values()):
        return ["bounds must be finite numbers >= 0; correct the negative or infinite ones"]
    whole = math.sqrt(math.fsum(bound**2 for bound in bounds.values()))
    if whole > clip_norm * (1.0 + 1e-12):
        return [f"bounds must satisfy sqrt(sum C_h^2) <= clip-norm {clip_norm}, got {whole}"]
    return []
