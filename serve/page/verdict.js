// What the judges said about an answer, folded beside it.

import { costCurve, shown } from "./curve.js";
import { h, svg } from "./dom.js";

const SHOWN_CATEGORIES = 5;
const SEVERITIES = ["none", "minor", "moderate", "severe"];

/** A category's key as words: "drug_abuse,weapons" is "drug abuse, weapons". */
export function categoryName(key) {
  return key.replaceAll("_", " ").replace(/,\s*/g, ", ");
}

function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 1) return "< 1 %";
  return value < 100 && value > 99 ? "> 99 %" : `${Math.round(value)} %`;
}

function severity(level) {
  return `${level} of 3, ${SEVERITIES[level] ?? "unknown"}`;
}

/** What an unsafe verdict rests on, as a list of phrases. */
export function grounds({ flagged, categories, severity: level, cost }) {
  const out = (flagged ?? []).map((name) =>
    categories?.[name] === undefined ? categoryName(name) : `${categoryName(name)} (${percent(categories[name])})`,
  );
  if (level) out.push(`severity ${severity(level)}`);
  if (typeof cost === "number" && cost > 0) out.push(`cost ${shown(cost)}, above the safety boundary of 0`);
  return out;
}

/** {word, tone, mark} of the answer's verdict in one word, or null where nobody was asked. */
export function headline({ verdict, windows, state }) {
  if (verdict?.withheld) return { word: "Withheld", tone: "bad", mark: "!" };
  if (verdict?.judged === false) return { word: "Not judged", tone: "mixed", mark: "?" };
  if (verdict?.unsafe) return { word: "Unsafe", tone: "bad", mark: "!" };
  if (verdict) return { word: "Safe", tone: "good", mark: "✓" };
  if (!windows.length) return null;
  return { word: state === "streaming" ? "Judging" : "No final verdict", tone: "plain", mark: "…" };
}

/** The folded verdict: {element, update(answer)}. It is hidden while there is nothing to say. */
export function verdictView() {
  const badge = h("span", { class: "badge" });
  const gist = h("span", { class: "gist" });
  const inside = h("div", { class: "verdict-inside" });
  const element = h(
    "details",
    { class: "verdict", hidden: true },
    h("summary", {}, h("span", { class: "unseen" }, "Verdict: "), badge, gist),
    inside,
  );

  function update(answer) {
    const head = headline(answer);
    element.hidden = head === null;
    if (!head) return;
    badge.className = `badge ${head.tone}`;
    badge.replaceChildren(h("span", { "aria-hidden": "true" }, `${head.mark} `), head.word);
    const cost = answer.verdict?.cost ?? answer.windows.at(-1)?.cost;
    gist.textContent = typeof cost === "number" ? `cost ${shown(cost)}` : "";
    inside.replaceChildren(...body(answer));
  }

  return { element, update };
}

function body({ verdict, windows, policy, model }) {
  const rows = [];
  if (typeof verdict?.severity === "number") rows.push(["Severity", severity(verdict.severity)]);
  if (typeof verdict?.reward === "number") rows.push(["Reward", shown(verdict.reward)]);
  if (typeof verdict?.cost === "number")
    rows.push(["Cost", `${shown(verdict.cost)}, ${verdict.cost > 0 ? "unsafe" : "safe"} side of 0`]);
  if (verdict?.attempts > 1) rows.push(["Answers tried", String(verdict.attempts)]);
  rows.push(["Model", policy ?? model]);
  const withheld = verdict?.withheld
    ? h("p", { class: "small" }, "The numbers are of the answer that was withheld.")
    : null;
  return [
    withheld,
    h(
      "dl",
      {},
      rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
    categoryBars(verdict),
    curve(windows, verdict),
  ].filter(Boolean);
}

function categoryBars(verdict) {
  const highest = Object.entries(verdict?.categories ?? {})
    .sort(([, a], [, b]) => b - a)
    .slice(0, SHOWN_CATEGORIES);
  if (!highest.length) return null;
  const flagged = new Set(verdict.flagged ?? []);
  return h(
    "div",
    { class: "part" },
    h("p", { class: "part-name" }, "Most likely categories"),
    h(
      "ul",
      { class: "categories" },
      highest.map(([name, probability]) =>
        h(
          "li",
          { class: flagged.has(name) ? "flagged" : null },
          h("span", {}, categoryName(name), flagged.has(name) ? h("em", {}, " flagged") : null),
          h("span", { class: "value" }, percent(probability)),
          svg(
            "svg",
            { class: "meter", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
            svg("rect", { class: "track", width: 100, height: 4 }),
            svg("rect", { class: "level", width: Math.max(100 * probability, 0.5), height: 4 }),
          ),
        ),
      ),
    ),
  );
}

function curve(windows, verdict) {
  const drawn = costCurve(windows);
  const unsafe = windows.filter((window) => window.unsafe).length;
  if (!drawn)
    return windows.length
      ? h("p", { class: "small" }, `Windows judged: ${windows.length}, of them unsafe: ${unsafe}.`)
      : null;
  const replaced =
    verdict?.judged && !verdict.withheld && !verdict.unsafe && unsafe
      ? h("p", { class: "small" }, "What is unsafe here was never shown: the model was asked again from there.")
      : null;
  return h("div", { class: "part" }, h("p", { class: "part-name" }, "Cost, window by window"), drawn, replaced);
}
