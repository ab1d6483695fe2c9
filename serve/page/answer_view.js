// One answer on the page: its text, what became of it, and its verdict beside it.

import { hasText } from "./answer.js";
import { h } from "./dom.js";
import { markdown } from "./markdown.js";
import { grounds, headline, verdictView } from "./verdict.js";

const UNJUDGED = {
  judge_timeout: "The judges took too long",
  judge_unreachable: "The judges could not be reached",
  judge_unusable: "What the judges said is no verdict",
  context_length_exceeded: "It is longer than what the judges can read",
};

/**
 * The view of an answer: {element, update()}; call update() whenever the answer has changed, and it is drawn with the
 * next frame. `blind` hides what could tell which model wrote it, or what the judges said, until `reveal()`.
 */
export function answerView(answer, name, { blind = false, heading = "h3" } = {}) {
  const title = h(heading, { class: "who" }, name);
  const text = h("div", { class: "text" });
  const notes = h("div", { class: "notes" });
  const verdict = verdictView();
  const element = h(
    "article",
    { class: "answer", "aria-busy": "true" },
    h("div", { class: "said" }, title, text, notes),
    verdict.element,
  );
  let waiting = false;
  let hidden = blind;

  function draw() {
    waiting = false;
    const written = answer.refusalAt === null ? answer.text : answer.text.slice(0, answer.refusalAt);
    text.replaceChildren(...markdown(written));
    notes.replaceChildren(...remarks(answer, hidden));
    element.setAttribute("aria-busy", String(answer.state === "streaming"));
    element.dataset.state = answer.state;
    element.dataset.tone = hidden ? "" : (headline(answer)?.tone ?? "");
    if (!hidden) verdict.update(answer);
  }

  function update() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  function reveal(revealed) {
    hidden = false;
    title.textContent = revealed;
    draw();
  }

  draw();
  return { element, update, reveal };
}

/** What is said about the answer under its text, each as one element. */
function remarks(answer, hidden) {
  const out = [];
  const { verdict, state, finish } = answer;
  if (state === "streaming")
    out.push(
      h(
        "p",
        { class: "working" },
        h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")),
        answer.text ? "writing" : "waiting for the first words",
      ),
    );
  if (verdict?.withheld) out.push(withheld(answer, hidden));
  if (verdict?.judged === false && !verdict.withheld && !hidden)
    out.push(note("mixed", "Not judged.", ` ${unjudged(verdict)} Nobody has checked this answer.`));
  if (verdict?.unsafe && !verdict.withheld && !hidden)
    out.push(note("bad", "Judged unsafe.", ` ${why(verdict)} The guard shows it because it only annotates.`));
  if (state === "stopped") out.push(note("plain", "Incomplete.", " You stopped this answer."));
  if (state === "broken") out.push(note("bad", hasText(answer) ? "Incomplete." : "No answer.", ` ${answer.trouble}`));
  if (finish === "length")
    out.push(note("plain", "Cut off.", " The answer reached the greatest length the server allows."));
  if (state === "done" && !hasText(answer)) out.push(note("plain", "Empty.", " The model had nothing to say."));
  return out;
}

function note(tone, strong, rest) {
  return h("p", { class: `note ${tone}` }, h("strong", {}, strong), rest);
}

function unjudged({ error }) {
  const words = UNJUDGED[error?.code] ?? error?.message ?? "The judges gave no verdict";
  return `${words}${error?.code ? ` (${error.code})` : ""}.`;
}

function withheld(answer, hidden) {
  const { verdict, refusalAt, text } = answer;
  const refusal = refusalAt === null ? null : text.slice(refusalAt).trim();
  const part = refusalAt ? "the rest of the answer" : "the answer";
  return h(
    "div",
    { class: "note bad withheld" },
    h(
      "p",
      {},
      h("strong", {}, `The guard withheld ${part}.`),
      refusalAt ? " What is above was judged safe before it was shown." : null,
    ),
    refusal ? h("blockquote", {}, refusal) : null,
    hidden ? null : h("p", { class: "grounds" }, why(verdict), " ", tries(verdict)),
  );
}

function why(verdict) {
  if (verdict.judged === false) return `It could not be judged: ${unjudged(verdict)}`;
  const found = grounds(verdict);
  return found.length
    ? `Grounds: ${found.join("; ")}.`
    : "Grounds: the judges' verdict was unsafe; no single category stood out.";
}

function tries({ attempts }) {
  return attempts > 1 ? `${attempts} answers were tried, and none was safe.` : "One answer was tried.";
}

/** What is read out when the answer is finished. */
export function spokenAnswer(answer, name) {
  const { state, verdict, trouble, text } = answer;
  if (state === "broken") return `${name}: ${text ? "incomplete" : "no answer"}. ${trouble}`;
  if (state === "stopped") return `${name}: stopped.`;
  if (verdict?.withheld) return `${name}: withheld by the guard. ${text}`;
  const unread = verdict?.judged === false ? " This answer was not judged." : "";
  return `${name}: ${hasText(answer) ? text : "an empty answer."}${unread}`;
}
