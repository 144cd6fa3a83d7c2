"""Recognise speech: the learning task of the paper, on synthetic or real corpora.

Reading order: tokens, corpora (audio, index, librispeech, common_voice, users, synthetic_corpus,
synthetic_speech), features, augmentation, batching, speaker, layers, model, conformer, flops,
word_error_rate, evaluation, options, task, recipes, seed_models, central_batches,
central_training, central.
"""
