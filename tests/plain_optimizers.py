"""The server optimizers as their papers print them: loops over numpy arrays, no tricks.

Each function takes the weights, the pseudo-gradients of all rounds (minus the aggregated
update) as dicts of float64 arrays, and the hyperparameters; it returns the weights after each
round. The fast classes are compared with these.
"""

from __future__ import annotations

import numpy as np


def run(params, rounds, one_tensor, **hyperparameters):
    """Run a method that treats every tensor by itself."""
    weights = {name: np.array(value, dtype=np.float64) for name, value in params.items()}
    memory = {name: {} for name in weights}
    history = []
    for gradients in rounds:
        for name in weights:
            g = np.array(gradients[name], dtype=np.float64)
            weights[name] = one_tensor(weights[name], g, memory[name], **hyperparameters)
        history.append({name: value.copy() for name, value in weights.items()})
    return history


def norm(x):
    return np.sqrt((x * x).sum())


def fedavg(p, g, memory, lr):
    return p + lr * -g


def fedavgm(p, g, memory, lr, momentum):
    b = momentum * memory["b"] + g if "b" in memory else g
    memory["b"] = b
    return p - lr * b


def fedadagrad(p, g, memory, lr, tau, beta1=0.0, v_init=None):
    delta = -g
    start = tau**2 if v_init is None else v_init
    m = beta1 * memory.get("m", np.zeros_like(p)) + (1 - beta1) * delta
    v = memory.get("v", np.full_like(p, start)) + delta**2
    memory.update(m=m, v=v)
    return p + lr * m / (np.sqrt(v) + tau)


def fedadam(p, g, memory, lr, tau, beta1, beta2, v_init=None):
    delta = -g
    start = tau**2 if v_init is None else v_init
    m = beta1 * memory.get("m", np.zeros_like(p)) + (1 - beta1) * delta
    v = beta2 * memory.get("v", np.full_like(p, start)) + (1 - beta2) * delta**2
    memory.update(m=m, v=v)
    return p + lr * m / (np.sqrt(v) + tau)


def fedyogi(p, g, memory, lr, tau, beta1, beta2, v_init=None):
    delta = -g
    start = tau**2 if v_init is None else v_init
    m = beta1 * memory.get("m", np.zeros_like(p)) + (1 - beta1) * delta
    v = memory.get("v", np.full_like(p, start))
    v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
    memory.update(m=m, v=v)
    return p + lr * m / (np.sqrt(v) + tau)


def novograd(
    p,
    g,
    memory,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay=0.0,
    decay="paper",
    grad_averaging=False,
    noise_std=0.0,
    floor_kappa=1.0,
):
    energy, d = (g * g).sum(), g.size
    if "v" not in memory:
        v, u, w, m = energy, d * noise_std**2, 1.0, np.zeros_like(p)
    else:
        v = beta2 * memory["v"] + (1 - beta2) * energy
        u = beta2 * memory["u"] + (1 - beta2) * d * noise_std**2
        w = beta2**2 * memory["w"] + (1 - beta2) ** 2
        m = memory["m"]
    corrected = v
    if noise_std > 0:
        corrected = max(v - u, floor_kappa * u * np.sqrt(2 * w / d), eps**2)
    contribution = g / (np.sqrt(corrected) + eps)
    if decay == "paper":
        contribution = contribution + weight_decay * p
    m = beta1 * m + (1 - beta1 if grad_averaging else 1.0) * contribution
    memory.update(v=v, u=u, w=w, m=m)
    if decay == "decoupled":
        return p - lr * m - lr * weight_decay * p
    return p - lr * m


def fedlamb(
    p, g, memory, lr, beta1, beta2, eps, weight_decay=0.0, bias_correction=True, skip_1d=False
):
    plain = skip_1d and p.ndim <= 1
    t = memory.get("t", 0) + 1
    m = beta1 * memory.get("m", np.zeros_like(p)) + (1 - beta1) * g
    v = beta2 * memory.get("v", np.zeros_like(p)) + (1 - beta2) * g**2
    memory.update(t=t, m=m, v=v)
    m_hat = m / (1 - beta1**t) if bias_correction else m
    v_hat = v / (1 - beta2**t) if bias_correction else v
    r = m_hat / (np.sqrt(v_hat) + eps) + (0.0 if plain else weight_decay) * p
    ratio = norm(p) / norm(r) if norm(p) > 0 and norm(r) > 0 and not plain else 1.0
    return p - lr * ratio * r


def fedlars(p, g, memory, lr, momentum, weight_decay, trust_coefficient, skip_1d=False, eps=0.0):
    plain = skip_1d and p.ndim <= 1
    decay = 0.0 if plain else weight_decay
    ratio = 1.0
    if norm(p) > 0 and norm(g) > 0 and not plain:
        ratio = trust_coefficient * norm(p) / (norm(g) + decay * norm(p) + eps)
    b = momentum * memory.get("b", np.zeros_like(p)) + lr * ratio * (g + decay * p)
    memory["b"] = b
    return p - b


def scale(p, g, memory, lr, momentum, is_last, weight_decay=0.0, eps=1e-8):
    if is_last:
        g = momentum * memory.get("m", np.zeros_like(p)) + (1 - momentum) * g
        memory["m"] = g
    columns = g.reshape(1, -1) if p.ndim <= 1 else g.reshape(len(g), -1)
    way = np.stack([column / max(norm(column), eps) for column in columns]).reshape(p.shape)
    return p - lr * way - lr * weight_decay * p
