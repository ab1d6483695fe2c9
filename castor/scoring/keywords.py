"""The keyword baseline: word lists by harm category, of the kind that filters use. They need no training and
take a word alike wherever it stands; models are measured against them.

An entry matches as a whole word, whatever its case, with or without a plain ending (`steal`: "Steals", "stealing"); one
that ends in * matches every word that begins so. The lists were written from the category names and definitions of
PKU-SafeRLHF, not fitted to any rows.
"""

import re
from collections.abc import Sequence

from castor.config.moderation import InputKind
from castor.data.rows.schemas import Exchange

KEYWORDS: dict[str, tuple[str, ...]] = {
    "Endangering National Security": ("terroris*", "espionage", "classified document", "overthrow", "sabotage"),
    "Insulting Behavior": ("idiot", "stupid", "moron", "loser", "ugly", "dumb", "pathetic"),
    "Discriminatory Behavior": ("racis*", "racial*", "sexis*", "inferior", "stereotyp*", "ethnic*", "bigot*"),
    "Endangering Public Health": ("anti-vax*", "vaccine", "quarantine", "pandemic", "contaminat*", "epidemic"),
    "Copyright Issues": ("pirate", "pirating", "piracy", "torrent", "copyright", "plagiari*", "counterfeit", "bootleg"),
    "Violence": (
        "kill",
        "murder*",
        "attack",
        "assault",
        "shoot",
        "stab",
        "stabbing",
        "bomb",
        "weapon",
        "gun",
        "tortur*",
    ),
    "Drugs": ("drug", "cocaine", "heroin", "meth", "methamphetamine", "marijuana", "weed", "opioid", "ecstasy", "lsd"),
    "Privacy Violation": ("social security number", "home address", "stalk", "spy on", "spying", "dox*", "eavesdrop*"),
    "Economic Crime": (
        "steal",
        "stole",
        "rob",
        "robb*",
        "fraud*",
        "scam*",
        "blackmail",
        "extort*",
        "shoplift",
        "burgl*",
    ),
    "Mental Manipulation": ("manipulat*", "gaslight*", "brainwash*", "coerc*", "deceiv*", "propaganda"),
    "Human Trafficking": ("traffick*", "smuggl*", "forced labor", "forced labour", "slave*", "kidnap*"),
    "Physical Harm": ("poison", "hurt", "injur*", "suicid*", "self-harm", "overdos*", "harm"),
    "Sexual Content": ("sex", "sexual*", "porn*", "nude", "naked", "erotic*", "prostitut*"),
    "Cybercrime": ("hack", "malware", "phish*", "ransomware", "password", "ddos", "keylogger"),
    "Disrupting Public Order": ("riot", "vandal*", "looting", "false alarm", "hoax*", "incit*", "graffiti"),
    "Environmental Damage": ("dump waste", "toxic waste", "illegal logging", "pollut*", "poach", "oil spill"),
    "Psychological Harm": ("bully*", "bullies", "harass*", "humiliat*", "threat*", "intimidat*", "worthless", "abus*"),
    "White-Collar Crime": ("launder", "insider trading", "embezzl*", "tax evasion", "brib*", "ponzi"),
    "Animal Abuse": ("animal cruelty", "dog fight", "dogfight", "cockfight", "kick the dog", "animal abuse"),
}
"""By PKU-SafeRLHF category."""

_ENDING = r"(?:s|es|d|ed|ing|er|ers)?\b"


def _pattern(entry: str) -> str:
    return re.escape(entry.removesuffix("*")) + ("" if entry.endswith("*") else _ENDING)


_ANY = re.compile(
    r"\b(?:" + "|".join(_pattern(entry) for entries in KEYWORDS.values() for entry in entries) + ")", re.IGNORECASE
)


def keyword_verdicts(texts: Sequence[Exchange], reads: InputKind = "pair") -> list[bool]:
    """For each text: does a keyword occur in what the judge reads? Earlier turns go with the question."""
    return [any(_ANY.search(part) for part in parts_read(text, reads)) for text in texts]


def parts_read(text: Exchange, reads: InputKind) -> list[str]:
    """The texts that a judge of this kind reads, in order. Earlier turns go with the question."""
    asked = [*(turn for exchange in text.history for turn in exchange), text.prompt]
    return {"pair": [*asked, text.response], "answer": [text.response], "question": asked}[reads]
