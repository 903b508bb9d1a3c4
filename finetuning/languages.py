"""What a model calls the languages it translates between, and how it is told which they are."""

import contextlib
import re

import pycountry
from transformers import PreTrainedTokenizerBase

from config import Config
from finetuning.errors import UserError

MARK = re.compile(r"(?:__|>>)?([a-z]{2,3}(?:_[A-Za-z]+)?)(?:__|<<)?")  # M2M100's, Marian's, mBART's and NLLB's token of a language


def language(name: str | None):
    """ISO 639-3's entry for a language's name or code, as in en_XX too; None for what is none."""
    name = (name or "").partition("_")[0].lower()
    codes = {2: ("alpha_2",), 3: ("alpha_3", "bibliographic")}.get(len(name))
    if codes:  # "en" is a language's name too
        return next((found for kind in codes if (found := pycountry.languages.get(**{kind: name}))), None)
    with contextlib.suppress(LookupError):
        return pycountry.languages.lookup(name)


def known_languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The model's code for each language that it has a token for, and that token; none of a model of two languages."""
    tokens = [*tokenizer.all_special_tokens, *getattr(tokenizer, "supported_language_codes", [])]  # the second are Marian's
    tokens += getattr(tokenizer, "lang_code_to_token", {}).values()  # M2M100's
    return {found[1]: token for token in tokens if (found := MARK.fullmatch(token)) and language(found[1])}


def direction(tokenizer: PreTrainedTokenizerBase, config: Config) -> dict:
    """Set the tokenizer to the languages of a run, and how else the model is told: `prefix` before what is translated; `first`,
    the token that a translation begins with; `src_lang` and `tgt_lang` of the tokenizer; None where there is none.

    Raises `UserError` for a language that the model does not know.
    """
    told = dict.fromkeys(("prefix", "first", "src_lang", "tgt_lang"))
    if type(tokenizer).__name__.startswith("T5"):
        names = [_name(getattr(config, knob), knob) for knob in ("source_lang", "target_lang")]
        return told | {"prefix": "translate {} to {}: ".format(*names)}
    known = known_languages(tokenizer)
    if not known:
        return told
    target = _code(known, config.target_lang, "target_lang", config.model_name)
    if not hasattr(tokenizer, "src_lang"):  # Marian from one language, or few, to several
        return told | {"prefix": f"{known[target]} "}
    source = _code(known, config.source_lang, "source_lang", config.model_name)
    tokenizer.tgt_lang, tokenizer.src_lang = target, source
    return told | {"first": tokenizer.convert_tokens_to_ids(known[target]), "src_lang": source, "tgt_lang": target}


def _name(given: str | None, knob: str) -> str:
    if found := language(given):
        return found.name
    raise UserError(f"{knob}={given} is no language: T5 is told it by name: set it, as in English or en")


def _code(known: dict[str, str], given: str | None, knob: str, model: str) -> str:
    """Of the codes that the model knows the one meant by a name or a code."""
    meant = language(given)
    fits = [code for code in known if meant and language(code) == meant]
    if given in known or len(fits) == 1:
        return given if given in known else fits[0]
    what = (
        f"is several languages of {model}, {', '.join(fits)}"
        if fits
        else f"is not a language of {model}, which knows {', '.join(sorted(known))}"
    )
    raise UserError(f"{knob}={given} {what}: set {knob} to one of them")
