"""An invented fungarium: a small tree of made-up fungi, and what each of them looks like.

Every name below is invented and every picture is procedural. Nothing here tells anything about a real fungus, least of
all whether it can be eaten. Traits are inherited down the tree: a line gives its own traits and passes them on to all
lines indented below it, so that upper levels differ in body plan and lower levels in colour, marks and proportions.
"""

import dataclasses
import re
from functools import lru_cache

LEVELS = ("phylum", "class", "order", "family", "genus", "species")

# One space of indent a level; "key=value" sets a field of Look for a node and all below it; bars start the species.
TREE = """
Tectomycota
 Umbellomycetes plan=mushroom
  Brolliales under=gills
   Brolliaceae cap=convex ring=1 bulb=.08
    Brollia width=.72 height=.62 | rubrifex main=scarlet spots=11 second=white
     | nocturna main=violet spots=11 second=lilac | tigrina main=orange spots=16 mark=dark second=cream
    Sombrella cap=flat width=.9 height=.5 stem=.09 | pallida main=cream second=white zone=.4 accent=tan
   Fezziaceae cap=cone width=.52 height=.8 stem=.1
    Fezzia | acuta main=slate second=white | lilacina main=lilac second=white
    Pixiola cap=umbo width=.5 height=.6 stem=.05 group=3 | caerulea main=azure second=slate
     | mellea main=ochre second=rust | vesperis main=rose second=white
  Tubicinales plan=funnel
   Tubicinaceae
    Tubicina width=.75 stem=.13 | aurea main=gold second=orange | fumosa main=slate second=black
  Bunniales under=pores
   Bunniaceae cap=convex width=.8 height=.55 stem=.26 bulb=.12
    Bunnia | crustata main=brown second=cream | olivina main=olive second=gold | sanguinea main=brown second=scarlet
    Crumpetta cap=flat height=.6 stem=.2 bulb=0 ring=1 | tosta main=ochre second=tan zone=.5 accent=brown
     | butyracea main=gold second=cream
 Balconimycetes plan=bracket
  Balconiales
   Balconiaceae
    Balconia tiers=1 thick=.32 zone=2 | ferruginea main=rust second=tan | nigrescens main=slate second=white
    Verandina tiers=2 thick=.1 zone=4 | zonata main=brown second=cream | virens main=teal second=cream
  Ruffliales
   Ruffliaceae
    Rufflia tiers=4 thick=.08 frill=.14 zone=1 | sulphurata main=gold second=orange
Poculomycota
 Poculimycetes plan=cup
  Gobletiales
   Gobletiaceae stalk=.6 depth=.6 width=.6
    Gobletia | coccinea main=white second=scarlet | aurantia main=cream second=orange
    Thimblea width=.45 depth=.8 fringe=26 group=2 | ciliata main=brown second=gold
   Saucerellaceae stalk=0 depth=.4 width=.9
    Saucerella | azurea main=slate second=azure | guttata main=brown second=gold spots=9 mark=dark
    Ruchea frill=.12 group=3 width=.62 | vinosa main=rust second=violet
 Favimycetes plan=morel
  Waffeliales
   Waffeliaceae stem=.2
    Waffelia cap=cone height=1.1 width=.45 | crispa main=ochre second=cream | fuliginea main=slate second=white
    Skepella cap=round height=.85 width=.58 | mellita main=gold second=white
  Saddleriales plan=saddle
   Saddleriaceae
    Saddlera stem=.14 | atrata main=black second=slate | cremea main=cream second=white
Fruticomycota
 Chandelimycetes plan=coral
  Chandeliales
   Chandeliaceae
    Chandelia forks=4 spread=.42 stem=.085 | aurea main=gold second=orange | violacea main=violet second=lilac
     | roseipes main=cream second=rose
    Antlerina forks=3 spread=.62 stem=.11 | flammea main=orange second=scarlet
  Wandiales plan=club
   Wandiaceae
    Wandia stem=.05 group=6 | lutea main=gold second=gold | nigripes main=black second=white
    Skittlia stem=.14 group=3 | ochracea main=ochre second=tan
 Globomycetes plan=ball
  Dumpliniales
   Dumpliniaceae
    Dumplinia width=.8 | nivea main=white second=cream | verrucosa main=tan second=brown spots=26 mark=dark
    Muffinia width=.62 stalk=.5 spots=16 | pusilla main=ochre second=cream
  Twinkleales
   Twinkleaceae
    Twinklea width=.5 rays=6 | hexas main=tan second=brown | dodecas main=slate second=tan rays=11
"""


@dataclasses.dataclass(frozen=True)
class Look:
    """What a species looks like; lengths are in specimen units (a specimen spans about -1 to 1 both ways)."""

    plan: str = "mushroom"  # which function of PLANS draws it
    main: str = "tan"  # cap, shelf, outside of a cup, branches
    second: str = "cream"  # stem, lining of a cup, tips of branches, bands
    accent: str = "brown"  # middle of a zoned cap
    cap: str = "convex"  # outline of a cap or head
    under: str = "gills"  # underside of a cap: gills or pores
    width: float = 0.7  # half the width of the cap, cup or ball
    height: float = 0.6  # of the cap or head
    stem: float = 0.13  # half the thickness of a stem or branch
    bulb: float = 0.0  # how much thicker the stem is at its foot
    ring: float = 0.0  # 1 draws a ring on the stem
    spots: float = 0.0  # how many spots
    mark: str = "light"  # spots are light or dark
    zone: float = 0.0  # caps: size of the differing middle; shelves: number of bands
    frill: float = 0.0  # waviness of a margin
    fringe: float = 0.0  # number of hairs on the rim of a cup
    depth: float = 0.5  # of a cup
    stalk: float = 0.0  # length of the stalk of a cup or ball
    tiers: float = 1.0  # number of shelves
    thick: float = 0.1  # of a shelf
    forks: float = 3.0  # how often a coral branches
    spread: float = 0.5  # angle between branches in radians
    rays: float = 0.0  # of an earth star
    group: float = 1.0  # how many bodies stand together, about


@dataclasses.dataclass(frozen=True)
class Species:
    """A leaf of the tree: its six names from phylum to species, and its look."""

    names: tuple[str, ...]
    look: Look


@lru_cache(maxsize=1)
def all_species() -> tuple[Species, ...]:
    """Read TREE; species come in the order of the tree, and species names are binomials ("Genus epithet")."""
    species: list[Species] = []
    path: list[tuple[str, dict]] = []
    for line in re.sub(r"\n +\|", " |", TREE.strip()).splitlines():
        depth = len(line) - len(line.lstrip())
        node, *epithets = line.split("|")
        path[depth:] = [_read_node(node, path[depth - 1][1] if depth else {})]
        for epithet in epithets:
            name, traits = _read_node(epithet, path[-1][1])
            names = [*(entry[0] for entry in path), f"{path[-1][0]} {name}"]
            species.append(Species(tuple(names), Look(**traits)))
    return tuple(species)


def _read_node(text: str, inherited: dict) -> tuple[str, dict]:
    name, *settings = text.split()
    pairs = (setting.split("=") for setting in settings)
    own = {key: float(value) if isinstance(getattr(Look, key), float) else value for key, value in pairs}
    return name, {**inherited, **own}
