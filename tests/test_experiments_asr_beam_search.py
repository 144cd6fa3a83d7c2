"""Check the beam search against sums over all alignments, and what a lexicon makes of it."""

from __future__ import annotations

import itertools
import math
import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.asr.batching import SpeechBatch
from experiments.asr.beam_search import BeamSearch
from experiments.asr.corpora import Corpus, Utterance
from experiments.asr.lexicon import Lexicon
from experiments.asr.speech_task import SpeechTask
from experiments.asr.task import task
from experiments.asr.tokens import FRENCH, Tokens
from experiments.asr.word_error_rate import greedy_decode
from privacy.errors import SettingsError

pytest.importorskip("flashlight")

_LETTERS = Tokens("ab ")
_WORDS = Lexicon({"a": "a", "ab": "AB", "bb": "bb"})
_CLOSE = 1e-5
"""Relative: float32 scores of few steps; texts that are as probable as each other may swap."""

_BIGRAMS = {
    ("<s>", "a"): -2.0,
    ("<s>", "AB"): -0.1,
    ("a", "a"): -0.3,
    ("AB", "</s>"): -1.5,
    ("a", "</s>"): -0.2,
}
_UNIGRAMS = {"a": -1.0, "AB": -0.5, "bb": -1.25, "</s>": -0.75}


def _output(steps: int, labels: int = 4) -> st.SearchStrategy[torch.Tensor]:
    row = st.lists(st.floats(-4, 4, width=32), min_size=labels, max_size=labels)
    return st.lists(row, min_size=steps, max_size=steps).map(torch.tensor)


def _summed(logits: torch.Tensor, collapse: Callable[[tuple[int, ...]], str]) -> dict[str, float]:
    """Add up the probability of every path that writes the same."""
    probabilities = torch.softmax(logits.double(), dim=-1).numpy()
    found: defaultdict[str, float] = defaultdict(float)
    for path in itertools.product(range(logits.shape[1]), repeat=logits.shape[0]):
        kept = tuple(label for label, _ in itertools.groupby(path) if label)
        found[collapse(kept)] += math.prod(
            float(probabilities[step, label]) for step, label in enumerate(path)
        )
    return found


def _labels(kept: tuple[int, ...]) -> str:
    return "".join(_LETTERS.characters[label - 1] for label in kept)


def _one(search: BeamSearch, logits: torch.Tensor) -> str:
    return search(logits[None], torch.tensor([len(logits)]))[0]


def test_a_text_with_more_probability_in_sum_beats_the_best_path() -> None:
    """Graves 2006, figure 2: the best path is two blanks with 0.36, all ways to a have 0.64."""
    logits = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    lengths = torch.tensor([2])
    assert greedy_decode(logits, lengths, Tokens("a")) == [""]
    assert BeamSearch(Tokens("a"))(logits, lengths) == ["a"]


@given(st.integers(1, 5).flatmap(_output))
def test_a_wide_beam_finds_the_most_probable_labels(logits: torch.Tensor) -> None:
    summed = _summed(logits, _labels)
    best = max(summed.values())
    close = {" ".join(text.split()) for text, p in summed.items() if p >= best * (1 - _CLOSE)}
    assert _one(BeamSearch(_LETTERS, size=4000), logits) in close


def _worth(text: str, probability: float, word_score: float) -> float:
    return math.log(probability) + word_score * len(text.split())


@given(st.integers(1, 6).flatmap(_output), st.sampled_from([0.0, 0.75, -0.5]))
def test_with_a_lexicon_it_finds_the_most_probable_text_of_its_words(
    logits: torch.Tensor, word_score: float
) -> None:
    worth = {
        text: _worth(text, probability, word_score)
        for text, probability in _summed(logits, _LETTERS.decode).items()
        if set(text.split()) <= set(_WORDS.words)
    }
    search = BeamSearch(_LETTERS, size=4000, lexicon=_WORDS, word_score=word_score)
    assert worth[_one(search, logits)] >= max(worth.values()) - _CLOSE


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("language") / "words.arpa"
    unigrams = "".join(f"{score}\t{word}\t0\n" for word, score in _UNIGRAMS.items())
    bigrams = "".join(f"{score}\t{first} {then}\n" for (first, then), score in _BIGRAMS.items())
    path.write_text(
        f"\\data\\\nngram 1={len(_UNIGRAMS) + 2}\nngram 2={len(_BIGRAMS)}\n\n"
        f"\\1-grams:\n-99\t<s>\t0\n-3\t<unk>\t0\n{unigrams}\n\\2-grams:\n{bigrams}\n\\end\\\n"
    )
    return path


def _language(text: str) -> float:
    """Give the base-ten logarithm of a sentence: bigrams, or unigrams with no weight to back off.

    The words are those of the lexicon's file, whose spellings the text has.
    """
    words = ["<s>", *(_WORDS.words[spelling] for spelling in text.split()), "</s>"]
    return sum(_BIGRAMS.get(pair, _UNIGRAMS[pair[1]]) for pair in itertools.pairwise(words))


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_a_language_model_adds_its_weighted_logarithm(language_model: Path, weight: float) -> None:
    search = BeamSearch(_LETTERS, 4000, _WORDS, language_model, weight)
    chosen = set()
    for seed in range(40):
        logits = 2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        worth = {
            text: _worth(text, probability, 0.0) + weight * _language(text)
            for text, probability in _summed(logits, _LETTERS.decode).items()
            if set(text.split()) <= set(_WORDS.words)
        }
        text = _one(search, logits)
        assert worth[text] >= max(worth.values()) - _CLOSE
        chosen.add(text)
    assert len(chosen) > 3


def test_a_damaged_language_model_is_a_settings_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged.arpa"
    path.write_text("\\data\\\nngram 1=")
    search = BeamSearch(_LETTERS, lexicon=_WORDS, language_model=path)
    with pytest.raises(SettingsError, match="language_model must be a file that KenLM reads") as it:
        _one(search, torch.zeros(2, 4))
    assert "\n" not in str(it.value)


def _written(text: str, tokens: Tokens) -> torch.Tensor:
    """Give an output that writes labels, "_" for the blank, each nearly surely."""
    rows = [0 if letter == "_" else tokens.encode(letter)[0] for letter in text]
    return 8 * torch.nn.functional.one_hot(torch.tensor(rows), tokens.labels).float()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("wel_l-known", "well-known"),
        ("o'clock", "o'clock"),
        (" two__ _ words ", "two words"),
        ("bo_ook", "book"),
        ("____", ""),
        ("   ", ""),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_blank_space_and_hyphen_are_what_they_are(written: str, read: str, padded: bool) -> None:
    tokens = Tokens(padded=padded)
    search = BeamSearch(tokens)
    assert _one(search, _written(written, Tokens())) == read
    words = {word: word for word in ("well-known", "o'clock", "two", "words", "book")}
    among = BeamSearch(tokens, lexicon=Lexicon(words))
    assert _one(among, _written(written, Tokens())) == read


def test_a_lexicon_allows_its_words_alone_however_sure_the_model_is() -> None:
    search = BeamSearch(Tokens(), lexicon=Lexicon({"seven": "seven", "one": "one"}))
    assert _one(search, _written("sefen one", Tokens())) == "seven one"
    assert _one(search, _written("sevenone", Tokens())) in ("seven", "one")
    assert _one(search, _written("s", Tokens())) == ""


def test_letters_of_other_languages_are_searched_too() -> None:
    tokens = Tokens(FRENCH)
    written = _written("garçon brûlé", tokens)
    assert _one(BeamSearch(tokens), written) == "garçon brûlé"
    lexicon = Lexicon({"garçon": "Garçon", "brûlé": "brûlé"})
    assert _one(BeamSearch(tokens, lexicon=lexicon), written) == "garçon brûlé"


@pytest.mark.parametrize("lexicon", [None, _WORDS])
def test_steps_beyond_the_length_are_not_read(lexicon: Lexicon | None) -> None:
    logits = torch.stack([_written(text, _LETTERS) for text in ("ab a", "ab a", "b_bb")])
    search = BeamSearch(_LETTERS, lexicon=lexicon)
    assert search(logits, torch.tensor([2, 0, 4], dtype=torch.int32)) == ["ab", "", "bb"]
    logits[0, 2:] = math.nan
    assert search(logits, torch.tensor([2, 0, 4])) == ["ab", "", "bb"]


@pytest.mark.parametrize("lexicon", [None, _WORDS])
def test_a_batch_is_searched_as_one_by_one_in_any_precision(lexicon: Lexicon | None) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 9, 4).bfloat16()
    search = BeamSearch(_LETTERS, size=20, lexicon=lexicon)
    lengths = torch.tensor([9, 3, 7, 1, 9])
    alone = [_one(search, row[:length]) for row, length in zip(logits, lengths, strict=True)]
    assert search(logits, lengths) == search(logits.float(), lengths) == alone


@pytest.mark.parametrize("lexicon", [None, _WORDS])
def test_an_output_that_is_no_number_writes_nothing(lexicon: Lexicon | None) -> None:
    broken = torch.full((3, 4), math.nan)
    assert _one(BeamSearch(_LETTERS, lexicon=lexicon), broken) == ""


def test_a_used_search_travels_without_its_decoder() -> None:
    search = BeamSearch(_LETTERS, lexicon=_WORDS)
    logits = _written("ab a", _LETTERS)
    before = _one(search, logits)
    assert "_decoder" in vars(search)
    copy = pickle.loads(pickle.dumps(search))
    assert "_decoder" not in vars(copy)
    assert copy == search
    assert _one(copy, logits) == before == "ab a"


class _Ambiguous(torch.nn.Module):
    """Give one utterance the output of the first test, whatever is said."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([[[0.6, 0.4, 0.0]] * 2]).log())

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits, torch.tensor([2])


def test_the_task_counts_the_errors_of_its_search() -> None:
    tokens = Tokens("a ")
    said = Utterance("one", "somebody", "dev", "a", 1.0)
    corpus = Corpus("one letter", (said,), lambda _: np.zeros(16000, dtype=np.float32))
    rates = [
        SpeechTask(corpus, torch.nn.Identity, tokens=tokens, search=search).evaluate(
            _Ambiguous(), "dev"
        )["wer"]
        for search in (None, BeamSearch(tokens))
    ]
    assert rates == [1.0, 0.0]


def test_an_evaluation_by_search_differs_from_the_greedy_one_in_its_errors_alone(
    tmp_path: Path,
) -> None:
    words = tmp_path / "digits.txt"
    words.write_text("ONE\nnine\n\nété\n")
    sizes = {"speakers": 2, "utterances": 2, "held_out_speakers": 1, "progress": False}
    plain = task(cache_dir=tmp_path, **sizes)
    among = task(cache_dir=tmp_path, decoder="beam", beam_size=8, lexicon=str(words), **sizes)
    torch.manual_seed(0)
    model = plain.model()
    greedy, searched = plain.evaluate(model, "dev"), among.evaluate(model, "dev")
    assert set(searched) == set(greedy)
    assert searched["loss"] == greedy["loss"]
    assert searched["cer"] != greedy["cer"]
    told = dict(among.describe())
    assert told["decoder"] == "beam search"
    assert told["beam size"] == 8
    assert told["lexicon: words"] == 2
    assert told["lexicon: words that cannot be spelled"] == 1
    assert "decoder" not in plain.describe()
    batch = next(iter(plain.all_training_data().batches(np.random.default_rng(0))))
    assert isinstance(batch, SpeechBatch)
    assert torch.equal(plain.loss(model.eval(), batch), among.loss(model.eval(), batch))
