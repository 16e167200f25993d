"""Who is faster: our best row against the best peer's, within a group of rows that compute the same in the same precision."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Verdict", "judge", "sentences"]

Outcome = Literal["faster", "level", "slower"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Our best row beside the best peer's in one column."""

    group: str
    column: str
    ours: str
    peer: str
    ratio: float
    """Our time divided by the peer's in the same round, the median of the rounds; below 1 ours is faster."""
    outcome: Outcome
    """``level`` if the ratio is below 1 in one round and above 1 in another."""


def judge(result: Mapping[str, Any]) -> list[Verdict]:
    """Return a verdict for each group and column in which both we and a peer were measured; one round decides nothing."""
    if result["settings"].get("rounds", 0) < 2:
        return []
    measured = [row for row in result["rows"] if "not_measured" not in row]
    groups = dict.fromkeys(row["group"] for row in measured)
    lower = result["table"]["better"] == "lower"
    return [
        verdict
        for group in groups
        for column in result["table"].get("judged") or result["table"]["columns"]
        if (verdict := _verdict([row for row in measured if row["group"] == group], group, column, lower=lower))
    ]


def _verdict(rows: Sequence[Row], group: str, column: str, *, lower: bool) -> Verdict | None:
    best = {}
    for kind in ("ours", "peer"):
        able = [row for row in rows if row["kind"] == kind and column in row["figures"]]
        if not able:
            return None
        best[kind] = (min if lower else max)(able, key=lambda row: row["figures"][column]["median"])
    mine, theirs = (best[kind]["figures"][column] for kind in ("ours", "peer"))
    low, middle, high = _ratios(mine, theirs) if lower else _ratios(theirs, mine)
    outcome: Outcome = "faster" if high < 1 else "slower" if low > 1 else "level"
    return Verdict(group, column, best["ours"]["name"], best["peer"]["name"], middle, outcome)


def _ratios(figure: Row, other: Row) -> tuple[float, float, float]:
    """Return the smallest, the median and the largest ratio of the rounds; of the ranges, where rounds are not recorded."""
    if "rounds" in figure and "rounds" in other:
        ratios = [a / b for a, b in zip(figure["rounds"], other["rounds"], strict=False)]
        return min(ratios), statistics.median(ratios), max(ratios)
    (low, high), (least, most) = (item.get("range", [item["median"]] * 2) for item in (figure, other))
    return low / most, figure["median"] / other["median"], high / least


def sentences(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Say in one sentence for each group and outcome where we stand, losses first."""
    for outcome in ("slower", "level", "faster"):
        for group in dict.fromkeys(item.group for item in verdicts):
            same = [item for item in verdicts if item.group == group and item.outcome == outcome]
            if same:
                yield _sentence(group, outcome, same)


def _sentence(group: str, outcome: str, same: Sequence[Verdict]) -> str:
    where = ", ".join(f"{item.column}: {item.ratio:.2f} × {item.peer}" for item in same)
    what = f"{group}: " if group else ""
    if outcome == "slower":
        return f"**{what}a peer is faster.** Our time against the fastest peer's: {where}."
    if outcome == "level":
        return f"{what}level with the fastest peer, within the range of the rounds ({where})."
    return f"{what}ours is fastest ({where})."
