"""Words that say nothing of what a text is about: two texts share them whatever their subjects are.

Those of function and of reasoning in English, German and Chinese characters; of three letters and more, since shorter
ones are not looked at. In a language without a list here common words count as shared ones, so that the gate
`off_topic` misses more there, and objects to no more.
"""

from __future__ import annotations

_ENGLISH = """
about above across actually after again against ago all almost alone along already also although always among and
another answer answers any anyone anything are argument arguments around ask asked asks away back because become
becomes been before begin begins behind being below beside best better between beyond both bring brings but call
called calls came can cannot case cases certain clear clearly come comes condition conditions could course did differ
difference different does doing don done down during each easy either else enough even ever every everyone everything
exactly example examples explain explains fact far few find finds first follow followed following follows for found
from gave get gets getting give given gives goes going gone good got had half hard has have having hence her here hers
him his hold holds how however idea important indeed instead into isn its itself just keep keeping keeps kept kind
knew know known knows large last later least leave leaves left less let lets like line lines list little long look
looks made make makes making many matter matters may maybe mean meaning means meant might mine more most much must
name named names near need needed needs neither never new next none nor not nothing now number numbers object objects
off often old once one ones only onto open order other others our out outside over own part parts particular passage
people perhaps piece place point points possible put puts question questions quite rather read reader reads real
really reason reasons result results right rule rules said same saw say saying says second see seem seems seen set
several shall she should show shown shows side simple simply since small some someone something sometimes soon still
step steps such sure take taken takes taking tell tells text than that the their them themselves then there therefore
these they thing things think thinking this those though thought thoughts three through thus till time times together
too took toward towards true try turn turns two type types under understand unless until upon use used uses using
usually value values very want wanted wants was wasn way ways well went were what whatever when whenever where whether
which while who whole whom whose why will with within without word words work works would write writes writing written
wrong yes yet you your yours
"""

_GERMAN = """
aber alle allein allem allen aller alles als also andere anderem anderen anderer anderes anders auch auf aus bei beide
beiden beim bevor bis bleibt braucht daher dabei dadurch dafür dagegen dahin damals damit danach daneben dann daran
darauf daraus darf darin darum das dass davon dazu deren derselbe deshalb dessen dem den denen denn der des desto die
dies diese dieselbe dieselben diesem diesen dieser dieses doch dort durch dürfen eben ebenso eher ein eine einem einen
einer eines einfach einige einigen einmal entweder erst erste ersten erster etwa etwas fast folgt für ganz ganze
ganzen gar geben gegen gehen geht genau genug gerade gern gesagt gibt gleich gut habe haben hat hatte hatten hier hin
hinter hätte ich ihm ihn ihnen ihr ihre ihrem ihren ihrer immer ist jede jedem jeden jeder jedes jedoch jene jetzt
kann kaum kein keine keinem keinen keiner klar kommen kommt konnte können könnte lang lange lassen lautet leicht lässt
machen macht man manche manchmal mehr mein meine meist meisten mit muss möglich müssen nach nachdem nahe neben nein
neu nicht nichts nie niemand noch nun nur nämlich ob oben obwohl oder oft ohne rund sagen sagt schon schwer sehen sehr
sein seine seinem seinen seiner seit selbst sich sie sieht sind sobald sodass sofern sogar solange solche soll sollen
sollte somit sondern sonst statt steht stehen tun und ungefähr uns unser unter verschieden verschiedene viel viele
vielen vielleicht vier voll vom von vor wann war waren warum was weder weg wegen weil weiter welche welchem welchen
welcher welches wem wen wenig weniger wenn wer werden wie wieder will wir wird wirklich wissen wohl wollen worauf
woraus worden wurde wurden während wäre würde zehn zeigt zeigen zudem zuerst zum zunächst zur zusammen zwar zwei
zwischen zwölf über überhaupt
"""

_CHARACTERS = """
一二三四五六七八九十百千万不是的了在人有我他她它这那這個个来大小上下中为為也可能要会會到说說出以时時同多后後前就对對生自之而與与
所然如果其何方法得過过和無无没用作行事分成每只次問问題题思考因此面見见年日月者間间手言私書书読读把被从都很再又些你们們什么麼吧
吗呢啊还還则則但并且或于於由让讓让最第本句字文章写寫
"""

COMMON_OF = {"en": frozenset(_ENGLISH.split()), "de": frozenset(_GERMAN.split())}
"""Language → its common words."""

COMMON = frozenset((*_ENGLISH.split(), *_GERMAN.split(), *"".join(_CHARACTERS.split())))
"""In lower case; characters of Chinese and Japanese stand by themselves."""
