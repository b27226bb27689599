"""Tokenization of captions as in coco-caption: the Penn Treebank rules of Stanford's tokenizer, without Java.

coco-caption runs `PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1 and drops a list of punctuation tokens. Its
quirks are reproduced, because scores depend on them: brackets are kept, since they are `-lrb-` after lower-casing but
`-LRB-` in the list, and so are `!!` and `?!`. Written from observed behaviour; `docs/metrics.md` reports the agreement.
"""

import re

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}

# Characters that the tokenizer converts to ASCII: quotes, dashes, fractions, currencies, entities. Emoji are deleted.
TO_ASCII = str.maketrans(
    {
        **dict.fromkeys("\u2018\u201b\u0091", "`"),
        **dict.fromkeys("\u2019\u0092", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u0093\u0094\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2013\u2014\u2015\u0096\u0097", "--"),
        **{"\u2026": "...", "\u00a3": "#", "\u20ac": "$"},
        **{"\u00bc": " 1/4 ", "\u00bd": " 1/2 ", "\u00be": " 3/4 "},
    }
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))
_BEYOND_BMP = re.compile("[^\u0000-\uffff]")

# Words that keep their period anywhere, only as names, and only before a number.
_ABBREVIATIONS = """
    mr mrs ms messrs mme mlle dr prof st mt ft rev hon pres sr jr esq gov sen rep reps sgt lt capt gen col maj cmdr adm
    cpl pvt supt insp det attys atty co cos inc corp ltd bros plc cie mfg intl natl univ dept assn bldg ave blvd rd ct
    sq tel ext est al etc vs cf invt elec alex wm jos ph jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues
    wed thu thurs fri ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt wis
    wyo
"""
_CAPITALISED = "Ill La Mass Miss Ore Pa Tex Wash Ark Del"
_BEFORE_NUMBERS = "no nos fig figs pp ca op art prop"


def _any(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


# Stanford's lexer prefers the longest match, a regular expression the first: the order of lines makes both agree.
_L, _A = r"[^\W\d_]", r"[^\W_]"  # a letter; a letter or digit
_NUMBER = r"(?>\d+(?:[.,:/]\d+)*)"
_TOKEN = re.compile(
    rf"""
    (?:can(?=not(?!{_A})) | (?:gon|got|wan)(?=(?:na|ta)(?!{_A})) | (?:lem|gim)(?=me(?!{_A})))(?<!{_A}{{4}})
    | [a-z]+(?=\s|$)                                               # most words: the rest is not tried
    # addresses, tags, names of networks
    | https?://[^\s<>"]*[^\s<>".!?,)] | </?[a-z][^<>\s]*>
    | (?:www\.)?(?:[a-z0-9-]+\.)+(?:com|net|org|edu)\b(?:/[^\s"<>|(){{}}]*[^\s"<>|.!?,(){{}}])?
    | [a-z0-9][^\s"<>|(){{}}]*@(?:[^\s"<>|(){{}}.]+\.)*[^\s"<>|(){{}}.]+ | [@#][a-z]\w* | \#+
    # 'tis, AT&T, US$, smileys
    | 't(?=(?:is|was)\b) | (?-i:[A-Z]+(?:[&+][A-Z]+)+) | (?-i:[A-Z]*)\$ | [<>]?[:;=][-o*']?[()dpo\\{{@|\[\]](?!\w)
    # black/white, double-decker/bus, 1,000-lb
    | [a-z0-9]+(?:-[a-z]+){{0,2}}(?:/[a-z0-9]+(?:-[a-z]+){{0,2}}){{1,2}} | [a-z0-9][a-z0-9.,]*(?:-[a-z0-9]+)+
    # periods that belong to a word: a.m., an initial, abbreviations, any word before other punctuation
    | [a-z](?:\.[a-z])+\.(?!{_A}) | [a-z]\.(?=\s+\S|[,;:]|\.\.) | (?:ph\.d|d\.c)\.
    | {_any(_ABBREVIATIONS)}\.(?!{_A}) | {_any(_BEFORE_NUMBERS)}\.(?=\s?\d) | (?-i:{_any(_CAPITALISED)})\.(?!{_A})
    | {_L}+\.(?=[,;:])
    # numbers, with a sign, in parts
    | {_NUMBER}(?!{_A}|-\w) | [-+]{_NUMBER} | (?:[-+]|\d+)?(?:[.,:]\d+)+
    # apostrophes: '80s, '05, o'clock, O'Brien, y'all, ma'am, rock 'n' roll, does n't, dog 's
    | '\d0s\b | (?<!\d)'\d\d(?!{_A}) | [dol]'{_L}{_A}+ | (?-i:[A-Z])'{_L}{{2,}} | y'(?=all\b)
    | {_L}*[aeiouy]'[aeiou]{_L}* | n't(?!{_A}) | 'n(?!{_A})'? | '(?:em|til|cause) | '(?:s|m|d|re|ve|ll)(?!{_L})
    | {_L}+?(?=n't\b)
    # words, grown together where a space is missing, and what is left
    | c(?:\+\+|\#) | {_L}{_A}*(?:[.!?_]{_L}{_A}*)+ | {_A}+(?:[-_]{_A}+)*
    | \.{{2,}} | -{{2,}} | [!?]+ | `+ | '+ | \*+ | _+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)

# Most captions consist of letters, commas and a final period: for those, splitting gives the same tokens in a tenth of
# the time. Words that the expression would split, or that keep their period, are excluded.
_PLAIN = re.compile(r"([a-z ,]*?)(?: ?\.)?")
_NOT_PLAIN = frozenset(f"cannot gonna gotta wanna lemme gimme {_ABBREVIATIONS} {_CAPITALISED.lower()}".split())


def ptb_tokens(text: str) -> list[str]:
    """Tokenize a caption: lower case, without punctuation."""
    if plain := _PLAIN.fullmatch(text.lower()):
        words = plain[1].replace(",", " ").split()
        if _NOT_PLAIN.isdisjoint(words):
            return words
    text = _ENTITY.sub(lambda found: _ENTITIES[found.group()], text.translate(TO_ASCII))
    tokens = (token.lower() for token in _TOKEN.findall(_BEYOND_BMP.sub("", text)))
    return [_bracketed(token) for token in tokens if token not in _DROPPED and token.strip(".-`'")]


def ptb_text(text: str) -> str:
    """Return the tokens of a caption joined by spaces, as input for programs."""
    return " ".join(ptb_tokens(text))


def _bracketed(token: str) -> str:
    if len(token) == 1:
        return _BRACKETS.get(token, token)
    return token.replace("(", "-lrb-").replace(")", "-rrb-")  # brackets of a smiley; other brackets in it stay
