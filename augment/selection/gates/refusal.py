"""The gate against refusals: "I'm sorry, but I can't help with that" is no thought about a document.

A refusal stands at the beginning of a sentence, in the first person and outside quotation marks, near the beginning of
the trace, or anywhere in a short one. So a trace that thinks about somebody's refusal passes. A person who says sorry
in a story does not count either while the segment has the same words.
"""

from __future__ import annotations

import re

from pydantic import Field
from pydantic.dataclasses import dataclass

from augment.selection.gates.gate import Gate, Subject
from augment.selection.gates.quotations import plain, without_quotations
from sharding.config import STRICT

_CANT = r"(?:can(?:no|')?t|can not|won't|am (?:not able|unable)|'m (?:not able|unable)|must decline|will not)"
_SERVE = (
    r"(?:(?:help|assist)(?: you| with| in| out)?(?= |[.,!]|$)(?! but| think| wonder| notic| feel)|comply|oblige"
    r"|(?:fulfill?|answer|complete|process|respond to|proceed with|continue with|engage (?:in|with))"
    r" (?:this|that|your|the) (?:\w+ )?(?:request|question|prompt|query|task|conversation|topic)"
    r"|(?:provide|give|generate|create|produce|write|share|offer) (?:you (?:with )?)?(?:any |such |that |this )?"
    r"(?:explicit|harmful|assistance|help|guidance|advice|instructions|content|information|material)\b)"
)
_PATTERNS = (
    rf"(?:i'm|i am|we are|we're) (?:really |very |truly |so )?sorry\b[^.!?\n]{{0,40}}?\b(?:i|we) ?{_CANT}\b",
    rf"(?:sorry|unfortunately|i'm afraid|(?:my |i )?apolog\w+)\b[^.!?\n]{{0,40}}?\b(?:i|we) ?{_CANT}(?: to)? {_SERVE}",
    rf"i ?{_CANT}(?: to)? {_SERVE}",
    rf"(?:as|being|since i(?:'m| am)) an? (?:ai|(?:large )?language model)\b[^.!?\n]{{0,80}}?\bi ?{_CANT}\b",
    r"(?:this|that|your) request (?:goes against|violates|is against|conflicts with) (?:my|our|the)\b",
    # German, French, Spanish, Italian, Portuguese, Russian
    r"(?:es )?tut mir (?:sehr )?leid, (?:aber |doch )?(?:ich|dabei|das|da|hierbei)\b[^.!?\n]{0,60}?\bnicht\b",
    r"(?:je suis |nous sommes )?désolée?s?, (?:mais )?(?:je|nous) ne (?:peux|suis|pouvons)\b",
    r"lo siento,? (?:pero )?no (?:puedo|me es posible)\b",
    r"mi dispiace,? (?:ma )?non posso\b",
    r"(?:sinto muito|desculpe),? (?:mas )?não posso\b",
    r"(?:к сожалению|извините|простите),? (?:но )?(?:я )?не могу\b",
    # Chinese, Japanese, Korean
    r"(?:很?抱歉|对不起|對不起)[，,、]?\s?(?:但)?我?(?:不能|无法|無法|没有办法)",
    r"(?:大変)?(?:申し訳(?:ありません|ございません)|すみません)(?:が|けれども)?、[^。\n]{0,40}?(?:できません|できかねます|お答えでき)",
    r"죄송하지만[^.\n]{0,40}?(?:없습니다|어렵습니다)",
)
_FILLER = r"(?:(?:okay|ok|well|hmm|alright|oh|no|hello|hi)[,.!]++ ?){0,2}(?:but |so |and )?"
_REFUSAL = re.compile(rf"(?:^|[.!?…\n。！？][\"*_)\]]*+)\s?[\"*_>#-]*+\s?{_FILLER}({'|'.join(_PATTERNS)})")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Refusal(Gate):
    """Refusals to think: traces that begin with one or consist of one."""

    within_characters: int = Field(
        default=300, gt=0, description="How far into the trace a refusal begins to be one, quotations left out."
    )
    whole_characters: int = Field(
        default=600, ge=0, description="In a trace no longer than this it may stand anywhere, quotations left out."
    )

    def objects(self, subject: Subject) -> bool:
        said = plain(without_quotations(plain(subject.trace.text)))
        end = len(said) if len(said) <= self.whole_characters else self.within_characters
        # A match that begins within the limit may end after it.
        found = {match[1] for match in _REFUSAL.finditer(said[: end + 200]) if match.start(1) < end}
        source = plain(subject.source_text) if found else ""
        return any(refusal not in source for refusal in found)
