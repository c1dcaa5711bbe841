"""A tiny random BERT in a folder, with a WordPiece vocabulary of its own: a real checkpoint that loads in no time."""

from __future__ import annotations

from pathlib import Path

WORDS = "the meeting is at noon buy cheap pills now free money report attached please see you tomorrow".split()


def save_tiny_bert(folder: Path, *, seed: int = 0, layers: int = 4, hidden: int = 16) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a random BERT; returns the folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(8)  # what a sentence model's file may ask for, and ours must not obey
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
