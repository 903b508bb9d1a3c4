"""Languages of a translation model: which ones it knows, their codes, and how to set the source and the target language."""

import contextlib
import re

import pycountry
from transformers import M2M100Tokenizer, MarianTokenizer, PreTrainedTokenizerBase, T5Tokenizer

from config import Config
from finetuning.errors import UserError

# Languages without spaces between words, or for which BLEU has its own tokenizer: ISO 639-3 codes, and characters of the script.
SPECIAL_SCRIPTS = {
    "ja": ("jpn", "\u3040-\u30ff\uff66-\uff9f"),  # kana; kanji are Han
    "zh": ("zho cmn yue wuu nan hak gan hsn lzh", "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"),
    "ko": ("kor", "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"),
    "th": ("tha lao khm mya bod dzo", "\u0e00-\u0fff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f"),  # Thai, Lao, Tibetan, Khmer, Burmese
}
MIN_FRACTION_OF_SCRIPT = {"ja": 0.1}  # of all characters; 0.5 for other scripts. Half of Japanese is kana, almost none of Chinese
SAMPLED_TEXTS = 1_000  # that tell the script
LANGUAGE_TOKEN = re.compile(r"(?:__|>>)?([a-z]{2,3}(?:_[A-Za-z]+)?)(?:__|<<)?")  # tokens of M2M100, Marian, mBART and NLLB


def language(name: str | None):
    """Return the entry in ISO 639-3 for a name or code, such as German, de, deu or de_DE; None if there is none."""
    name = re.split("_|(?<=^..)-", name or "")[0].lower()  # zh for zh_CN and zh-CN
    kinds = {2: ("alpha_2",), 3: ("alpha_3", "bibliographic")}.get(len(name))
    if kinds:  # codes come first: "en" is also the name of a language
        entries = (pycountry.languages.get(**{kind: name}) for kind in kinds)
        return next((entry for entry in entries if entry), None)
    with contextlib.suppress(LookupError):
        return pycountry.languages.lookup(name)


def special_script(name: str | None, texts: list[str]) -> str | None:
    """Return the key of SPECIAL_SCRIPTS for texts in the language `name`, which may be None; None for all other languages."""
    entry = language(name)
    for key, (codes, _) in SPECIAL_SCRIPTS.items():
        if entry and entry.alpha_3 in codes.split():
            return key
    words = re.sub("[!-~]+", "a", " ".join(texts[:SAMPLED_TEXTS]))  # names in Latin letters count as one character
    characters = "".join(words.split())
    for key, (_, script) in SPECIAL_SCRIPTS.items():
        if len(re.findall(f"[{script}]", characters)) > MIN_FRACTION_OF_SCRIPT.get(key, 0.5) * len(characters):
            return key


def known_languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the model's code of each language -> its token; {} for a model of two languages, which has no such tokens."""
    tokens = [*tokenizer.all_special_tokens]
    if isinstance(tokenizer, MarianTokenizer):
        tokens += tokenizer.supported_language_codes
    if isinstance(tokenizer, M2M100Tokenizer):
        tokens += tokenizer.lang_code_to_token.values()
    matches = ((token, LANGUAGE_TOKEN.fullmatch(token)) for token in tokens)
    return {match[1]: token for token, match in matches if match and language(match[1])}


def set_direction(tokenizer: PreTrainedTokenizerBase, config: Config) -> dict:
    """Set the languages of the tokenizer, and return the settings by which the model gets them, None for those it does not need.

    `prefix` is the text before a source, `forced_bos_token_id` the first token of a translation. `src_lang` and `tgt_lang` are
    settings of the tokenizer. Raise `UserError` for a language that the model does not know.
    """
    direction = dict.fromkeys(("prefix", "forced_bos_token_id", "src_lang", "tgt_lang"))
    if _has_token(tokenizer, "<2en>"):  # MADLAD-400
        entry = language(config.target_lang)
        tokens = [f"<2{getattr(entry, kind)}>" for kind in ("alpha_2", "alpha_3") if hasattr(entry, kind)]
        if token := next((token for token in tokens if _has_token(tokenizer, token)), None):
            return direction | {"prefix": f"{token} "}
        raise UserError(f"target_lang={config.target_lang} is not a language that {config.model_name} knows by this code")
    if isinstance(tokenizer, T5Tokenizer):
        source, target = (_name(getattr(config, setting), setting) for setting in ("source_lang", "target_lang"))
        return direction | {"prefix": f"translate {source} to {target}: "}
    known = known_languages(tokenizer)
    if not known:
        return direction
    target = _code(known, config.target_lang, "target_lang", config.model_name)
    if not hasattr(tokenizer, "src_lang"):  # Marian with several target languages
        return direction | {"prefix": f"{known[target]} "}
    source = _code(known, config.source_lang, "source_lang", config.model_name)
    tokenizer.tgt_lang, tokenizer.src_lang = target, source
    first = tokenizer.convert_tokens_to_ids(known[target])
    if tokenizer(text_target="a")["input_ids"][0] != first:
        raise UserError(
            f"model_name: {config.model_name} has the language at the end of a translation, which is not supported: use a model such "
            "as mBART-50, M2M100 or NLLB"
        )
    return direction | {"forced_bos_token_id": first, "src_lang": source, "tgt_lang": target}


def _has_token(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    return tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id)


def _name(given: str | None, setting: str) -> str:
    """Return the English name of a language, for T5."""
    if entry := language(given):
        return entry.name
    raise UserError(f"{setting}={given} is not a language, and T5 needs one: set it to a name or code, such as English or en")


def _code(known: dict[str, str], given: str | None, setting: str, model: str) -> str:
    """Return the model's code for a language that is given by name or code."""
    entry = language(given)
    codes = [code for code in known if entry and language(code) == entry]
    if given in known or len(codes) == 1:
        return given if given in known else codes[0]
    if codes:
        problem = f"fits several languages of {model}, {', '.join(codes)}"
    else:
        problem = f"is not a language of {model}, which knows {', '.join(sorted(known))}"
    raise UserError(f"{setting}={given} {problem}: set {setting} to one of them")
