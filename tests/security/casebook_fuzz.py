"""Casebooks that nobody in his right mind would write: bytes changed, values exchanged, YAML's own traps set."""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from probe import discovery

ROOT = Path(__file__).resolve().parents[2]

HOSTILE_YAML = (
    "1e999", "-1e999", "1e-999", "1e308", ".nan", ".inf", "-.inf", "NaN", "Infinity", "1" + "0" * 12, "1" + "0" * 17,
    "1" + "0" * 18, "1" + "0" * 400, "-1", "0", "-0.0", "0x7fffffff", "0o17", "1_000", "4294967296", "2147483648",
    "9223372036854775807", "1e9", "1e17", "0.5", "null", "~", "true", "no", "[]", "{}", "[[]]", "[null]", "{a: {}}",
    "''", '"\\0"', '"\\x1b[2J"', '"\\u202E"', '"\\uD800"', '"\\u2028"', "2026-01-01", "12:30:45", "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>", "'{{7*7}}'", '"%{x}${jndi:ldap://x}"', "'../../../etc/passwd'", "/etc/passwd",
    "/dev/zero", "/dev/stdin", "/proc/self/mem", "'a" + "b" * 40_000 + "'", "[" + "1, " * 15_000 + "1]",
    "[" * 31 + "]" * 31, "[" * 400, "{a: " * 20 + "1" + "}" * 20, "!!python/object:os.system x", "!!binary aGk=",
    "!!set {a, b}", "&a [*a]", "*a", "&a {b: *a}", "{<<: {lengths: [1]}}", "? [a]", "!x y", "| \n    text", "%TAG",
    "'" + "a" * 60 + "!'", "'((((((a+)+)+)+)+)+'", "[0, 1000000000000]", "[[0, 1000000000000]]", "[1000000000]",
    "[[0, 0], [0, 0]]", "{from_finding: x}", "{matched_to: x}", "[64, 64]", "[2.5]", "[true]", "['64']", "[-1]", "[0]",
    "[4000, 1]", "[1e6]", "english", "templates", "none", "needles", "always", "[0.1, 0.9]", "3.7e5", "1000000",
)  # fmt: skip
"""Text that goes into the place of a value, as it stands."""

KEYS = ("<<", "", "null", "model", "workload", "stages", "x" * 5000, "__class__", "../x", "\u202e", "1", "true", "as")
"""What a key is exchanged for."""

INTERESTING = b"\x00\xff\xfe\xc3\xe2\x80\xae\x1b\r\t:{}[],&*!|>'\"%@`#-?<\n "


@cache
def shipped() -> tuple[bytes, ...]:
    """Every casebook of the checkout, its comments left out, so that 100,000 take minutes and not hours."""
    found = []
    for path in sorted((ROOT / "casebooks").glob("*/*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found.append("\n".join(line for line in lines if not line.lstrip().startswith("#")).encode() + b"\n")
    return tuple(found)


@cache
def _shipped_values() -> tuple[Any, ...]:
    return tuple(map(yaml.safe_load, shipped()))


def _smallest(**changed: Any) -> dict[str, Any]:
    stage: dict[str, Any] = {"name": "read", "conditions": {"baseline": {"role": "baseline", "capture": True}}}
    return {
        "name": "x",
        "question": "?",
        "workload": {"needle": {"lengths": [64], "samples": 1}},
        "stages": [stage],
    } | changed


@cache
def _fields(room: str) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
    """Every member of a room that a casebook can name, with its parameters and their defaults."""
    found = []
    for name in sorted(discovery.names(room)):
        member = discovery.get(room, name)
        if dataclasses.is_dataclass(member):
            given = [
                (f.name, None if f.default is dataclasses.MISSING else f.default) for f in dataclasses.fields(member)
            ]
        else:
            given = [(p.name, p.default) for p in list(inspect.signature(member).parameters.values())[1:]]
        plain = ((key, value if _is_json(value) else None) for key, value in given if key != "layers_of")
        found.append((name, tuple(plain)))
    return tuple(found)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, inside in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from _places(inside, (*path, key))


class _Traps:
    """Marks in a value where text of its own goes once the value is YAML."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def set(self, text: str) -> str:
        self.texts.append(text)
        return f"TRAP{len(self.texts) - 1}TRAP"

    def written(self, value: Any, rng: random.Random) -> bytes:
        # Mostly JSON, which is YAML too and ten times as soon written.
        if rng.random() < 0.7:
            text = json.dumps(value, indent=rng.choice((None, 1)))
            marks = [f'"TRAP{at}TRAP"' for at in range(len(self.texts))]
        else:
            text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=10**6)
            marks = [f"TRAP{at}TRAP" for at in range(len(self.texts))]
        for mark, trap in zip(marks, self.texts, strict=True):
            text = text.replace(mark, trap)
        return text.encode("utf-8", "surrogatepass")


def _put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def _bytes(rng: random.Random) -> bytes:
    """Change, insert, remove, double or exchange a few stretches of a shipped casebook."""
    data = bytearray(rng.choice(shipped()))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 5, 40))
        match rng.randrange(6):
            case 0:
                data[at : at + length] = b""
            case 1:
                data[at:at] = bytes(rng.choice(INTERESTING) for _ in range(length))
            case 2:
                data[at : at + length] = rng.randbytes(length)
            case 3:
                data[at:at] = data[at : at + 200]
            case 4:
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
            case _:
                data[at:] = data[at:][::-1] if rng.random() < 0.1 else data[at:]
    return bytes(data)


def _values(rng: random.Random) -> bytes:
    """Exchange one to three values of a shipped casebook for hostile ones."""
    value, traps = _copied(rng.choice(_shipped_values())), _Traps()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _put(value, rng.choice(list(_places(value))), traps.set(rng.choice(HOSTILE_YAML)))
    return traps.written(value, rng)


def _keys(rng: random.Random) -> bytes:
    """Exchange, double or take out a key of a shipped casebook, or put one in."""
    value = _copied(rng.choice(_shipped_values()))
    mappings = [value] + [inside for path in _places(value) if isinstance(inside := _at(value, path), dict) and inside]
    mapping = rng.choice(mappings)
    key = rng.choice(list(mapping))
    match rng.randrange(3):
        case 0:
            mapping[rng.choice(KEYS)] = mapping.pop(key)
        case 1:
            del mapping[key]
        case _:
            mapping[rng.choice(KEYS)] = rng.choice((None, [], {}, 1, "x", mapping[key]))
    traps = _Traps()
    written = traps.written(_copied(value), rng)
    if rng.random() < 0.2:
        line = rng.choice([each for each in written.split(b"\n") if each.strip()])
        written += line + b"\n"
    return written


def _copied(value: Any) -> Any:
    # What stands in two places of a value would be written as an alias, which is another mutation.
    return json.loads(json.dumps(value))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _member(rng: random.Random) -> bytes:
    """Give a workload, an intervention, an analysis or a statistic hostile parameters of the right names."""
    room = rng.choice(("workloads", "workloads", "hooks", "analyses", "kernels"))
    name, known = rng.choice(_fields(room))
    traps = _Traps()
    given: dict[str, Any] = {}
    for key, default in known:
        drawn = rng.random()
        if drawn < 0.45:
            given[key] = traps.set(rng.choice(HOSTILE_YAML))
        elif drawn < 0.7 and default is not None:
            given[key] = list(default) if isinstance(default, tuple) else default
    if room == "workloads" and rng.random() < 0.6:
        given["lengths"] = rng.choice(([64], [128], [256], [1], [16777216], [10**9], [10**12], [64, 10**7]))
    book = _smallest()
    stage = book["stages"][0]
    if room == "workloads":
        book["workload"] = {name: given}
    elif room == "hooks":
        stage["conditions"]["changed"] = {"role": "treatment", "intervention": {name: given}}
    else:
        stage["analyses" if room == "analyses" else "capture"] = [{name: given} if given else name]
    return traps.written(_copied(book), rng)


def _sizes(rng: random.Random) -> bytes:
    """Ask for very many: samples, lengths, depths, draws, conditions, stages, text."""
    many = rng.choice((10**5, 10**6, 10**9, 10**12, 10**17))
    book = _smallest()
    match rng.randrange(8):
        case 0:
            book["workload"]["needle"] = {"lengths": [64], "samples": many}
        case 1:
            book["workload"]["needle"] = {"lengths": [many]}
        case 2:
            book["workload"]["needle"] = {"lengths": [64], "depths": [i / 6_000 for i in range(6_000)], "samples": 999}
        case 3:
            book["workload"]["needle"] = {"lengths": [64 + i for i in range(9_000)], "samples": many}
        case 4:
            book["workload"] = {"passkey": {"lengths": [64], "samples": many}}
        case 5:
            matched = {"role": "control", "intervention": {"matched_to": "baseline", "draws": many}}
            book["stages"][0]["conditions"] |= {f"c{i}": matched for i in range(rng.choice((1, 50, 400)))}
        case 6:
            book["stages"] = [{**book["stages"][0], "name": f"s{i}"} for i in range(rng.choice((100, 700)))]
        case _:
            length = rng.choice((10**4, 6 * 10**4, 10**5, 10**7))
            return yaml.safe_dump(book | {"question": "TRAP"}).replace("TRAP", "a" * length).encode()
    return yaml.safe_dump(_copied(book), sort_keys=False, width=10**6).encode()


def _doubled(letter: int) -> bytes:
    return b"%c: &%c [*%c, *%c]\n" % (letter + 1, letter + 1, letter, letter)


def _yaml(rng: random.Random) -> bytes:
    """Lay YAML's own traps: aliases that grow or lead back, depth, tags, directives, documents, other encodings."""
    depth = rng.choice((30, 31, 32, 33, 40, 400, 20_000))
    seed = rng.choice(shipped())
    return rng.choice(
        (
            lambda: (
                b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 121))
            ),
            lambda: b"&a {name: *a}\n" + seed,
            lambda: seed + b"extra: " + b"[" * depth + b"]" * rng.choice((depth, 0)) + b"\n",
            lambda: seed + b"extra: " + b"{a: " * depth + b"}" * depth + b"\n",
            lambda: b"- " * depth + b"a\n",
            lambda: b"? " * depth + b"a\n",
            lambda: b"%YAML 1.1\n---\n" + seed,
            lambda: b"%TAG ! tag:yaml.org,2002:python/\n---\n" + seed,
            lambda: seed + b"---\n" + seed,
            lambda: seed + b"...\n" + seed,
            lambda: seed.decode().encode(
                rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037")), "replace"
            ),
            lambda: b"x: 1\n" * rng.choice((2, 15_000)),
            lambda: b"".join(b"k%d: 1\n" % i for i in range(rng.choice((9_000, 6_000)))),
            lambda: seed + b"stages: *x\n",
            lambda: seed.replace(
                b":", b": !!" + rng.choice((b"str", b"int", b"python/name:os.system", b"map", b"")), 1
            ),
            lambda: seed + b"<<: {model: needle}\n",
            lambda: b"\n" * 60_000 + seed[:3_000],
            lambda: b" " * rng.choice((10, 60_000)) + seed[:3_000],
            lambda: b"a: " + b'"' + b"\\x41" * 15_000 + b'"\n',
            lambda: b"[" + b"," * 60_000,
            lambda: b"a: >\n" + b" x\n" * 20_000,
            lambda: b"!" * 60_000,
            lambda: b"a:" * 30_000,
            lambda: b"'" + b"\n" * 60_000,
            lambda: b"#" * 60_000 + b"\n" + seed[:3_000],
            lambda: rng.randbytes(rng.choice((1, 100, 3_000))),
            lambda: b"",
            lambda: b"\xef\xbb\xbf",
        )
    )()


KINDS: dict[str, tuple[float, Callable[[random.Random], bytes]]] = {
    "bytes": (0.3, _bytes),
    "values": (0.25, _values),
    "keys": (0.15, _keys),
    "member": (0.22, _member),
    "sizes": (0.04, _sizes),
    "yaml": (0.04, _yaml),
}
"""How often each kind of mutation is drawn, and what makes it."""


def casebook(seed: int) -> tuple[str, bytes]:
    """Return the `seed`-th fuzzed casebook and which kind of mutation made it."""
    rng = random.Random(f"casebook {seed}")
    (kind,) = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])
    return kind, KINDS[kind][1](rng)
