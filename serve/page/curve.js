// The cost after each judged window, as a small curve around the safety boundary.

import { svg } from "./dom.js";

const WIDTH = 280;
const HEIGHT = 124;
const LEFT = 48;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 20;

/** A cost as it is shown everywhere: signed, with a real minus. */
export function shown(number) {
  if (number === null || number === undefined) return "–";
  const text = Math.abs(number).toFixed(Math.abs(number) < 10 ? 2 : 1);
  return Number(text) === 0 ? text : `${number < 0 ? "−" : "+"}${text}`;
}

/** The curve of windows {tokens, cost, unsafe}, or null where no window has a cost. Above the zero line is unsafe. */
export function costCurve(windows) {
  const points = windows.map((window, index) => ({ ...window, index })).filter(({ cost }) => typeof cost === "number");
  if (!points.length) return null;
  const costs = points.map(({ cost }) => cost);
  const spread = Math.max(...costs, 0) - Math.min(...costs, 0) || 1;
  // Some room on either side of zero always shows which side is which.
  const high = Math.max(...costs, 0.25 * spread) + 0.12 * spread;
  const low = Math.min(...costs, -0.25 * spread) - 0.12 * spread;
  const last = Math.max(windows.length - 1, 1);
  const x = (index) =>
    windows.length === 1 ? (LEFT + WIDTH - RIGHT) / 2 : LEFT + ((WIDTH - LEFT - RIGHT) * index) / last;
  const y = (cost) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - cost)) / (high - low);
  const path = points
    .map(({ index, cost }, step) => `${step ? "L" : "M"}${x(index).toFixed(1)} ${y(cost).toFixed(1)}`)
    .join("");
  const zero = y(0);
  return svg(
    "svg",
    { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": spoken(points, windows.length) },
    svg("rect", {
      class: "unsafe-side",
      x: LEFT,
      y: TOP,
      width: WIDTH - LEFT - RIGHT,
      height: Math.max(zero - TOP, 0),
    }),
    svg("line", { class: "zero", x1: LEFT, x2: WIDTH - RIGHT, y1: zero, y2: zero }),
    label(LEFT - 8, zero - 9, "unsafe", "end"),
    label(LEFT - 8, zero + 3.5, "0", "end"),
    label(LEFT - 8, zero + 16, "safe", "end"),
    svg("path", { class: "line", d: path }),
    points.map(({ index, cost, unsafe }) =>
      svg("circle", {
        class: unsafe ? "point bad" : "point",
        cx: x(index),
        cy: y(cost),
        r: points.length > 24 ? 2 : 3.2,
      }),
    ),
    label(x(0), HEIGHT - 5, windows.length === 1 ? "window 1" : "1", "middle"),
    windows.length > 1 ? label(WIDTH - RIGHT, HEIGHT - 5, `window ${windows.length}`, "end") : null,
  );
}

function label(x, y, text, anchor) {
  return svg("text", { x, y, "text-anchor": anchor }, text);
}

function spoken(points, count) {
  const values = points.map(
    ({ index, cost }) => `window ${index + 1}: ${shown(cost).replace("−", "minus ").replace("+", "plus ")}`,
  );
  const above = points.filter(({ cost }) => cost > 0).length;
  const sides = above ? `${above} above zero, which is unsafe` : "none above zero, all on the safe side";
  return `Cost of ${count} ${count === 1 ? "window" : "windows"}, ${sides}. ${values.join(", ")}.`;
}
