"""The languages Whisper knows, and what people call them: codes, tags and English names to the model's code. Pure.

The codes and names are Whisper's own (https://github.com/openai/whisper, `whisper/tokenizer.py`); `verbose_json`
reports the names. The other codes are those of ISO 639-1, of both forms of ISO 639-2, and of ISO 639-3 where a tag
names the usual member of a language family (`cmn` of Chinese).
"""

from __future__ import annotations

import re

NAMES: dict[str, str] = {
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian", "ko": "korean",
    "fr": "french", "ja": "japanese", "pt": "portuguese", "tr": "turkish", "pl": "polish", "ca": "catalan",
    "nl": "dutch", "ar": "arabic", "sv": "swedish", "it": "italian", "id": "indonesian", "hi": "hindi",
    "fi": "finnish", "vi": "vietnamese", "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay",
    "cs": "czech", "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian",
    "th": "thai", "ur": "urdu", "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian", "la": "latin",
    "mi": "maori", "ml": "malayalam", "cy": "welsh", "sk": "slovak", "te": "telugu", "fa": "persian",
    "lv": "latvian", "bn": "bengali", "sr": "serbian", "az": "azerbaijani", "sl": "slovenian", "kn": "kannada",
    "et": "estonian", "mk": "macedonian", "br": "breton", "eu": "basque", "is": "icelandic", "hy": "armenian",
    "ne": "nepali", "mn": "mongolian", "bs": "bosnian", "kk": "kazakh", "sq": "albanian", "sw": "swahili",
    "gl": "galician", "mr": "marathi", "pa": "punjabi", "si": "sinhala", "km": "khmer", "sn": "shona",
    "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan", "ka": "georgian", "be": "belarusian",
    "tg": "tajik", "sd": "sindhi", "gu": "gujarati", "am": "amharic", "yi": "yiddish", "lo": "lao",
    "uz": "uzbek", "fo": "faroese", "ht": "haitian creole", "ps": "pashto", "tk": "turkmen", "nn": "nynorsk",
    "mt": "maltese", "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar", "bo": "tibetan", "tl": "tagalog",
    "mg": "malagasy", "as": "assamese", "tt": "tatar", "haw": "hawaiian", "ln": "lingala", "ha": "hausa",
    "ba": "bashkir", "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}  # fmt: skip

# The same languages in ISO 639-2 and 639-3, and the codes that 639-1 has for them today or had once.
_OTHER_CODES = {
    "en": "eng", "zh": "zho chi cmn", "de": "deu ger", "es": "spa", "ru": "rus", "ko": "kor", "fr": "fra fre",
    "ja": "jpn", "pt": "por", "tr": "tur", "pl": "pol", "ca": "cat", "nl": "nld dut", "ar": "ara arb", "sv": "swe",
    "it": "ita", "id": "ind in", "hi": "hin", "fi": "fin", "vi": "vie", "he": "heb iw", "uk": "ukr",
    "el": "ell gre", "ms": "msa may zsm", "cs": "ces cze", "ro": "ron rum mo mol", "da": "dan", "hu": "hun",
    "ta": "tam", "no": "nor nb nob", "th": "tha", "ur": "urd", "hr": "hrv", "bg": "bul", "lt": "lit", "la": "lat",
    "mi": "mri mao", "ml": "mal", "cy": "cym wel", "sk": "slk slo", "te": "tel", "fa": "fas per pes prs",
    "lv": "lav lvs", "bn": "ben", "sr": "srp sh hbs", "az": "aze azj", "sl": "slv", "kn": "kan", "et": "est ekk",
    "mk": "mkd mac", "br": "bre", "eu": "eus baq", "is": "isl ice", "hy": "hye arm", "ne": "nep npi",
    "mn": "mon khk", "bs": "bos", "kk": "kaz", "sq": "sqi alb als", "sw": "swa swh", "gl": "glg", "mr": "mar",
    "pa": "pan", "si": "sin", "km": "khm", "sn": "sna", "yo": "yor", "so": "som", "af": "afr", "oc": "oci",
    "ka": "kat geo", "be": "bel", "tg": "tgk", "sd": "snd", "gu": "guj", "am": "amh", "yi": "yid ydd ji",
    "lo": "lao", "uz": "uzb uzn", "fo": "fao", "ht": "hat", "ps": "pus pbu", "tk": "tuk", "nn": "nno", "mt": "mlt",
    "sa": "san", "lb": "ltz", "my": "mya bur", "bo": "bod tib", "tl": "tgl fil", "mg": "mlg plt", "as": "asm",
    "tt": "tat", "ln": "lin", "ha": "hau", "ba": "bak", "jw": "jav jv", "su": "sun",
    "yue": "zh-yue",
}  # fmt: skip

_OTHER_NAMES = {
    "bokmål": "no", "burmese": "my", "castilian": "es", "farsi": "fa", "filipino": "tl", "flemish": "nl",
    "haitian": "ht", "letzeburgesch": "lb", "mandarin": "zh", "moldavian": "ro", "moldovan": "ro",
    "norwegian bokmål": "no", "norwegian nynorsk": "nn", "panjabi": "pa", "pushto": "ps", "sinhalese": "si",
    "valencian": "ca",
}  # fmt: skip

_CODES = (
    {code: code for code in NAMES}
    | {name: code for code, name in NAMES.items()}
    | {other: code for code, others in _OTHER_CODES.items() for other in others.split()}
    | _OTHER_NAMES
)

# Codes of ISO 639-1 and 639-2 for languages that Whisper was not trained on.
_NOT_TRAINED = frozenset(
    """
    aa ab ae ak an av ay bh bi bm ce ch co cr cu cv dv dz ee eo ff fj fy ga gd gn gv ho hz ia ie ig ii ik io iu kg
    ki kj kl kr ks ku kv kw ky lg li lu mh na nd ng nr nv ny oj om or os pi qu rm rn rw sc se sg sm ss st ti tn to
    ts tw ty ug ve vo wa wo xh za zu aar abk ace ach ada ady afa afh ain aka akk ale alg alt ang anp apa arc arg arn
    arp art arw ast ath aus ava ave awa aym bad bai bal bam ban bas bat bej bem ber bho bih bik bin bis bla bnt bra
    btk bua bug byn cad cai car cau ceb cel cha chb che chg chk chm chn cho chp chr chu chv chy cmc cnr cop cor cos
    cpe cpf cpp cre crh crp csb cus dak dar day del den dgr din div doi dra dsb dua dum dyu dzo efi egy eka elx enm
    epo ewe ewo fan fat fij fiu fon frm fro frr frs fry ful fur gaa gay gba gem gez gil gla gle glv gmh goh gon gor
    got grb grc grn gsw gwi hai her hil him hit hmn hmo hsb hup iba ibo ido iii ijo iku ile ilo ina inc ine inh ipk
    ira iro jbo jpr jrb kaa kab kac kal kam kar kas kau kaw kbd kha khi kho kik kin kir kmb kok kom kon kos kpe krc
    krl kro kru kua kum kur kut lad lah lam lez lim lol loz lua lub lug lui lun luo lus mad mag mah mai mak man map
    mas mdf mdr men mga mic min mkh mnc mni mno moh mos mun mus mwl mwr myn myv nah nai nap nau nav nbl nde ndo nds
    new nia nic niu nog non nqo nso nub nwc nya nym nyn nyo nzi oji ori orm osa oss ota oto paa pag pal pam pap pau
    peo phi phn pli pon pra pro que raj rap rar roa roh rom run rup sad sag sah sai sal sam sas sat scn sco sel sem
    sga sgn shn sid sio sit sla sma sme smi smj smn smo sms snk sog son sot srd srn srr ssa ssw suk sus sux syc syr
    tah tai tem ter tet tig tir tiv tkl tlh tli tmh tog ton tpi tsi tsn tso tum tup tut tvl twi tyv udm uga uig umb
    vai ven vol vot wak wal war was wen wln wol xal xho yao yap ypk zap zbl zen zgh zha znd zul zun zza
    """.split()  # noqa: SIM905 - a list of strings would fill five pages
)

# What clients send for "find out": a word of their own, or BCP 47's undetermined and several languages.
_DETECT = frozenset({"auto", "detect", "mul", "multi", "und"})

# `de`, `de-AT`, `zh_Hant_TW`, `en_US.UTF-8`, `Chinese (Simplified)`.
_TAG = re.compile(
    r"(?P<language>[^\W\d_]+(?: [^\W\d_]+)?)(?P<rest>(?:[-_][a-z0-9]{1,8})*)(?:\.[a-z0-9-]+| ?\([^()]*\))?"
)


def whisper_code(tag: str) -> str | None:
    """Return Whisper's code for a language, None where it knows none by this tag.

    `tag` may be a code of ISO 639-1, 639-2 or 639-3, a BCP 47 tag with `-` or `_`, or an English name, in any case.
    """
    match = _TAG.fullmatch(tag.strip().lower())
    if match is None:
        return None
    subtags = (match["language"] + match["rest"].replace("_", "-")).split("-")
    return _CODES.get("-".join(subtags[:2])) or _CODES.get(subtags[0])


def is_language(tag: str) -> bool:
    """Whether a tag names a language of ISO 639-1 or 639-2, one that Whisper does not know included."""
    return whisper_code(tag) is not None or re.split("[-_.]", tag.strip().lower())[0] in _NOT_TRAINED


def means_detect(tag: str) -> bool:
    """Whether a tag asks for the language to be detected: `auto`, `und` (undetermined), `mul` (several)."""
    return tag.strip().lower() in _DETECT
