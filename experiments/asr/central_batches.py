"""Give all speakers' batches epoch after epoch, know the place among them, and go on from one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.asr.speaker import SpeechUser
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from experiments.asr.batching import SpeechBatch
    from experiments.asr.sounds import SoundBatch


class EndlessBatches:
    """Yield the batches of one epoch after the other; each epoch is drawn as a whole.

    everyone: all speakers' utterances as if they were one's. seed: of the random stream.
    place: as `place` gave it; of its epoch, what was used is drawn again but not read again.

    Raises: SettingsError when the place is among other utterances.
    """

    def __init__(
        self, everyone: SpeechUser, seed: int, place: Mapping[str, Any] | None = None
    ) -> None:
        self._everyone = everyone
        self._utterances = _digest(everyone)
        self._generator = np.random.default_rng(seed)
        if place is not None:
            self._refuse_other_utterances(place)
            self._generator.bit_generator.state = place["epoch_start"]
        self._begin_epoch()
        if place is not None:
            self._groups_used = place["groups_used"]
            self._generator.bit_generator.state = place["generator"]

    def _begin_epoch(self) -> None:
        self._epoch_start = self._generator.bit_generator.state
        self._groups = self._everyone.groups(self._generator)
        self._groups_used = 0

    def _refuse_other_utterances(self, place: Mapping[str, Any]) -> None:
        if place["utterances"] != self._utterances:
            raise SettingsError(
                "resume needs the training utterances of the interrupted run, got others of the "
                "same data users; bring that corpus back or start a new run"
            )

    def place(self) -> dict[str, Any]:
        """Say where the next batch stands, as JSON can hold it."""
        return {
            "utterances": self._utterances,
            "epoch_start": self._epoch_start,
            "groups_used": self._groups_used,
            "generator": self._generator.bit_generator.state,
        }

    def __iter__(self) -> Iterator[SpeechBatch | SoundBatch]:
        """Yield without end; raises SettingsError where a whole epoch has no batch."""
        given = self._groups_used > 0
        while True:
            waiting = self._groups[self._groups_used :]
            for batch in self._everyone.batches_of(waiting, self._generator):
                self._groups_used += 1
                if batch is not None:
                    given = True
                    yield batch
            if not given:
                raise SettingsError(
                    "the corpus must hold training speech that can be read, got none; see the "
                    "warnings"
                )
            given = False
            self._begin_epoch()


def _digest(everyone: SpeechUser) -> str:
    """Hash what an epoch is drawn from and what its labels are."""
    found = hashlib.sha256()
    for item in everyone.utterances:  # one by one: corpora have millions
        found.update(json.dumps([item.key, item.seconds, item.text]).encode())
    return found.hexdigest()
