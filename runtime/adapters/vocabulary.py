"""The closed word lists: abbreviations, first words, stop words, and what is no technical term."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A full stop after these never ends a sentence; after ABBREVIATIONS only if the next word can only be a first word.
TITLES = _words("dr prof mr mrs vs cf e.g i.e viz")
ABBREVIATIONS = _words(
    "al etc fig figs eq eqs ref refs no nos sp spp ca approx vol pp ch sec tab suppl resp st inc ltd dept ed eds"
    " jr sr ms var subsp min max avg jan feb mar apr jun jul aug sep sept oct nov dec"
)
STARTERS = _words(
    "the we this these those in it here however our although when while to for by as thus therefore they such both"
    " each there results together moreover furthermore finally using after recent on at if from with no its hence"
    " because since all some many most several other another consequently conversely similarly interestingly"
)
STOP_WORDS = _words(
    "a about above across after again against all almost along already also although always among an and another any"
    " are as at be because been before being below between both but by can cannot could did do does doing done down"
    " due during each either et al etc even ever every few first for from further had has have having he hence her"
    " here his how however i if in into is it its itself just least less like made make many may might more most much"
    " must near nearly neither no nor not now of off often on once one only or other others our out over own per"
    " perhaps quite rather same second see several shall she should since so some still such than that the their"
    " them then there thereby therefore these they third this those though three through throughout thus to together"
    " too toward towards two under until up upon us use used using very via was we well were what when where whereas"
    " whether which while who whom whose why will with within without would yet you your"
)
DANGLING = _words("this these those it they its their he she his her such both that there then")
NOT_IN_TERMS = _words(
    "show shown showed suggest suggested suggesting indicate indicated found find observed observe reported report"
    " result finding increase increased decrease decreased high higher low lower large larger small smaller different"
    " significant significantly important new novel similar previous previously recent recently compared based given"
    " respectively number example study studies paper work data figure table section method approach present propose"
    " proposed demonstrate demonstrated including associated obtained performed determined required known important"
    " possible likely specific various general case way analysis set value effect role total mean level change time"
    " difference observed consistent interestingly addition contrast fact order part type kind form"
    " affect addressed allow consider considered contain define described expected identify identified involve"
    " investigate lead led need provide provided remain require reveal revealed test tested tend take taken year day"
    " week month hour min conducted according average individual participant group condition experiment present"
    " current possibility information similarly first second two three four five sample factor controls"
)
