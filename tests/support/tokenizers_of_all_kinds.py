"""Small real tokenizers, one for each way in which published ones treat special tokens and the beginnings of texts."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<s><s>")
PLAIN_ADDED = ("<think>", "</think>")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n<>|_/.,:!?\"'{}[]#"


def _fast(tokenizer: Tokenizer, *, normalized: bool = False, strips: bool = False) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=normalized, lstrip=strips, rstrip=strips) for text in SPECIALS]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN_ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>")


def _byte_level_model() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("Ġ", "w"),
        ("Ċ", "Ċ"),
        ("<", "|"),
        ("|", ">"),
        ("i", "m"),
        ("e", "n"),
    ]
    vocabulary = {text: index for index, text in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen."""
    return _fast(_byte_level_model())


def stripping() -> PreTrainedTokenizerFast:
    """Whose special tokens swallow the spaces around them, as Phi-3's do."""
    return _fast(_byte_level_model(), strips=True)


def dressing(*, begin: bool = True, end: bool = False) -> PreTrainedTokenizerFast:
    """Adds tokens before and after every text."""
    tokenizer = _byte_level_model()
    fast = _fast(tokenizer)
    single = f"{'<s>:0 ' if begin else ''}$A:0{' <|im_end|>:0' if end else ''}"
    ids = [(text, fast.convert_tokens_to_ids(text)) for text in ("<s>", "<|im_end|>")]
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return fast


def _spelling_model() -> Tokenizer:
    merges = [("▁", "h"), ("h", "e"), ("▁", "w"), ("l", "l"), ("<", "s"), ("<s", ">")]
    letters = [*f"▁{LETTERS}", *(a + b for a, b in merges)]
    texts = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(letters)]
    vocabulary = {text: index for index, text in enumerate(texts)}
    return Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))


def prepending() -> PreTrainedTokenizerFast:
    """As Llama 2: a normaliser puts a space before each stretch of text; special tokens can be spelt by merges."""
    tokenizer = _spelling_model()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _fast(tokenizer)


def first_only() -> PreTrainedTokenizerFast:
    """As later Llamas of that family: only the beginning of the whole text gets a space."""
    tokenizer = _spelling_model()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return _fast(tokenizer)


def normalising() -> PreTrainedTokenizerFast:
    """Looks for special tokens in text that was made lower case and compatible first."""
    tokenizer = _byte_level_model()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return _fast(tokenizer, normalized=True)


def unigram() -> PreTrainedTokenizerFast:
    """As SentencePiece's other kind, where special tokens are pieces of the model, too."""
    pieces = [("<unk>", 0.0), *((text, -1.0) for text in SPECIALS), ("▁h", -2.0), ("he", -2.0)]
    pieces += [(letter, -4.0) for letter in dict.fromkeys(f"▁{LETTERS}")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return _fast(tokenizer)


ALL = {
    "byte-level": byte_level,
    "stripping": stripping,
    "dressing": dressing,
    "prepending": prepending,
    "first only": first_only,
    "normalising": normalising,
    "unigram": unigram,
}
