"""A small tokenizer of each kind that is published, learnt from a few lines."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = "the cat sat on the mat and the dog sat on the log\nthe cat saw the dog and the dog saw the cat\n" * 3
OTHER = "Grüße aus Köln: façade, naïve, 日本語 ½ ﬁne\n" * 3
BOTH = [TEXT, OTHER]
QUIET = {"show_progress": False}


def byte_level(*, prefix=False, trim=False, normalizer=None):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(BOTH, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, **QUIET))
    if normalizer is not None:
        inner.normalizer = normalizer
    return inner


def gpt1():
    inner = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], end_of_word_suffix="</w>", **QUIET)
    inner.train_from_iterator(BOTH, trainer)
    return inner


def llama(*, sign=True):
    """SentencePiece's BPE with byte fallback; sign=False: without one for a space alone."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    byte = [f"<0x{i:02X}>" for i in range(256)]
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.normalizer = inner.normalizer
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learnt.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", *byte], **QUIET))
    made, found = json.loads(inner.to_str()), json.loads(learnt.to_str())["model"]
    vocab = {
        t: i for i, t in enumerate(t for t in sorted(found["vocab"], key=found["vocab"].get) if sign or "▁" not in t)
    }
    merges = [m for m in found["merges"] if {*m, "".join(m)} <= vocab.keys()]
    made["model"] |= {"vocab": vocab, "merges": merges}
    inner = Tokenizer.from_str(json.dumps(made))
    inner.add_special_tokens(["<unk>"])
    return inner


def unigram(*steps):
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>"], unk_token="<unk>", **QUIET)
    inner.train_from_iterator(BOTH, trainer)
    return inner


def bert(*, lowercase):
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, **QUIET))
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return inner


def words(model, trainer):
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator([TEXT], trainer)
    return inner


KINDS = {
    "GPT-2": byte_level,
    "GPT-2, offsets trimmed": lambda: byte_level(trim=True),
    "byte-level with a space before": lambda: byte_level(prefix=True, trim=True),
    "Qwen (NFC)": lambda: byte_level(normalizer=normalizers.NFC()),
    "GPT-1": gpt1,
    "LLaMA": llama,
    "LLaMA without a bare sign": lambda: llama(sign=False),
    "T5": lambda: unigram(normalizers.NFKC()),
    "ALBERT": lambda: unigram(
        normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()
    ),
    "stripped": lambda: unigram(normalizers.Strip()),
    "BERT uncased": lambda: bert(lowercase=True),
    "BERT cased": lambda: bert(lowercase=False),
    "WordLevel": lambda: words(
        models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(special_tokens=["[UNK]"], **QUIET)
    ),
    "BPE without a decoder": lambda: words(
        models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(vocab_size=80, special_tokens=["[UNK]"], **QUIET)
    ),
}
