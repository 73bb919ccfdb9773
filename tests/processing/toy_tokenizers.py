"""Small tokenizers trained on a few multilingual sentences, in the folders that the hub's checkpoints have."""

import io
import json
import shutil

import sentencepiece
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "a photo of a cat",
    "a photo of two dogs playing in the park",
    "This is a photo of the Eiffel Tower, taken in 1999.",
    "the quick brown fox jumps over the lazy dog; it's what they'd do, isn't it?",
    "ein Foto von einer schwarzen Katze und drei Hunden",
    "une photo de deux chats près de la fenêtre à l'été",
    "一张猫的照片",
    "两只狗在公园里玩耍",
    "猫の写真です。犬もいます。",
    "고양이 사진 한 장과 강아지",
    "صورة قطة على الطاولة",
    "фотография кошки и собаки",
    "ภาพถ่ายของแมว",
    "una foto de un gato, ¿verdad? ¡Sí!",
    "emoji 😀 and 👍🏽 and ❤️ here",
    "1234567890 12.5% $99 (a+b)=c",
] * 8

TEXTS = [
    "a photo of a cat",
    "",
    " ",
    "   \t\n  \r\n ",
    "two  spaces   and\ttabs\nand\r\nlines ",
    "  leading and trailing  ",
    "A PHOTO of ÉTÉ İstanbul ΣΑΣ ß ﬁ Ⅷ ①",
    "一张猫的照片，两只狗。",
    "猫の写真 と ｶﾅ と 全角　スペース",
    "صورة قطة ﷺ ـــ",
    "고양이 \u1100\u1161\u11a8",
    "😀👍🏽👨‍👩‍👧‍👦🇫🇷❤️",
    "é e\u0301 ñ n\u0303 o\u0308\u0301",
    "z\u0351\u0343a\u0300\u0301\u0302\u0303l\u0334\u0335g\u0321\u0322o\u0489",
    "nul \0 and \x01 \x07 \x7f \x85 controls",
    "zero\u200bwidth\u200djoin\ufeffbom \u2028 line \u00a0 nbsp \u00ad soft",
    "<s> a </s> <pad> <unk> <mask> x<mask>y <|startoftext|> cat <|endoftext|> <|ENDOFTEXT|>",
    "▁a ▁▁ b _ ▁",
    "it's they'd we'll I'm you're he've 'S 'RE don't",
    "12345 1,000.50 ½ x² ٣ 五",
    "\ufffd \uffff \U0010ffff \ue000",
    "word " * 300 + "end",
    "猫" * 700,
    "a" * 1500,
    "e\u0301\u0300\u0302" * 400,
]

SURROGATES = {
    "\ud800": "\ufffd",
    "a \udfff b": "a \ufffd b",
    "\udc00\ud800 cat": "\ufffd\ufffd cat",
    "pair \ud83d\ude00 joins": "pair 😀 joins",
    "end \ud83d": "end \ufffd",
}


def make_sentencepiece(folder):
    """A folder as BAAI/AltCLIP-m9 has it: sentencepiece.bpe.model and nothing else."""
    folder.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    return folder


def make_xlm_roberta(folder, sentencepiece_folder):
    """A folder as BAAI/AltCLIP has it: tokenizer.json, its settings, and the sentencepiece model."""
    transformers.XLMRobertaTokenizer.from_pretrained(
        sentencepiece_folder, model_max_length=512, mask_token=transformers.AddedToken("<mask>", lstrip=True)
    ).save_pretrained(folder)
    shutil.copy(sentencepiece_folder / "sentencepiece.bpe.model", folder)
    tokens = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>"}
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    special = {f"{name}_token": token for name, token in tokens.items()} | {"mask_token": mask}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


def make_clip(folder):
    """A folder as the first CLIP checkpoints had it: vocab.json, merges.txt and settings."""
    folder.mkdir()
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=600, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    end = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True}
    end |= {"rstrip": False, "single_word": False}
    start = {**end, "content": "<|startoftext|>"}
    settings = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "<|endoftext|>"}
    settings |= {"model_max_length": 77, "add_prefix_space": False, "errors": "replace", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "CLIPTokenizer"}))
    return folder
