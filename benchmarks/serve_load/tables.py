"""What is printed."""

from __future__ import annotations

import statistics
from typing import Any


def show_loads(pairs: dict[str, dict[str, Any]]) -> None:
    """Medians over the turns, and of the ratios and differences within a turn."""
    print(f"\n{'':23} {'load':>14} {'req/s':>6} {'tok/s':>6} {'ratio':>11} {'TTFT p50':>8} {'p95':>5} {'p99':>5}"
          f" {'+TTFT':>6} {'ITL':>5} {'gap p95':>7} {'total':>6} {'tok/event':>9} client others")  # fmt: skip
    for variant, found in pairs.items():
        for load, turns in found["loads"].items():
            for who in ("bare", "castor"):

                def of(*keys: str, who: str = who, turns: list[dict[str, Any]] = turns) -> float:
                    return statistics.median(_at(turn[who], keys) for turn in turns)

                ratios = [turn["castor"]["tokens_per_s"] / turn["bare"]["tokens_per_s"] for turn in turns]
                later = [turn["castor"]["ttft_ms"]["p50"] - turn["bare"]["ttft_ms"]["p50"] for turn in turns]
                ratio = (
                    f"{statistics.median(ratios):.2f} {min(ratios):.2f}-{max(ratios):.2f}" if who == "castor" else ""
                )
                plus = f"{statistics.median(later):+.0f}" if who == "castor" else ""
                print(f"{variant if who == 'castor' else '  bare beside it':23} {load:>14} {of('requests_per_s'):6.2f} "
                      f"{of('tokens_per_s'):6.0f} {ratio:>14} {of('ttft_ms', 'p50'):8.0f} {of('ttft_ms', 'p95'):5.0f} "
                      f"{of('ttft_ms', 'p99'):5.0f} {plus:>6} {of('inter_token_ms', 'p50'):5.1f} "
                      f"{of('gap_ms', 'p95'):7.0f} {of('total_ms', 'p50'):6.0f} {of('tokens_per_event'):9.2f} "
                      f"{of('client_cores'):6.2f} {of('other_cores'):6.2f}")  # fmt: skip


def _at(value: Any, keys: tuple[str, ...]) -> float:
    for key in keys:
        value = value[key]
    return float(value)


def show_path(pairs: dict[str, dict[str, Any]]) -> None:
    """Where a first token waits; and what a token costs in each process."""
    print("\nms, medians of the turns: of a request alone, and until the first text at the first load")
    for variant, found in pairs.items():
        paths = {
            who: {key: statistics.median(turn[who][key] for turn in found["path"]) for key in found["path"][0][who]}
            for who in ("bare", "castor")
        }
        first = next(iter(found["loads"].values()))
        for who, path in paths.items():
            line = f"{variant if who == 'castor' else '  bare beside it':23} first app {path['health_ms']:5.1f}   "
            line += f"refused by vLLM's app {path['refused_ms']:5.1f}   first text "
            line += f"{statistics.median(turn[who]['ttft_ms']['p50'] for turn in first):5.1f}"
            if who == "castor":
                inside = statistics.median(turn[who]["gateway_first_ms"] for turn in first)
                hop = (
                    path["refused_ms"] - path["health_ms"] - (paths["bare"]["refused_ms"] - paths["bare"]["health_ms"])
                )
                line += f", in the gateway (mean) {inside:5.1f}   gateway's work and call of the policy {hop:5.1f}"
            print(line)
    print("\nCPU ms per token, by process: median of the turns")
    for variant, found in pairs.items():
        for load, turns in found["loads"].items():
            for who in ("bare", "castor"):
                spent = [turn[who]["cpu_ms_per_token"] for turn in turns]
                costs = {role: statistics.median(each.get(role, 0.0) for each in spent) for role in spent[0]}
                text = "  ".join(f"{role} {ms:.2f}" for role, ms in sorted(costs.items(), key=lambda item: -item[1]))
                name = variant if who == "castor" else "  bare beside it"
                print(f"{name:23} {load:>14}  {sum(costs.values()):6.2f} = {text}")


def show_guard(prices: list[dict[str, Any]]) -> None:
    """Each case, and its ratio to guard off beside it."""
    print(f"\n{'guard':11} {'window':>6} {'tok/s':>6} {'ratio':>6} {'first p50':>9} {'p95':>6} {'+first':>7} "
          f"{'total p50':>9} {'judge ms':>8} {'judgements':>10}  ({prices[0]['load']}, nothing unsafe)")  # fmt: skip
    for each in prices:
        off = each["off"]
        print(f"{each['mode']:11} {each['window']:>6} {each['tokens_per_s']:6.0f} "
              f"{each['requests_per_s'] / off['requests_per_s']:6.2f} {each['ttft_ms']['p50']:9.0f} "
              f"{each['ttft_ms']['p95']:6.0f} {each['ttft_ms']['p50'] - off['ttft_ms']['p50']:+7.0f} "
              f"{each['total_ms']['p50']:9.0f} {each['judge_ms']:8.0f} "
              f"{each['judgements_per_request']:10.1f}")  # fmt: skip
