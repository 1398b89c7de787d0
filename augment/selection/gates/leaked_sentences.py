"""Sentences that speak of the prompt, its user or the writer as a model, in the words of English, German, Chinese and
Japanese: the table behind the leakage gate.

"The user wants to quit", "the request asks to close the connection" and "the instruction says to load a word" are about
a program; it takes a writer ("me") or a piece of writing ("the passage", "an expert") for a sentence to be a sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from augment.selection.words import UNSPACED, words_of

_WRITER = r"(?:me|that i|i (?:should|must|need|have to|m not|am not))"
_MAKES = (
    r"(?:write|rewrite|rephrase|explain|simulate|think (?:aloud|about the|about this|through|like|as|step)|summari[sz]e"
    r"|produce|provide|respond|answer|imagine|pretend|act|analy[sz]e|generate|reflect|dwell|describe|create|give|play"
    r"|go through|avoid|be|retell|mention|greet|skip|focus|read|continue)"
)
_UP_TO_8 = r"(?:\w+ ){0,8}?"
_EXPERT = (
    r"(?:experts?|(?:the|this|that|a|given|following|provided) passage|excerpt|snippet|(?:short|single|one) paragraph"
    r"|(?:the|this|given) text|thoughts?|thought process|thinking|monologue|(?:new|rewritten) version|think aloud"
    r"|these instructions)"
)
_GIVEN = r"(?:gave|gives|has given|provided|provides|has provided|shared|has shared|sent|presented|pasted)"
_ASKS = r"(?:wants|wanted|asks|asked|is asking|has asked|would like|expects|instructs|requested|told|tells|needs)"
_TOLD = r"(?:being )?(?:asked|told|instructed|supposed|prompted|meant) (?:not )?to (?:\w+ )?"
_MODEL = (
    r"(?:(?:ai|artificial intelligence) (?:language )?(?:model|assistant|system|and|so|but|i|developed|created|trained"
    r"|without|designed)|(?:large )?language model)"
)
_PIECE = (
    r"(?:analysis|breakdown|explanation|summary|version|passage|text|look|reading|thoughts?|thinking|thought process"
    r"|monologue|paragraph|response|rewrite|walkthrough|reflection|reasoning)"
)
_FROM_PROMPT = ("the prompt", "this prompt", "the instructions", "the instruction", "the request", "my instructions")
_DE_TEXT = (
    r"(?:experten?|expertin|gedankengang|gedankengänge|gedanken|monolog|laut denken|den text|den abschnitt|passage)"
)
_ZH_TEXT = r"(?:专家|內心獨白|内心独白|思考过程|思维过程|这段|这篇|原文|段落|文字|文本|文章)"
_JA_TEXT = r"(?:文章|専門家|思考|書く|書き|説明|考え|読む|要約|段落|述べ|テキスト)"
_ANY_8, _ANY_16, _ANY_30 = r"(?:\S ){0,8}?", r"(?:\S ){0,16}?", r"(?:\S ){0,30}?"

_SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    # English: who asks
    (
        ("the user", "this user"),
        rf" (?:{_ASKS} me (?:to|not|that|if|about|in|with|whether|an?|the|my|this) "
        rf"|{_ASKS} me for {_UP_TO_8}{_EXPERT} |{_ASKS} us to {_MAKES} {_UP_TO_8}{_EXPERT} "
        rf"|{_ASKS} (?:for )?{_UP_TO_8}(?:expert|monologue|thought process|thoughts|passage) "
        rf"|{_GIVEN} (?:me |us |(?:an?|the|this) (?:\w+ ){{0,3}}?(?:passage|excerpt|snippet|text (?:about|on|from)) ))",
    ),
    (
        ("the user s request", "the user s query", "the user s prompt", "the user s instructions", "the user request"),
        rf" (?:is|was|says|asks|wants|requests?|requires?) (?:asking )?(?:{_WRITER} |(?:for|to) {_UP_TO_8}{_EXPERT} )",
    ),
    (
        _FROM_PROMPT,
        rf" (?:{_ASKS}|wants?|asks?|says?|said|tells?|states?|requires?|specify|specifies|instructs?)"
        rf" (?:{_WRITER} |(?:us |for )?(?:not )?(?:to )?(?:{_MAKES} )?{_UP_TO_8}{_EXPERT} )",
    ),
    (
        tuple(f"{by} {what}" for by in ("per", "according to", "following", "given") for what in _FROM_PROMPT[:4]),
        r" (?:i|we) (?:should|must|need to|have to|am to|m to|shouldn t|mustn t|will|ll|can t)"
        rf" (?:not )?{_MAKES} ",
    ),
    (("my instructions",), r" (?:are|were) (?:not )?to "),
    (
        ("i am given", "i m given", "we are given", "i was given"),
        r" (?:an?|the|this) (?:\w+ ){0,2}?(?:passage|excerpt) ",
    ),
    (
        ("my task", "my job", "my goal", "my role", "the task", "the task here", "the goal", "the assignment"),
        rf" (?:here |now )?(?:is|was) to {_MAKES} {_UP_TO_8}{_EXPERT} ",
    ),
    (
        (
            "you are asking me",
            "you re asking me",
            "you asked me",
            "you ve asked me",
            "you have asked me",
            "you want me",
        ),
        rf" to {_MAKES} ",
    ),
    # English: what the writer has to do
    (
        ("i am", "i m", "i was", "i ve been", "i have been", "we are", "we re", "we ve been", "we have been"),
        rf" {_TOLD}{_MAKES} {_UP_TO_8}{_EXPERT} ",
    ),
    (
        ("i need to", "i have to", "i want to", "i should", "i must", "i ll", "we need to", "we have to", "we should"),
        r" (?:now |also )?(?:write|rewrite|rephrase|simulate|produce|respond with|act as|pretend|think like"
        r"|think as|think through this|think this through)"
        r"(?: down| aloud| out)? (?:\w+ ){0,4}?(?:experts?|the passage|this passage|short paragraph|thought process"
        r"|monologue|new version of the|response as) ",
    ),
    # English: the writer is a model
    (("as an ai", "as a language model", "as a large language model"), r" (?:\w+ ){0,3}?i "),
    (("i am", "i m"), rf" (?:just |only )?an? {_MODEL} "),
    (("my system prompt", "my knowledge cutoff", "my training cutoff"), r" "),
    (("my training data",), r" (?:cutoff|cut off|ends|only goes|goes up) "),
    # English: manners of a chat
    (
        ("sure", "certainly", "of course", "absolutely"),
        rf" (?:here (?:s|is|are) (?:an?|the|my|your|some) (?:\w+ ){{0,5}}?{_PIECE} "
        r"|i (?:d|would) be (?:happy|glad) to )",
    ),
    (
        ("here s", "here is"),
        r" (?:(?:the|a|my) (?:rewritten|rephrased|revised|reworded) |(?:the|a|my) new version of the (?:passage|text) "
        r"|(?:the|an?|my) (?:\w+ ){0,3}?(?:thought process|inner monologue) )",
    ),
    (("i hope this helps", "feel free to ask", "is there anything else i"), r" "),
    (("would you like me",), r" to (?:continue|go|elaborate|explain|expand|help|provide) "),
    (("let me know if you",), r" (?:have any|d like|would like|need|want) "),
    # German
    (
        ("der nutzer", "der benutzer", "die nutzerin", "der user", "der anwender"),
        r" (?:(?:möchte|will|wünscht|bittet|verlangt|erwartet|fordert)(?: \w+)? (?:dass ich|von mir|mich)"
        r"|(?:hat|gab|gibt|schickte?|stellt) mir) ",
    ),
    (
        (
            "die aufgabe",
            "meine aufgabe",
            "die anweisung",
            "die anweisungen",
            "der prompt",
            "die anfrage",
            "der auftrag",
        ),
        r" (?:verlangt|verlangen|fordert|fordern|sagt|sagen|lautet|bittet|ist es|ist|besteht darin|erwartet)"
        rf" (?:mich |von mir |dass ich |{_UP_TO_8}{_DE_TEXT} )",
    ),
    (
        tuple(
            f"{by} {what}"
            for by in ("laut", "gemäß", "nach", "entsprechend")
            for what in ("der anweisung", "den anweisungen", "der aufgabe", "der aufgabenstellung", "dem prompt")
        ),
        r" (?:soll|darf|muss|kann|werde|sollte) ich ",
    ),
    (
        ("ich soll", "ich muss", "ich sollte", "ich werde", "ich wurde gebeten"),
        rf" {_UP_TO_8}(?:experte|expertin|gedanken eines experten|gedankengang|laut denken|den text umschreiben"
        r"|den abschnitt umschreiben) ",
    ),
    (
        tuple(
            f"als {model}"
            for model in (
                *("ki", "ki modell", "ki sprachmodell", "ki assistent", "künstliche intelligenz", "sprachmodell"),
                *("großes sprachmodell", "ein sprachmodell", "eine ki", "ein großes sprachmodell"),
            )
        ),
        r" (?:kann|habe|bin|darf|besitze|verfüge|werde|denke) ich ",
    ),
    (
        ("gerne", "natürlich", "selbstverständlich", "klar"),
        r" hier (?:ist|sind|kommt|folgt) (?:eine?|der|die|das|meine?) (?:\w+ ){0,3}?"
        r"(?:analyse|version|fassung|überlegung|überlegungen|erklärung|zusammenfassung|gedanken|gedankengang|text) ",
    ),
    (("im prompt", "in der anweisung", "in den anweisungen"), r" (?:steht|heisst es|wird verlangt)(?: dass)? ich "),
    (("ich hoffe das hilft", "ich hoffe dies hilft", "lass mich wissen", "lassen sie mich wissen"), r" "),
    # Chinese
    (
        ("用户", "用戶"),
        rf"(?:(?:要求|希望|想让|想讓|想要|需要|请|請|让|讓)我(?!们|們|方|司)"
        rf"|(?:要求|希望|想让|让)我们{_ANY_8}(?:模拟|扮演|分析|解释|改写|总结|思考|写出|撰写){_ANY_16}{_ZH_TEXT}"
        rf"|(?:给了?我|给我们|发来了?|发给我|提供了?|给出了?){_ANY_16}{_ZH_TEXT})",
    ),
    (
        ("根据", "按照", "依照", "遵照"),
        r"(?:用户的?)?(?:提示词?|提示语|指令|指示|要求|任务要求|系统提示)(?:的要求|的指示)?我(?!们)"
        rf"(?:不?应(?:该|当)?|需要|要|得|不能|必须|将|会){_ANY_16}(?:专家|复述|原文|段落|文字|文本|扮演|模拟|内心|思考|总结|指出)",
    ),
    (
        (
            "我需要",
            "我要",
            "我应该",
            "我得",
            "我必须",
            "我被要求",
            "我的任务是",
            "我将",
            "任务要求我",
            "任务是",
            "题目要求我",
        ),
        rf"{_ANY_8}(?:扮演|模拟|充当|写出|撰写|改写|复述|总结|思考){_ANY_16}{_ZH_TEXT}",
    ),
    (
        tuple(
            f"作为{number}{model}"
            for number in ("", "一个", "一名", "一款")
            for model in ("ai", "人工智能", "语言模型", "大型语言模型", "大语言模型", "人工智能助手")
        ),
        r"",
    ),
    (
        ("好的", "当然可以", "当然", "没问题"),
        rf"(?:以下|下面|这里|这)(?:是|为){_ANY_16}(?:分析|思考|解读|解释|改写|总结|独白|版本|回答)",
    ),
    (("希望",), rf"(?:以上|这些|这个|我的|这段)?{_ANY_8}(?:对你|对您|能帮)(?:有所|有|能有|到)?"),
    # Japanese
    (
        ("ユーザーは", "ユーザーが", "ユーザーから"),
        rf"(?:私に(?!対)|求めてい{_ANY_8}(?:専門家|思考|要約)|渡された(?:文章|テキスト)|提供された(?:文章|テキスト)|{_ANY_30}{_JA_TEXT}{_ANY_16}よう(?:に|と)?(?:求めて|依頼して|指示して|言って|頼んで|望んで))",
    ),
    (
        (
            "指示によれば",
            "指示では",
            "指示によると",
            "プロンプトでは",
            "プロンプトには",
            "プロンプトによれば",
            "指示に従い",
        ),
        rf"{_ANY_16}{_JA_TEXT}",
    ),
    (("与えられた文章", "与えられたテキスト", "与えられた文"), rf"{_ANY_30}(?:専門家|求められ|言われ|指示され|依頼)"),
    (
        ("専門家",),
        rf"(?:になりきって|として|の立場で|の立場から|の視点で|の視点から){_ANY_8}(?:考察し|考えるよう|分析し|考えて(?:みま|いき)|思考を)",
    ),
    (("承知しました", "承知いたしました", "かしこまりました", "もちろんです"), r""),
    (("お役に立てれば", "ご参考になれば", "お役に立てば"), r""),
    (
        (
            "aiとして",
            "言語モデルとして",
            "人工知能として",
            "aiアシスタントとして",
            "aiモデルとして",
            "aiである",
            "aiなので",
        ),
        r"は?(?:私|お答え|回答|実際)",
    ),
)
"""Beginnings, and what follows them; as words with single spaces, apostrophes being spaces too."""


def _pattern(rest: str) -> re.Pattern[str]:
    """What follows, for `Words.line`, where a character of a script without spaces is a word."""
    if rest.startswith(" ") or not rest:
        return re.compile(rest)
    return re.compile(" " + re.sub(rf"([{UNSPACED}])", r"(?:\1 )", rest))


@dataclass(frozen=True)
class _Sign:
    """A beginning, as `Words.line` has it, with what follows it, and words that a text with it has."""

    beginning: str
    rest: re.Pattern[str]
    words: frozenset[str]


def _by_first_word() -> dict[str, list[_Sign]]:
    """First word → the signs that begin with it. Few texts have all the words of one, and only they are searched."""
    found: dict[str, list[_Sign]] = {}
    for beginnings, rest in _SIGNS:
        for beginning in beginnings:
            words = words_of(beginning)
            # Where nothing follows, the last may be the beginning of a longer one.
            whole = words if rest.startswith(" ") else words[:-1]
            found.setdefault(whole[0], []).append(_Sign(f" {' '.join(words)}", _pattern(rest), frozenset(whole)))
    return found


_FOLLOWED_BY = _by_first_word()


_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s)|[。！？]+[”」』]?|\n")
_MAX_OPENING = 400
"""Characters; a longer sentence is no opening."""

_MAX_OPENINGS = 3


def without_leaked_opening(text: str, source_line: str) -> str:
    """A trace without the sentences about the prompt that it begins with, where something is left.

    A reasoning model sums up what it was asked before it thinks, and what follows is worth no less for that.

    Args:
        text: of the trace.
        source_line: the segment's words as `Words.line` has them; what it says too is no sign.
    """
    left = text
    for _ in range(_MAX_OPENINGS):
        end = _SENTENCE_END.search(left, 0, _MAX_OPENING)
        if end is None:
            break
        said = leaked_sentences(f" {' '.join(words_of(left[: end.end()]))} ")
        rest = left[end.end() :].lstrip()
        if not rest or not said or said <= leaked_sentences(source_line):
            break
        left = rest
    return left


def leaked_sentences(line: str) -> set[str]:
    """The beginnings of such sentences in a line of words, as `Words.line` has it; linear in its length."""
    found = set()
    words = set(line.split(" "))
    for sign in (sign for first in _FOLLOWED_BY.keys() & words for sign in _FOLLOWED_BY[first] if sign.words <= words):
        at = line.find(sign.beginning)
        while at >= 0:
            if match := sign.rest.match(line, at + len(sign.beginning)):
                found.add(line[at : match.end()])
            at = line.find(sign.beginning, at + 1)
    return found
