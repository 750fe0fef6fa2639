"""Names of special tokens in the tokenizers that others have published."""

from __future__ import annotations

# What others call them, most specific first. A name not found is added.
ALIASES = {
    "eos": ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
    "cls": ("<|cls|>", "[CLS]", "<s>", "<cls>"),
    "sep": ("<|sep|>", "[SEP]", "</s>", "<sep>"),
    # As Qwen2.5-Coder, StarCoder and Code Llama call them.
    "fim_prefix": ("<|fim_prefix|>", "<fim_prefix>", "▁<PRE>"),
    "fim_suffix": ("<|fim_suffix|>", "<fim_suffix>", "▁<SUF>"),
    "fim_middle": ("<|fim_middle|>", "<fim_middle>", "▁<MID>"),
    # GLM's: of the blanks that are filled in, and of masks that stand for sentences and for most of a text.
    "start": ("<|startofpiece|>", "<sop>", "[sop]"),
    "end": ("<|endofpiece|>", "<eop>", "[eop]"),
    "smask": ("[sMASK]",),
    "gmask": ("[gMASK]",),
    # UL2's modes, which its paper names [R], [S] and [X].
    "mode_r": ("[NLU]", "[R]"),
    "mode_s": ("[S2S]", "[S]"),
    "mode_x": ("[NLG]", "[X]"),
}
