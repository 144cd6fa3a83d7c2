"""Time the local steps of a speech model, and what one user costs: train, clip, noise, add.

    python -m experiments.benchmarks.speech --model tiny --seconds 20 --output speech.json
    python -m experiments.benchmarks.speech --model base --device cuda --precision bfloat16

Needs torch, torchaudio and the folders privacy, strategies and experiments; no Flower, no Ray. The
speech is noise of the right length; features, loss and SGD are those of a run. Arithmetic is
counted by hand (experiments.asr.flops), features and loss left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.asr.features import (
    FRAMES_PER_STEP,
    SAMPLE_RATE,
    frame_count,
    log_mel,
    normalise_rows,
)
from experiments.asr.flops import forward_flops
from experiments.asr.loss import mean_ctc_loss
from experiments.asr.model import PRESETS, ModelChanges, build_model, compile_blocks
from experiments.benchmarks.server_step import commit
from privacy.clipped_sum import ClippedSum
from privacy.clipping import layer_bounds
from privacy.noise import add_noise, grid_spacing
from privacy.seeds import Streams

LABELS = 30
LETTERS_PER_SECOND = 14
CLIP_NORM = 0.01
BFLOAT16_PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""Dense bf16 additions and multiplications per second, by a part of the device's name."""


@dataclass(frozen=True)
class Speech:
    """Hold one batch of noise as long as speech.

    waveforms: (batch, samples) float32; targets: (batch, letters) int64; frames, letters: (batch,).
    """

    waveforms: Tensor
    frames: Tensor
    targets: Tensor
    letters: Tensor


def make_speech(seconds: float, utterance_seconds: float, device: str) -> Speech:
    """Draw a batch of equal utterances, `seconds` in all."""
    rows = max(1, round(seconds / utterance_seconds))
    generator = torch.Generator().manual_seed(0)
    samples = round(min(seconds, utterance_seconds) * SAMPLE_RATE)
    letters = max(1, round(samples / SAMPLE_RATE * LETTERS_PER_SECOND))
    return Speech(
        (0.1 * torch.randn(rows, samples, generator=generator)).to(device),
        torch.full((rows,), frame_count(samples), device=device),
        torch.randint(1, LABELS, (rows, letters), generator=generator).to(device),
        torch.full((rows,), letters, device=device),
    )


@dataclass
class User:
    """Train one user in flat buffers as a worker does; phases: seconds by what they went into."""

    model: torch.nn.Module
    half_precision: bool
    client_lr: float = 0.2
    phases: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.weights = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.received = self.weights.clone()
        self.update = torch.zeros_like(self.weights)
        self.summed = ClippedSum(self.sizes, self.weights.device)
        for parameter, view in zip(
            self.parameters, torch.split(self.weights, self.sizes), strict=True
        ):
            parameter.data = view.view(parameter.shape)

    @property
    def device(self) -> torch.device:
        """Give the device of the weights."""
        return self.weights.device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a block until the device has finished it."""
        begin = time.perf_counter()
        yield
        _finish(self.device)
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - begin

    def step(self, speech: Speech) -> None:
        """Take one local SGD step: features, forward, loss, gradient, clip to norm 1, update."""
        with self.phase("features"), torch.no_grad():
            features = normalise_rows(log_mel(speech.waveforms), speech.frames)
        with (
            self.phase("forward"),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half_precision),
        ):
            logits, steps = self.model(features, speech.frames)
        with self.phase("loss"):
            loss = mean_ctc_loss(logits, steps, speech.targets, speech.letters)
        with self.phase("backward"):
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        with self.phase("local step"), torch.no_grad():
            self._descend(gradients)

    def _descend(self, found: tuple[Tensor | None, ...]) -> None:
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, self.parameters, strict=True)
        ]
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, torch.clamp(1.0 / (total + 1e-6), max=1.0))
        torch._foreach_add_(self.parameters, gradients, alpha=-self.client_lr)

    def train(self, speech: Speech, steps: int) -> None:
        """Train `steps` steps from the received weights; clip, noise and add the update."""
        with self.phase("local step"):
            self.weights.copy_(self.received)
        for _ in range(steps):
            self.step(speech)
        spacing = grid_spacing(CLIP_NORM)
        with self.phase("clip and add"):
            torch.sub(self.weights, self.received, out=self.update)
            bounds = layer_bounds("per-layer-dim", CLIP_NORM, self.sizes)
            self.summed.start("per-layer-dim", bounds, spacing)
            self.summed.add(self.update)
        with self.phase("noise"):
            source = Streams(0, "speech").source("noise", 1)
            add_noise(self.summed.total, source, CLIP_NORM, spacing)


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def step_flops(name: str, speech: Speech) -> float:
    """Count the arithmetic of one training step; the gradient costs twice the forward pass."""
    steps = int(speech.frames[0]) // FRAMES_PER_STEP
    settings = PRESETS[name]
    return 3.0 * len(speech.frames) * forward_flops(settings, LABELS, steps)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Time users one after the other; the first is not counted."""
    torch.manual_seed(0)
    # Layer drop is off: every step does the arithmetic that is counted.
    changes = ModelChanges(layer_drop=0.0, checkpoint_activations=flags.checkpoint_activations)
    model = build_model(flags.model, LABELS, changes).to(flags.device).train()
    if flags.compiled:
        compile_blocks(model)
    user = User(model, flags.precision == "bfloat16")
    speech = make_speech(flags.seconds, flags.utterance_seconds, flags.device)
    user.train(speech, flags.steps)
    seconds, phases = [], []
    for _ in range(flags.users):
        user.phases = {}
        begin = time.perf_counter()
        user.train(speech, flags.steps)
        seconds.append(time.perf_counter() - begin)
        phases.append(user.phases)
    return {**_figures(flags, user, speech, seconds, phases), "profile": _profile(user, speech)}


def _figures(
    flags: argparse.Namespace,
    user: User,
    speech: Speech,
    seconds: list[float],
    phases: list[dict[str, float]],
) -> dict[str, Any]:
    middle = {name: statistics.median(each[name] for each in phases) for name in phases[0]}
    private = sum(middle[name] for name in ("clip and add", "noise"))
    training = sum(middle.values()) - private
    flops = step_flops(flags.model, speech)
    peak = next((p for name, p in BFLOAT16_PEAKS.items() if name in device_name(flags)), None)
    rate = flops * flags.steps / training
    return {
        "parameters": sum(user.sizes),
        "tensors": len(user.sizes),
        "speech_seconds_per_step": speech.waveforms.numel() / SAMPLE_RATE,
        "milliseconds_per_local_step": 1e3 * training / flags.steps,
        "milliseconds_per_user": 1e3 * statistics.median(seconds),
        "milliseconds_by_phase": {name: 1e3 * value for name, value in middle.items()},
        "clip_noise_add_share_of_training": private / training,
        "flops_per_step": flops,
        "flops_per_second": rate,
        "share_of_bfloat16_peak": None if peak is None else rate / peak,
        "peak_memory_megabytes": peak_megabytes(user.device),
        "update_is_finite": math.isfinite(float(user.update.norm())),
    }


def _profile(user: User, speech: Speech) -> list[dict[str, Any]]:
    """List the ten operations that take most time in one step."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = user.device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=kinds, acc_events=True) as seen:
        user.step(speech)

    def time_of(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(seen.key_averages(), key=time_of, reverse=True)[:10]
    return [
        {"operation": event.key, "calls": event.count, "milliseconds": time_of(event) / 1e3}
        for event in events
    ]


def peak_megabytes(device: torch.device) -> float:
    """Measure the most memory that was held: the device's, on a CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def device_name(flags: argparse.Namespace) -> str:
    """Name the device: the GPU's name, or the processor."""
    if flags.device.startswith("cuda"):
        return torch.cuda.get_device_name(flags.device)
    return platform.processor() or platform.machine()


def main() -> None:
    """Read the flags, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=PRESETS, default="tiny")
    parser.add_argument("--seconds", type=float, default=120.0, help="of speech in a batch")
    parser.add_argument("--utterance-seconds", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=10, help="local steps of a user")
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    load_before = os.getloadavg()[0]
    settings = {name: value for name, value in vars(flags).items() if name != "output"}
    text = json.dumps(
        {
            "schema_version": 1,
            "benchmark": "speech",
            **settings,
            **measure(flags),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "hardware": {
                "device": device_name(flags),
                "cores": os.cpu_count(),
                "load_average_before": load_before,
            },
            "commit": commit(),
        },
        indent=1,
    )
    print(text)
    if flags.output is not None:
        flags.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
