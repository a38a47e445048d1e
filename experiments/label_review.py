"""Checks the labels of open_media's recordings with YAMNet, a classifier of AudioSet's 521 classes (open_media.md).

    python -m echoink.data get open_media                          # its packages stay in work
    pip install ai-edge-litert                                     # in an environment of its own, with this package
    python experiments/label_review.py yamnet.tflite yamnet_class_map.csv [the folder that was work=]

Each class here is one or several of AudioSet's, or has a wider one alone ("Animal" for a koala). A recording's score
is the highest of these over windows of 0.975 s. Its rank is the share of the recordings of other classes, in percent,
that score lower in the same classes of AudioSet; a guess is 50 on average. Others are classes that share none of
AudioSet's with it, and where only the kind is known, classes of other kinds.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from echoink.data.open_media import catalogue, packages

WINDOW = 15_600
"""Samples of YAMNet's input."""

LABELS = """
dog: Dog|Bark|Yip|Bow-wow
cat: Cat|Meow|Caterwaul
cow: Cattle, bovinae|Moo
horse: Horse|Neigh, whinny|Snort
sheep: Sheep|Bleat
goat: Goat|Bleat
pig: Pig|Oink|Grunt
duck: Duck|Quack
goose: Goose|Honk
hen: Chicken, rooster|Cluck|Fowl
rooster: Chicken, rooster|Crowing, cock-a-doodle-doo
owl: Owl|Hoot|Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
crow: Crow|Caw|Bird
turkey: Turkey|Gobble
frog: Frog|Croak
bee: Bee, wasp, etc.|Buzz
hornet: Bee, wasp, etc.|Buzz
cricket: Cricket|Insect
wolf: Howl|Canidae, dogs, wolves
lion: Roaring cats (lions, tigers)|Roar
tiger: Roaring cats (lions, tigers)|Roar
orca: Whale vocalization
whale: Whale vocalization
dolphin*: Whale vocalization|Animal|Clicking|Squeal
bull: Cattle, bovinae|Moo
mouse*: Mouse|Rodents, rats, mice|Animal
accordion: Accordion
banjo: Banjo|Plucked string instrument
bongo: Tabla|Drum|Percussion
castanets: Wood block|Percussion
cello: Cello|Bowed string instrument|Double bass
clarinet: Clarinet|Wind instrument, woodwind instrument
cymbal: Cymbal|Hi-hat
drum kit: Drum kit|Drum machine
electric guitar: Electric guitar|Guitar
guitar: Guitar|Acoustic guitar|Plucked string instrument
flute: Flute
harmonica: Harmonica
harp: Harp|Plucked string instrument
horn: French horn|Brass instrument
maracas: Maraca|Rattle (instrument)
organ: Organ|Electronic organ|Hammond organ
piano: Piano|Keyboard (musical)|Electric piano
saxophone: Saxophone
snare drum: Snare drum|Drum
tambourine: Tambourine
timpani: Timpani|Bass drum|Drum
triangle: Ding|Jingle, tinkle|Bell|Cymbal
trombone: Trombone|Brass instrument
trumpet: Trumpet|Brass instrument
tuba: Brass instrument|French horn|Trombone
violin: Violin, fiddle|Bowed string instrument
bassoon: Wind instrument, woodwind instrument|Brass instrument
tom-tom drum: Drum|Bass drum|Percussion
bell: Bell|Church bell|Ding|Change ringing (campanology)|Tuning fork|Chime
clock: Clock|Tick|Tick-tock
telephone: Telephone|Telephone bell ringing
camera: Camera|Single-lens reflex camera
kettle: Steam|Boiling|Hiss|Whistle|Steam whistle
washing machine: Mechanisms|Engine
vacuum cleaner: Vacuum cleaner
toilet: Toilet flush
rubber duck: Squeak|Duck|Quack
hammer: Hammer|Thump, thud|Whack, thwack|Knock
saw: Sawing|Filing (rasp)
scissors: Scissors
chainsaw: Chainsaw
jackhammer: Jackhammer
sewing machine: Sewing machine
keyboard: Typing|Computer keyboard|Typewriter
door: Door|Slam|Creak|Squeak|Cupboard open or close
cash register: Cash register|Ding|Bell
tap water: Water tap, faucet|Water|Drip|Pour|Plop
steam train: Steam|Steam whistle|Train|Train whistle|Rail transport
train: Train|Rail transport|Train horn|Railroad car, train wagon
ship: Ship|Foghorn|Boat, Water vehicle|Air horn, truck horn
aeroplane: Aircraft|Aircraft engine|Fixed-wing aircraft, airplane|Propeller, airscrew|Jet engine
helicopter: Helicopter|Aircraft
truck: Truck|Air horn, truck horn|Motor vehicle (road)|Vehicle horn, car horn, honking
bus: Bus|Motor vehicle (road)|Vehicle horn, car horn, honking
car: Car|Motor vehicle (road)|Vehicle horn, car horn, honking|Engine starting
motorcycle: Motorcycle
fire engine: Fire engine, fire truck (siren)|Siren
railroad crossing: Bell|Bicycle bell|Train|Ding
baby: Baby cry, infant cry|Crying, sobbing
cough: Cough|Throat clearing
laughter: Laughter|Giggle|Chuckle, chortle|Snicker
scream: Screaming|Shout|Yell|Groan
sneeze: Sneeze
footsteps: Walk, footsteps|Run|Clip-clop|Tap
clapping: Clapping|Applause|Hands
thunder: Thunder|Thunderstorm
wind: Wind|Wind noise (microphone)
rain: Rain|Rain on surface|Raindrop
campfire: Fire|Crackle
explosion: Explosion|Boom|Burst, pop
cuckoo*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
blackbird*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
lark*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
seagull*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
toucan*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
quetzal*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
vulture*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
penguin*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
heron*: Bird|Bird vocalization, bird call, bird song|Chirp, tweet|Squawk
bear*: Animal|Wild animals|Domestic animals, pets|Roar|Growling
elephant*: Animal|Wild animals|Domestic animals, pets
chimpanzee*: Animal|Wild animals|Domestic animals, pets
monkey*: Animal|Wild animals|Domestic animals, pets
gorilla*: Animal|Wild animals|Domestic animals, pets|Roar
sea lion*: Animal|Wild animals|Domestic animals, pets
zebra*: Animal|Wild animals|Domestic animals, pets
camel*: Animal|Wild animals|Domestic animals, pets
bison*: Animal|Wild animals|Domestic animals, pets|Roar|Cattle, bovinae
deer*: Animal|Wild animals|Domestic animals, pets
caribou*: Animal|Wild animals|Domestic animals, pets
badger*: Animal|Wild animals|Domestic animals, pets
ferret*: Animal|Wild animals|Domestic animals, pets
rabbit*: Animal|Wild animals|Domestic animals, pets
squirrel*: Animal|Wild animals|Domestic animals, pets|Rodents, rats, mice|Rattle
koala*: Animal|Wild animals|Domestic animals, pets
hippopotamus*: Animal|Wild animals|Domestic animals, pets
bat*: Animal|Wild animals|Domestic animals, pets
donkey*: Animal|Livestock, farm animals, working animals|Howl
fox*: Animal|Dog|Canidae, dogs, wolves|Howl
"""
"""AudioSet's classes for each class; * where they say its kind alone."""


def scores(files: tuple[Path, Path], sounds: dict[str, np.ndarray]) -> tuple[list[str], dict[str, np.ndarray]]:
    """AudioSet's names, and for each recording the highest score of each over its windows."""
    from ai_edge_litert.interpreter import Interpreter  # not a dependency of this package

    model, table = files
    with table.open(encoding="utf-8") as rows:
        names = [row["display_name"] for row in csv.DictReader(rows)]
    yamnet = Interpreter(str(model), num_threads=1)
    yamnet.allocate_tensors()
    into, out = yamnet.get_input_details()[0]["index"], yamnet.get_output_details()[0]["index"]
    found = {}
    for name, sound in sounds.items():
        loud = 0.7 * sound / np.abs(sound).max()
        loud = np.pad(loud, (0, max(0, WINDOW - len(loud)))).astype(np.float32)
        windows = []
        for first in range(0, len(loud) - WINDOW + 1, WINDOW // 2):
            yamnet.set_tensor(into, loud[None, first : first + WINDOW].reshape(yamnet.get_input_details()[0]["shape"]))
            yamnet.invoke()
            windows.append(yamnet.get_tensor(out)[0].copy())
        found[name] = np.max(windows, 0)
    return names, found


def main(model: Path, table: Path, work: Path = Path("outputs/data/open_media_packages")) -> None:
    found = catalogue.read({one.key: work / f"{one.name}_{one.version}" for one in packages.PACKAGES}, iter)
    of = {name: entry for entry in found.entries.values() for name in entry.sounds}
    sounds = {name: entry.sounds[name] for name, entry in of.items()}
    names, heard = scores((model, table), sounds)
    pairs = [line.split(": ") for line in LABELS.strip().splitlines()]
    labels = {key.rstrip("*"): value.split("|") for key, value in pairs}
    wide = {key.rstrip("*") for key, _ in pairs if key.endswith("*")}
    if wrong := sorted({label for each in labels.values() for label in each} - {*names}):
        sys.exit(f"not classes of {table}: {', '.join(wrong)}")
    ranked = []
    for name, entry in of.items():
        own = labels[entry.name]
        rows = [names.index(label) for label in own]
        score = heard[name][rows].max()
        others = [
            other
            for other, its in of.items()
            if not {*labels[its.name]} & {*own} and (entry.name not in wide or its.kind != entry.kind)
        ]
        below = 100 * float(np.mean([heard[other][rows].max() < score for other in others]))
        top = ", ".join(f"{names[place]} {heard[name][place]:.2f}" for place in np.argsort(-heard[name])[:5])
        ranked.append((below, entry.name, name, top))
    for below, class_, name, top in sorted(ranked):
        print(f"{below:5.1f} {class_ + '*' * (class_ in wide):18} {name:48} {top}")
    for what, among in (("classes of AudioSet", False), ("kinds alone (*)", True)):
        shares = np.array([below for below, class_, *_ in ranked if (class_ in wide) is among])
        found = ", ".join(f"{np.sum(shares >= least)} at {least} or more" for least in (95, 90, 75, 50))
        print(f"{what}: {len(shares)} recordings, {found}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
