"""Give every random draw a stream of its own, keyed by the run or drawn from the system.

A keyed stream depends only on (seed, settings hash, purpose, round, attempt, index). Two draws
that differ in any of these use unrelated streams, whichever worker makes them and in whatever
order. The settings hash covers every setting that changes bytes, so two different runs never
share noise.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

Purpose = Literal["model", "cohort", "training", "noise", "completion", "evaluation", "canary"]


class Source(Protocol):
    """Offer the three draws that sampling and noise are built from."""

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Draw `count` numbers uniform in (0, 1]."""
        ...

    def integers(self, bound: int, count: int) -> NDArray[np.int64]:
        """Draw `count` integers uniform in [0, bound)."""
        ...

    def normal(self, count: int) -> NDArray[np.float64]:
        """Draw `count` standard normal numbers, with tails to at least eight deviations."""
        ...


class _Key(ISeedSequence):
    """Hand a key to a generator as it is: given as `key` the system is asked for a seed as well."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        """Give the key, which is all that Philox asks for."""
        return self.words


class KeyedSource:
    """Draw from a counter-based generator (Philox) under a 128-bit key.

    >>> KeyedSource(b"0123456789abcdef").integers(6, 5).tolist() == KeyedSource(
    ...     b"0123456789abcdef").integers(6, 5).tolist()
    True

    Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    Guarantee: equal keys give equal draws, other keys unrelated ones.
    Not covered: Philox is not a cryptographic generator. Who knows the seed knows the noise.
    """

    def __init__(self, key: bytes) -> None:
        words: Any = _Key(np.frombuffer(key, "<u8"))  # NumPy's types know of SeedSequence alone
        self.generator = np.random.Generator(np.random.Philox(words))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Draw `count` numbers uniform in (0, 1]."""
        return 1.0 - self.generator.random(count)

    def integers(self, bound: int, count: int) -> NDArray[np.int64]:
        """Draw `count` integers uniform in [0, bound)."""
        return self.generator.integers(0, bound, count, dtype=np.int64)

    def normal(self, count: int) -> NDArray[np.float64]:
        """Draw `count` standard normal numbers (ziggurat, double precision)."""
        return self.generator.standard_normal(count)


class SystemSource:
    """Draw from the operating system's cryptographic generator; nothing can repeat it.

    >>> bool(SystemSource().normal(4).tolist() != SystemSource().normal(4).tolist())
    True

    Reference: Box and Muller 1958 for the normal numbers.
    Guarantee: nobody who sees other draws can tell this one, as far as the system keeps its secret.
    Not covered: normal numbers beyond 8.57 deviations do not occur; floating-point rounding.
    """

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Draw `count` numbers uniform in (0, 1] on a grid of 2**-53."""
        words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
        return ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53

    def integers(self, bound: int, count: int) -> NDArray[np.int64]:
        """Draw `count` integers uniform in [0, bound), without modulo bias."""
        limit = (2**64 // bound) * bound
        drawn: list[NDArray[np.uint64]] = []
        while (missing := count - sum(map(len, drawn))) > 0:
            words = np.frombuffer(os.urandom(8 * (missing + 8)), dtype=np.uint64)
            drawn.append(words[words <= np.uint64(limit - 1)][:missing])
        return (np.concatenate([*drawn, np.empty(0, np.uint64)]) % np.uint64(bound)).astype(
            np.int64
        )

    def normal(self, count: int) -> NDArray[np.float64]:
        """Draw `count` standard normal numbers by the transform of Box and Muller (1958)."""
        pairs = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(pairs)))
        angle = 2.0 * np.pi * self.uniform(pairs)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


@dataclass(frozen=True)
class Streams:
    """Hand out the streams of one run.

    seed: any integer. settings_hash: hex digest of the settings that change bytes.
    secure: draw noise and cohorts from the operating system instead.

    >>> streams = Streams(seed=1, settings_hash="ab")
    >>> first, again = streams.source("noise", 1), streams.source("noise", 1)
    >>> bool((first.normal(3) == again.normal(3)).all())
    True
    """

    seed: int
    settings_hash: str
    secure: bool = False

    def key(self, purpose: Purpose, round: int, attempt: int = 0, index: int = 0) -> bytes:
        """Derive the 128-bit key of one stream by BLAKE2b."""
        text = f"{self.seed}|{self.settings_hash}|{purpose}|{round}|{attempt}|{index}"
        return hashlib.blake2b(text.encode(), digest_size=16, person=b"fedopt-stream-v1").digest()

    def source(self, purpose: Purpose, round: int, attempt: int = 0, index: int = 0) -> Source:
        """Open the stream of a cohort or of noise: the system's where the run is secure."""
        if self.secure:
            return SystemSource()
        return KeyedSource(self.key(purpose, round, attempt, index))

    def generator(self, purpose: Purpose, round: int, index: int = 0) -> np.random.Generator:
        """Open a repeatable generator for what needs no secrecy: batch order, initial weights."""
        return KeyedSource(self.key(purpose, round, 0, index)).generator

    def torch_seed(self, purpose: Purpose, round: int, index: int = 0) -> int:
        """Derive the seed for torch's own generators (dropout, augmentation, initial weights)."""
        return int.from_bytes(self.key(purpose, round, 0, index)[:8], "little") >> 1

    def key_hash(self, round: int, attempt: int) -> str:
        """Name the randomness of a release for the ledger without giving it away.

        Equal for a repeated round of a repeatable run; fresh each time where the run is secure.
        """
        secret = os.urandom(16) if self.secure else self.key("noise", round, attempt)
        return hashlib.sha256(b"fedopt-key-hash" + secret).hexdigest()
