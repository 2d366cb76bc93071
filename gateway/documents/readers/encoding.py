"""Bytes to text: which encoding a document has."""

import codecs
import re

import charset_normalizer

from gateway.documents.readers.text import NoText

# The beginning is enough to tell the encoding, and takes bounded time.
_SAMPLE_BYTES = 256 << 10
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# In Latin scripts letters outside ASCII stand alone; in other scripts most letters of a word are outside ASCII.
_MOST_LATIN_RUN = 2.0

# The letters outside ASCII of languages, by the encodings that were used for them.
_LATIN = {
    "cp1252": (
        "äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü¿¡ºª", "ãáâàçéêíóôõúºª", "àèéìíòóùú", "åäöé", "æøåéó",
        "áðéíóúýþæö", "äëïöüéèó", "àçèéíïòóúü·",
    ),
    "cp1250": (
        "ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž", "čšž",
    ),
    "iso8859_2": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áéíóöőúüű"),
    "cp1254": ("çğıöşüâîû",),
    "cp1257": ("āčēģīķļņšūž", "ąčęėįšųūž", "äöõüšž"),
    "cp850": ("äöüß", "àâçéèêëîïôùûü", "áéíñóúü"),
    "mac_roman": ("äöüß", "àâçéèêëîïôùûüœ", "áéíñóúü"),
}  # fmt: skip
_SIGNS = set("„“”‚‘’«»‹›–—…•€£§°©®™·´¨×÷½¼¾²³µ¶†‡‰\u00a0\u00ad")
# A likely encoding wins over an odd one that explains the bytes as well.
_PRIOR = {"cp1252": 0.12, "cp1250": 0.04, "iso8859_2": 0.02, "cp1254": 0.02, "cp1257": 0.0, "cp850": -0.1,
          "mac_roman": -0.12}  # fmt: skip


def decode(data: bytes, declared: str | None = None) -> tuple[str, str | None]:
    """Return the text of `data`, and what is wrong with it, if some bytes could not be decoded.

    `declared` is the encoding that the document itself names. Raises NoText for what is no text.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return data.decode(encoding, "replace"), None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        if "\x00" in text[:_SAMPLE_BYTES] and (wide := _utf16_without_bom(data)):
            return data.decode(wide, "replace"), None
        _require_text(text)
        return text, None
    if wide := _utf16_without_bom(data):
        return data.decode(wide, "replace"), None
    if declared and (text_or_none := _as_declared(data, declared)) is not None:
        return text_or_none, None
    sample = data[:_SAMPLE_BYTES]
    if _is_nearly_utf8(data):
        text = data.decode("utf-8", "replace")
        return text, f"{text.count(chr(0xFFFD))} bytes are not UTF-8"
    if b"\x00" in sample:
        raise NoText("it is not text in any known encoding")
    runs = _HIGH_BYTES.findall(sample)
    if sum(map(len, runs)) / len(runs) <= _MOST_LATIN_RUN:
        encoding = _latin(sample)
    else:
        encoding = _detected(data) or _latin(sample)
    text = data.decode(encoding, "replace")
    _require_text(text)
    return text, None


def _require_text(text: str) -> None:
    sample = text[:_SAMPLE_BYTES]
    control = sum(sample.count(chr(code)) for code in (*range(9), *range(14, 27), *range(28, 32)))
    if control > len(sample) * 0.05:
        raise NoText("it is not text in any known encoding")


def _utf16_without_bom(data: bytes) -> str | None:
    sample = data[:4096]
    if len(sample) < 4:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if odd > half * 0.4 and even < half * 0.05:
        return "utf-16-le"
    if even > half * 0.4 and odd < half * 0.05:
        return "utf-16-be"
    return None


def _as_declared(data: bytes, declared: str) -> str | None:
    try:
        codec = codecs.lookup(declared.strip().strip("\"'")).name
    except (LookupError, ValueError):
        return None
    # As browsers do: pages that declare Latin-1 or ASCII are written in its superset.
    codec = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}.get(codec, codec)
    if codec in ("utf-8", "rot13") or not getattr(codecs.lookup(codec), "_is_text_encoding", True):
        return None
    try:
        text = data.decode(codec, "replace")
    except (ValueError, LookupError, TypeError):
        return None
    return text if text.count("\ufffd") <= len(text) * 0.01 else None


def _is_nearly_utf8(data: bytes) -> bool:
    valid = len(_MULTIBYTE.findall(data))
    high = sum(len(run) for run in _HIGH_BYTES.findall(data))
    covered = sum(len(each) for each in _MULTIBYTE.findall(data))
    return valid > 0 and (high - covered) * 4 <= valid


def _latin(sample: bytes) -> str:
    """Return the encoding of a Latin script in which the letters outside ASCII are those of one language."""
    best, best_score = "cp1252", -1.0
    for encoding, languages in _LATIN.items():
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            if encoding != "cp1252":
                continue
            text = sample.decode(encoding, "replace")
        score = _PRIOR[encoding] + _plausible(text, languages)
        if score > best_score:
            best, best_score = encoding, score
    return best


def _plausible(text: str, languages: tuple[str, ...]) -> float:
    """Return the share of the characters outside ASCII that one of the languages explains."""
    counts: dict[str, int] = {}
    inside_word = 0
    for match in re.finditer(r"[^\x00-\x7f]", text):
        character = match[0].lower()
        counts[character] = counts.get(character, 0) + 1
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if not match[0].isalpha() and match[0] not in "’·\u00ad" and before.isalpha() and after.isalpha():
            inside_word += 1
    total = sum(counts.values())
    if not total:
        return 1.0
    signs = sum(count for character, count in counts.items() if character in _SIGNS)
    letters = max(sum(count for character, count in counts.items() if character in language) for language in languages)
    return (letters + signs - 2 * inside_word) / total


def _detected(data: bytes) -> str | None:
    # A sample must not end amid a character: a character has at most four bytes.
    cuts = range(4 if len(data) > _SAMPLE_BYTES else 1)
    for cut in cuts:
        best = charset_normalizer.from_bytes(data[: _SAMPLE_BYTES - cut]).best()
        if best is not None:
            return best.encoding
    return None
