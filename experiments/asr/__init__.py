"""Recognise speech: the learning task of the paper, on synthetic or real corpora.

Reading order: tokens, corpora (librispeech, synthetic_corpus, synthetic_speech), features,
augmentation, batching, model, word_error_rate, options, task, central.
"""
