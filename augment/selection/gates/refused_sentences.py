"""Sentences that refuse, in the words of eleven languages: the table behind the refusal gate.

"I can't help seeing that", "I cannot answer this from the table alone", "I must decline the comparison" are thoughts:
what is refused has to be help, an answer or a piece of writing, or be followed by nothing. The patterns are for text in
lower case with straight apostrophes and single spaces, and none has an unbounded part that another could share.
"""

from __future__ import annotations

import re

_WITHIN = r"[^.!?\n]"
_OVER = r"(?=[.!?\n]|$| as (?:it|i|an)\b| because (?:it|i)\b| due to\b)"
_NEARLY_OVER = rf"(?:(?=[,;])|{_OVER}|(?= (?:here|for you|since|because|as)\b))"

# English
_CANT = (
    r"(?:can(?:no|')?t|can not|(?:won't|will not)(?: be able to)?|must decline"
    r"|(?:am|'m) (?:not able|unable|not allowed|not permitted))"
)
_REQUEST = (
    r"(?:request|prompt|query|task|conversation|instruction|demand|message|topic|subject|content|material"
    r"|discussion|role-?play)s?"
)
_PRODUCE = r"(?:provide|generate|create|produce|(?<!will not )(?<!won't )(?:give|write|share|offer))"
_STUFF = r"(?:explicit|harmful|assistance|help|guidance|advice|instructions|content|information|material|opinions?)"
_SERVE = (
    r"(?:(?:help|assist)"
    rf"(?: (?:you|with|in|out|further|anyone|create|creating|write|produce|generate)\b|{_NEARLY_OVER})"
    r"|comply|oblige"
    rf"|(?:continue|continue with|proceed with|engage with|respond to) (?:this|that|it){_NEARLY_OVER}"
    rf"|(?:answer|discuss) (?:(?:this|that|your) question|this|that){_OVER}"
    r"|(?:fulfill?|answer|complete|process|respond to|proceed with|continue(?: with)?|engage in|engage with|discuss)"
    rf" (?:(?:this|that|your|such|any) (?:\w+ ){{0,2}}?{_REQUEST}|the (?:request|prompt))\b"
    rf"|{_PRODUCE} (?:you )?(?:with )?(?:any |such |that |this |the )?(?:\w+ )?{_STUFF}\b"
    r"(?! (?:about|on|in|of) (?:the )?(?:second|first|last|other)))"
)
_THINKING = (
    r"(?! (?:to )?(?:see|find|tell|follow|remember|recall|believe|agree|derive|prove|spot|make|think|resist|say|get"
    r"|read|decide|restore|come|stay|be)\b)"
)
_MODEL = r"(?:[\w-]+ ){0,2}?(?:ai|artificial intelligence|language model|chatbot)(?: language)?(?: model| assistant)?"
_DO = (
    r"(?:help|assist|answer|respond|continue|provide|engage|write|create|produce|generate|participate|discuss|speculate"
    r"|support|simulate|pretend|role-?play|impersonate|fulfil|process|share)"
)
_VIOLATES = (
    r"(?:goes against|violates|is against|conflicts with|falls outside"
    r"|(?:may|might|could|appears to|seems to) (?:go against|violate|breach|conflict with))"
)
_ENGLISH = (
    r"(?:i'm|i am|we are|we're) (?:really |very |truly |so )?sorry\b"
    rf"{_WITHIN}{{0,40}}?\b(?:i|we) ?{_CANT}{_THINKING}\b",
    r"(?:i'm afraid|i am afraid|sorry|unfortunately|regrettably|(?:my |i (?:must |do )?)?apolog\w+)\b"
    rf"{_WITHIN}{{0,60}}?\b(?:i|we) ?{_CANT}(?: to)? (?:{_SERVE}|do (?:this|that|it){_OVER})",
    rf"(?:i|we) ?{_CANT}(?: to)? {_SERVE}",
    r"i (?:must |have to |need to |would have to |will |'ll )?(?:\w+ly )?(?:decline|refuse)"
    rf"(?:{_NEARLY_OVER}|(?: this| your| that) {_REQUEST}\b| to {_DO}\b)",
    rf"i(?:'d| would) (?:rather|prefer) not (?:to )?{_DO}\b",
    rf"i (?:do not|don't) (?:think|believe) (?:that )?i can {_SERVE}",
    r"it (?:would|is|wouldn't|isn't)(?: not)?(?: be)? (?:in|not )?(?:appropriate|ethical|right|possible) for me"
    rf" to {_DO}\b",
    r"(?:this|that)(?:'s not|'s| is not| isn't| is) something (?:that )?i (?:can|can't|cannot|would|am able to|won't) "
    rf"(?:not )?{_DO}\b",
    r"i (?:do not have|don't have|lack) the (?:ability|capability|capacity)"
    rf" to (?:think aloud|access|browse|view|experience|{_DO})\b",
    r"i (?:do not|don't) have (?:any )?(?:personal|my own|private)"
    r" (?:opinion|feeling|experience|belief|thought|emotion)s?\b",
    r"(?:please|could you|can you|kindly)(?: please)? (?:provide|share|paste|send|upload)(?: me)?(?: with)?"
    r" (?:the|a|your|more|some) (?:\w+ )?(?:passage|text|document|context|details|question)\b",
    rf"(?:i|we) ?{_CANT}(?: to)? (?:pretend|role-?play|impersonate|act as)\b",
    r"i(?:(?:'m| am) not| do not feel| don't feel) comfortable"
    rf"(?: with (?:this|that|your) {_REQUEST}\b"
    r"| (?:providing|writing|continuing|creating|generating|answering|engaging|discussing|assisting|helping)\b)",
    rf"(?:as|being|since i(?:'m| am)) an? {_MODEL}\b{_WITHIN}{{0,80}}?\bi ?(?:{_CANT}|(?:do not|don't) have\b)",
    rf"(?:this|that|your|the) (?:{_REQUEST}|question) {_VIOLATES} (?:my|our|the|usage|openai|content|safety)\b",
    rf"(?:sorry|i apologi[sz]e)[,.!]? (?:but )?i ?{_CANT}(?: to)? (?:reproduce|analy[sz]e|simulate|generate|create"
    r"|write|discuss|engage|respond|answer|share|continue|role-?play|pretend)\b",
    rf"(?:i|we) ?{_CANT}(?: to)? (?:share|reveal|generate|produce|simulate) (?:an? |my |any |the )?(?:\w+ )?"
    r"(?:monologue|chain-of-thought|chain of thought|reasoning process|thought process|thoughts)\b",
    rf"(?:it (?:looks like|seems|appears)(?: that)? )?(?:this|that|your) {_REQUEST} (?:is|falls) (?:outside|beyond)\b",
    r"my (?:\w+ )?(?:guidelines|polic(?:y|ies)|programming)"
    r" (?:do not|don't|does not|doesn't|prevents?|prohibits?|forbids?)\b",
    r"i(?:'m| am) (?:designed|programmed) (?:not )?to (?:avoid|refuse|decline|provide|help|assist|be)\b",
)

_DE_MAY = r"(?:kann|darf|werde|möchte)"
_DE_NOT = (
    r"(?:(?:ihnen|dir|euch|leider|hier|dabei|hierbei|damit|aber|auch|bei|in|dieser|diesem|diese|ihre|deine|die|anfrage"
    r"|frage|bitte|aufgabe|fall|das|jedoch|daher) ){0,8}nicht"
)
_DE_SERVE = (
    r"(?:(?:weiter)?helfen|behilflich|unterstützen|beantworten|erfüllen|nachkommen|entsprechen|bearbeiten|bereitstellen|dienen"
    r"|erfinden|simulieren|nachahmen|\w*(?:beratung|auskunft|auskünfte|ratschläge|empfehlungen|diagnosen?)|informationen|inhalte)"
)
_DE_SORRY = r"(?:entschuldig\w+|verzeih\w+|leider|bedauerlicherweise|ich bedaure|ich bitte um verständnis)"
_GERMAN = (
    r"(?:es )?tut mir (?:sehr )?leid, (?:aber |doch )?(?:ich|dabei|das|da|hierbei|bei)\b"
    rf"{_WITHIN}{{0,60}}?\b(?:nicht|keine?n?)\b{_WITHIN}{{0,60}}?\b{_DE_SERVE}\b",
    rf"{_DE_SORRY}\b{_WITHIN}{{0,60}}?\b(?:{_DE_MAY} ich|ich {_DE_MAY}) {_DE_NOT} {_DE_SERVE}\b",
    rf"(?:ich {_DE_MAY}|(?:dabei|hierbei|damit|bei dieser \w+|diese \w+) {_DE_MAY} ich) {_DE_NOT} {_DE_SERVE}\b",
    rf"ich {_DE_MAY} (?:ihnen |dir |hier |leider )*+keine?n? (?:\w+ )?{_DE_SERVE}\b",
    r"als (?:eine? )?(?:ki|künstliche intelligenz|(?:großes )?sprachmodell)[\w-]*+[\w ]{0,20}?"
    rf" (?:kann|darf|bin|habe) ich\b{_WITHIN}{{0,80}}?\b(?:nicht|keine?n?)\b",
    r"(?:diese|ihre|deine) anfrage (?:verstößt|widerspricht)\b",
    r"(?:dazu|hierzu|darüber|das|dies) (?:kann|darf|werde|möchte) ich (?:leider |ihnen |dir |hier )*+"
    r"(?:(?:nichts|nicht) (?:sagen|tun|machen|beitragen)\b(?=[.,!]|$)|keine auskunft\b)",
    r"ich bin (?:leider |hier )?nicht (?:in der lage|befugt|berechtigt)"
    rf"{_WITHIN}{{0,60}}?\bzu (?:{_DE_SERVE}|geben|erstellen|verfassen|schreiben|simulieren)\b",
    r"(?:leider ist es mir|es ist mir leider) nicht (?:möglich|erlaubt|gestattet)\b",
    rf"(?:(?:es )?tut mir leid, (?:aber|doch) )?(?:diese|ihre|deine) (?:anfrage|aufgabe|bitte|frage) {_WITHIN}{{0,20}}?"
    r"(?:übersteigt meine|liegt außerhalb meiner|muss ich (?:leider )?ablehnen|möchte ich (?:lieber )?nicht)\b",
    r"ich muss (?:diese|ihre|deine) (?:\w+ )?(?:anfrage|bitte|aufgabe) (?:leider )?ablehnen\b",
)

_ROMANCE_AND_RUSSIAN = (
    r"(?:je suis |nous sommes )?désolée?s?, (?:mais )?(?:je|nous) ne (?:peux|suis|pouvons)\b",
    r"lo siento,? (?:pero )?no (?:puedo|me es posible)\b",
    r"mi dispiace,? (?:ma )?non posso\b",
    r"(?:sinto muito|desculpe),? (?:mas )?não posso\b",
    r"(?:к сожалению|извините|простите),? (?:но )?(?:я )?не могу\b",
)

_ZH_SORRY = r"(?:很|非常|十分|实在|真的)?(?:抱歉|对不起|對不起|不好意思)"
_ZH_CANT = r"(?:不能|无法|無法|不便|不可以|没有办法|没办法|不会|恐怕不能|恐怕无法|暂时无法|不方便|拒绝)"
_ZH_SERVE = (
    r"(?:继续|真正|为您|為您|为您|为你|直接)?(?:提供|回答|回应|协助|協助|帮助|帮您|帮你|帮到|满足|滿足|完成|处理|参与|讨论|生成"
    r"|创作|执行|扮演|模拟|配合|给出|给您|进行|解答|为您解答|为你解答|分享|透露|评论)"
)
_ZH_WITHIN = r"[^。！？\n]"
_CHINESE = (
    rf"(?:{_ZH_SORRY}|(?:很|非常)?(?:遗憾|遺憾))[，,、!！。]?\s?(?:但是?|不过)?(?:我们?|本人)?{_ZH_CANT}{_ZH_SERVE}",
    rf"{_ZH_SORRY}[，,]{_ZH_WITHIN}{{0,30}}?我(?:们)?{_ZH_CANT}(?:{_ZH_SERVE}|[，。])",
    rf"我{_ZH_CANT}{_ZH_SERVE}{_ZH_WITHIN}{{0,12}}?"
    r"(?:请求|要求|任务|内容|信息|建议|服务|帮助|话题|对话|这个问题[，。])",
    r"作为(?:一个|一名|一款|一种)?(?:ai|人工智能|大?型?语言模型|智能助手)"
    rf"{_ZH_WITHIN}{{0,40}}?(?:不能|无法|没有|不具备|不会)",
    rf"(?:{_ZH_SORRY}[，,]?)?我(?:只|仅仅?)?是(?:一个|一款|一名)?(?:ai|人工智能|大?型?语言模型|聊天机器人|智能助手)",
    rf"{_ZH_WITHIN}{{0,16}}?(?:超出了?|不在)我的(?:能力|知识|服务|回答)范围",
    rf"(?:这个|该|您的|你的|此)(?:请求|要求|内容|话题){_ZH_WITHIN}{{0,20}}?(?:违反|不符合|我{_ZH_CANT})",
)

_JA_SORRY = (
    r"(?:大変)?(?:申し訳(?:ありません|ございません|ないのですが|ないです)|すみません|すいません|ごめんなさい"
    r"|恐れ入りますが|恐縮ですが)(?:が|けれども?|けど)?"
)
_JA_CANT = (
    r"(?:でき(?:ません|かね)|いたしかね|致しかね|しかねます|かねます|控えさせて|お断り|差し控え|ご?遠慮させ|お受けでき|お力になれ|お役に立てません|わかりかね|対応しておりません|難しいです"
    r"|お答えでき)"
)
_JA_SERVE = r"(?:お答え|お応え|お手伝い|回答|対応|ご依頼|ご要望|ご質問|リクエスト|提供|お役に立)"
_JA_WITHIN = r"[^。\n]"
_JAPANESE = (
    rf"{_JA_SORRY}[、。]?{_JA_WITHIN}{{0,60}}?{_JA_CANT}",
    rf"(?:残念ながら|あいにく)、?{_JA_WITHIN}{{0,40}}?{_JA_SERVE}{_JA_WITHIN}{{0,20}}?{_JA_CANT}",
    rf"(?:その|この|そのような|ご){_JA_WITHIN}{{0,20}}?(?:依頼|要望|要求|リクエスト|質問)"
    rf"{_JA_WITHIN}{{0,12}}?{_JA_SERVE}{_JA_WITHIN}{{0,8}}?{_JA_CANT}",
    r"(?:私は)?(?:ai|人工知能|(?:大規模)?言語モデル)(?:アシスタント|モデル)?(?:である|であり|です|な|として|の)"
    rf"{_JA_WITHIN}{{0,60}}?(?:{_JA_CANT}|ありません|行え)",
)

_KOREAN = (r"죄송하지만[^.\n]{0,40}?(?:없습니다|어렵습니다)",)

_FILLER = (
    r"(?:(?:okay|ok|well|hmm|alright|oh|no|hello|hi)[,.!]++ ?){0,2}"
    r"(?:(?:thank you|i (?:appreciate|understand|see|know|realize)|while i)\b[^.!?\n]{0,80}?, )?"
    r"(?:(?:but|so|and|however|therefore|as such|for this reason),? )?(?:您好|你好)?[，！]?"
)
_SENTENCES = "|".join((*_ENGLISH, *_GERMAN, *_ROMANCE_AND_RUSSIAN, *_CHINESE, *_JAPANESE, *_KOREAN))

REFUSED = re.compile(rf"(?:^|[.!?…\n。！？][\"*_)\]]*+)\s?[\"*_>#-]*+\s?{_FILLER}({_SENTENCES})")
"""A refusal at the beginning of a sentence, as its group 1."""
