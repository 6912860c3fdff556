"""Codes that people say to one another: a number and a few words, like 7-crossover-clockwork-tobacco.

The number says which invitation is meant and is no secret; each word is a byte of one.  Words come from two lists in
turn, of three syllables and of two, so that one that was left out or swapped is noticed, here and for free.

Source: the PGP word list (Juola & Zimmermann 1996).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pcompute.errors import UsageError
from p2pcompute.limits import INVITE_NUMBER_MAX, INVITE_WORDS_MAX, INVITE_WORDS_MIN

_THREE: Final = """
adroitness adviser aftermath aggregate alkali almighty amulet amusement antenna applicant apollo armistice article
asteroid atlantic atmosphere autopsy babylon backwater barbecue belowground bifocals bodyguard bookseller borderline
bottomless bradbury bravado brazilian breakaway burlington businessman butterfat camelot candidate cannonball
capricorn caravan caretaker celebrate cellulose certify chambermaid cherokee chicago clergyman coherence combustion
commando company component concurrent confidence conformist congregate consensus consulting corporate corrosion
councilman crossover crucifix cumbersome customer dakota decadence december decimal designing detector detergent
determine dictator dinosaur direction disable disbelief disruptive distortion document embezzle enchanting
enrollment enterprise equation equipment escapade eskimo everyday examine existence exodus fascinate filament
finicky forever fortitude frequency gadgetry galveston getaway glossary gossamer graduate gravity guitarist
hamburger hamilton handiwork hazardous headwaters hemisphere hesitate hideaway holiness hurricane hydraulic
impartial impetus inception indigo inertia infancy inferno informant insincere insurgent integrate intention
inventive istanbul jamaica jupiter leprosy letterhead liberty maritime matchmaker maverick medusa megaton microscope
microwave midsummer millionaire miracle misnomer molasses molecule montana monument mosquito narrative nebula
newsletter norwegian october ohio onlooker opulent orlando outfielder pacific pandemic pandora paperweight paragon
paragraph paramount passenger pedigree pegasus penetrate perceptive performance pharmacy phonetic photograph pioneer
pocketful politeness positive potato processor provincial proximate puberty publisher pyramid quantity racketeer
rebellion recipe recover repellent replica reproduce resistor responsive retraction retrieval retrospect revenue
revival revolver sandalwood sardonic saturday savagery scavenger sensation sociable souvenir specialist speculate
stethoscope stupendous supportive surrender suspicious sympathy tambourine telephone therapist tobacco tolerance
tomorrow torpedo tradition travesty trombonist truncated typewriter ultimate undaunted underfoot unicorn unify
universe unravel upcoming vacancy vagabond vertigo virginia visitor vocalist voyager warranty waterloo whimsical
wichita wilmington wyoming yesteryear yucatan
"""
_TWO: Final = """
aardvark absurd accrue acme adrift adult afflict ahead aimless algol allow alone ammo ancient apple artist assume
athens atlas aztec baboon backfield backward banjo beaming bedlamp beehive beeswax befriend belfast berserk billiard
bison blackjack blockade blowtorch bluebird bombast bookshelf brackish breadline breakup brickyard briefcase burbank
button buzzard cement chairlift chatter checkup chisel choking chopper christmas clamshell classic classroom cleanup
clockwork cobra commence concert cowbell crackdown cranky crowfoot crucial crumpled crusade cubic dashboard deadbolt
deckhand dogsled dragnet drainage dreadful drifter dropper drumbeat drunken dupont dwelling eating edict egghead
eightball endorse endow enlist erase escape exceed eyeglass eyetooth facial fallout flagpole flatfoot flytrap
fracture framework freedom frighten gazelle geiger glitter glucose goggles goldfish gremlin guidance hamlet
highchair hockey indoors indulge inverse involve island jawbone keyboard kickoff kiwi klaxon locale lockup merit
minnow miser mohawk mural music necklace neptune newborn nightbird oakland obtuse offload optic orca payday peachy
pheasant physique playhouse pluto preclude prefer preshrunk printer prowler pupil puppy python quadrant quiver quota
ragtime ratchet rebirth reform regain reindeer rematch repay retouch revenge reward rhythm ribcage ringbolt robust
rocker ruffled sailboat sawdust scallion scenic scorecard scotland seabird select sentence shadow shamrock showgirl
skullcap skydive slingshot slowdown snapline snapshot snowcap snowslide solo southward soybean spaniel spearhead
spellbind spheroid spigot spindle spyglass stagehand stagnate stairway standard stapler steamship sterling stockman
stopwatch stormy sugar surmount suspense sweatband swelter tactics talon tapeworm tempest tiger tissue tonic topmost
tracker transit trauma treadmill trojan trouble tumor tunnel tycoon uncut unearth unwind uproot upset upshot vapor
village virus vulcan waffle wallet watchword wayside willow woodlark zulu
"""
_THREE_SYLLABLES: Final = tuple(_THREE.split())
_TWO_SYLLABLES: Final = tuple(_TWO.split())
LINK_PREFIX: Final = "p2pc://join?code="
_CODE: Final = re.compile(r"([0-9]{1,6})-([a-z]+(?:-[a-z]+)*)", re.ASCII)
_PREFIX_CHARS_MIN: Final = 3
_NEW_CODE: Final = "read it again; nothing was tried, and the code is still good"


def list_at(place: int) -> tuple[str, ...]:
    """Return the 256 words of which one stands at a place of a code, counted from 0; its index is the byte."""
    return _TWO_SYLLABLES if place % 2 else _THREE_SYLLABLES


def words_of(secret: bytes) -> tuple[str, ...]:
    """Return one word for each byte."""
    return tuple(list_at(place)[byte] for place, byte in enumerate(secret))


@dataclass(frozen=True, slots=True)
class Code:
    """A code, as it is said or typed."""

    number: int
    """Of the invitation at its node; announced to everybody nearby."""
    words: tuple[str, ...]
    """The secret."""
    address: str = ""
    """HOST:PORT of the inviter, for those who are not on its network; empty: it announces itself."""

    def __str__(self) -> str:
        return "-".join((str(self.number), *self.words)) + (f"@{self.address}" if self.address else "")

    def __repr__(self) -> str:
        return f"<Code {self.number}-…>"

    @property
    def password(self) -> bytes:
        """What both sides put into the exchange."""
        return "-".join((str(self.number), *self.words)).encode()

    @property
    def link(self) -> str:
        """The code as a link, for a QR code."""
        return LINK_PREFIX + str(self)


def is_code(text: str) -> bool:
    """Return whether a text is meant as a code, and not as a token."""
    compact = _compact(text)
    return compact.startswith(LINK_PREFIX) or bool(re.match(r"[0-9]+-", compact))


def _compact(text: str) -> str:
    """Return a code as it is written, with whatever between the words."""
    return re.sub(r"[-\s]+", "-", text.strip().lower())


def parse_code(text: str) -> Code:
    """Return the code that was typed.  Case does not matter, nor whether there are hyphens or spaces; a word may be cut
    short where that is clear.

    Raises:
        UsageError: it is none, or has a word that is in no code; nothing was tried.
    """
    compact = _compact(text).removeprefix(LINK_PREFIX)
    head, _, address = compact.partition("@")
    match = _CODE.fullmatch(head)
    if match is None or not 0 < int(match[1]) <= INVITE_NUMBER_MAX:
        raise UsageError(
            "this is not a code",
            "a code is a number and some words, like 7-crossover-clockwork-tobacco",
            _NEW_CODE,
            code="mistyped",
        )
    typed = match[2].split("-")
    words = tuple(_whole_word(word, place, typed) for place, word in enumerate(typed))
    if not INVITE_WORDS_MIN <= len(words) <= INVITE_WORDS_MAX:
        raise UsageError(
            f"a code of {len(words)} words",
            f"it has {INVITE_WORDS_MIN} to {INVITE_WORDS_MAX}",
            _NEW_CODE,
            code="mistyped",
        )
    return Code(int(match[1]), words, address)


def completions(text: str, place: int) -> list[str]:
    """Return the words that may stand at a place and begin like this."""
    return [word for word in list_at(place) if word.startswith(text.lower())]


def _whole_word(text: str, place: int, typed: Sequence[str]) -> str:
    words = list_at(place)
    if text in words:
        return text
    beginning = completions(text, place)
    if len(beginning) == 1 and len(text) >= _PREFIX_CHARS_MIN:
        return beginning[0]
    if text in list_at(place + 1):
        why = "it does not belong at that place: a word before it is missing, or two are swapped"
    else:
        near = beginning if 1 < len(beginning) < 4 else difflib.get_close_matches(text, words, n=1, cutoff=0.6)
        why = f'did you mean "{" or ".join(near)}"?' if near else "no code has it there"
    raise UsageError(f'"{text}" is not word {place + 1} of a code', why, _NEW_CODE, code="mistyped")
