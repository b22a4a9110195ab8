"""Tokenizers of many makes, each trained on a few sentences, that differ in what they do to a text."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and doesn't look back",
    "def encode(text: str) -> list[int]:\n    return [ord(c) for c in text]\n\n\n",
    "==================== 1234567890 ---------------- aaaaaaaaaaaaaaaa xxxxxxxxxxxx",
    "Häuser naïve Ångström été 日本語のテキスト 한국어 😀😀😀",
    "                                hello hello   world",
] * 4


@dataclass
class Encoding:
    """A tokenizer of the `tokenizers` library with the face of a transformers one."""

    backend_tokenizer: Tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_level(cutter: pre_tokenizers.PreTokenizer, normaliser: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cutter
    if normaliser is not None:
        tokenizer.normalizer = normaliser
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = _trained(tokenizer, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken("<|im_start|>", special=True, normalized=False), "<|end|>"])
    made.add_tokens([AddedToken("<tool_call>", normalized=True)])
    return made


def gpt2() -> Tokenizer:
    """As GPT-2 and SmolLM2."""
    return _byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    )


def qwen() -> Tokenizer:
    """As Qwen 2, which composes characters."""
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    cutter = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return _byte_level(cutter, normalizers.NFC())


def llama3() -> Tokenizer:
    """As Llama 3, with a beginning of sequence."""
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    made = _byte_level(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)]))
    begin = made.token_to_id("<|im_start|>")
    made.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_start|>", special_tokens=[("<|im_start|>", begin)]
    )
    return made


def uncut_bytes() -> Tokenizer:
    """All of a text is one word."""
    return _byte_level(pre_tokenizers.ByteLevel(False, use_regex=False))


def _sentence_piece(normaliser: normalizers.Normalizer, *, fuse_unk: bool = True, with_bytes: bool = True) -> Tokenizer:
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256) if with_bytes)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, limit_alphabet=40, show_progress=False)
    learnt = _trained(learner, trainer)
    document = json.loads(learnt.to_str())
    document["model"] |= {"byte_fallback": with_bytes, "fuse_unk": fuse_unk}
    document["pre_tokenizer"] = None
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in ("<unk>", "<s>")]
    made = Tokenizer.from_str(json.dumps(document))
    made.normalizer = normaliser
    made.decoder = decoders.ByteFallback()
    return made


def llama2() -> Tokenizer:
    """As Llama 2 and Mistral: spaces are letters, and one is put before every text."""
    return _sentence_piece(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


def gemma() -> Tokenizer:
    """As Gemma."""
    made = _sentence_piece(normalizers.Replace(" ", "▁"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def fused_unknown() -> Tokenizer:
    """Any number of unknown characters are one token."""
    return _sentence_piece(normalizers.Replace(" ", "▁"), with_bytes=False)


def single_unknown() -> Tokenizer:
    """Each unknown character is a token."""
    return _sentence_piece(normalizers.Replace(" ", "▁"), with_bytes=False, fuse_unk=False)


def stripping() -> Tokenizer:
    """White space at the ends is lost."""
    return _sentence_piece(normalizers.Sequence([normalizers.Strip(), normalizers.Replace(" ", "▁")]))


def accents() -> Tokenizer:
    """Capitals and accents are lost."""
    lost = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(" ", "▁")]
    return _sentence_piece(normalizers.Sequence(lost))


def collapsing() -> Tokenizer:
    """Spaces beside each other are one."""
    collapse = normalizers.Replace(Regex(" {2,}"), " ")
    return _sentence_piece(normalizers.Sequence([collapse, normalizers.Replace(" ", "▁")]))


def compatible() -> Tokenizer:
    """Characters become what they are compatible with."""
    return _sentence_piece(normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")]))


def unigram() -> Tokenizer:
    """As T5 and ALBERT."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    return _trained(tokenizer, trainer)


def bert() -> Tokenizer:
    """Words that are not known are one token, however long."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False))


def greedy_tokens() -> Tokenizer:
    """Added tokens that take the white space around them, stand for words only, or have a space inside."""
    made = gpt2()
    made.add_tokens(
        [
            AddedToken("tool call"),
            AddedToken("<mask>", lstrip=True),
            AddedToken("<gap>", rstrip=True),
            AddedToken("brown", single_word=True),
        ]
    )
    return made


MAKES: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make
    for make in (
        gpt2, qwen, llama3, uncut_bytes, llama2, gemma, fused_unknown, single_unknown, stripping, accents, collapsing,
        compatible, unigram, bert, greedy_tokens,
    )
}  # fmt: skip
CUT = {"gpt2", "qwen", "llama3", "llama2", "gemma", "single_unknown", "fused_unknown", "accents", "compatible"}
"""Those whose texts can be cut."""
BOUND = set(MAKES) - {"collapsing", "stripping", "bert"}
"""Those of which the fewest tokens of a text are known."""
