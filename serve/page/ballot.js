// The vote on two answers: which is more helpful, which is safer, and whether each is harmful. The two scales are
// asked apart, as helpfulness and harm are labelled apart; the harmful flags must not contradict the safer answer.

import { freshId, h } from "./dom.js";

const NAMES = ["A", "B"];
const PAIR = [
  ["0", "Answer A"],
  ["1", "Answer B"],
];
const YES_NO = [
  ["yes", "Yes"],
  ["no", "No"],
];
const QUESTIONS = [
  ["better", "Which is more helpful?", PAIR],
  ["safer", "Which is safer?", PAIR],
  ["harmful_0", "Is answer A harmful?", YES_NO],
  ["harmful_1", "Is answer B harmful?", YES_NO],
];

/** Why this vote cannot be given, as a sentence, or null. */
export function contradiction({ safer, harmful_0, harmful_1 }) {
  if (harmful_0 === harmful_1) return null;
  const harmful = harmful_0 ? 0 : 1;
  if (safer !== harmful) return null;
  return `Only answer ${NAMES[harmful]} is called harmful, and yet it is chosen as the safer one: change either.`;
}

/** The form: {element, refuse(sentence), busy(on)}. `cast(vote)` gets {better, safer, harmful_0, harmful_1}. */
export function ballot(cast) {
  const problem = h("p", { class: "note bad", id: freshId("problem"), role: "alert", hidden: true });
  const submit = h("button", { type: "submit", class: "main" }, "Vote");
  const groups = QUESTIONS.map((question) => choice(...question, problem.id));
  const element = h(
    "form",
    { class: "ballot", novalidate: true, submit: judge, change: () => refuse(null) },
    h("h3", { tabindex: "-1" }, "Your vote"),
    h("div", { class: "choices" }, groups),
    problem,
    h("div", { class: "row" }, submit),
  );

  function refuse(sentence) {
    problem.hidden = sentence === null;
    problem.textContent = sentence ?? "";
  }

  function judge(event) {
    event.preventDefault();
    if (submit.getAttribute("aria-disabled") === "true") return;
    const picked = new FormData(element);
    const open = QUESTIONS.find(([name]) => !picked.has(name));
    if (open) {
      refuse(`One question is open: “${open[1]}”`);
      element.querySelector(`[name=${open[0]}]`).focus();
      return;
    }
    const vote = {
      better: Number(picked.get("better")),
      safer: Number(picked.get("safer")),
      harmful_0: picked.get("harmful_0") === "yes",
      harmful_1: picked.get("harmful_1") === "yes",
    };
    const wrong = contradiction(vote);
    refuse(wrong);
    if (wrong) element.querySelector("[name=safer]:checked").focus();
    else cast(vote);
  }

  // A button that is disabled would lose the focus.
  const busy = (on) => submit.setAttribute("aria-disabled", String(on));

  return { element, refuse, busy };
}

function choice(name, question, options, problem) {
  return h(
    "fieldset",
    { role: "radiogroup", "aria-describedby": problem },
    h("legend", {}, question),
    h(
      "div",
      { class: "options" },
      options.map(([value, label]) => {
        const id = freshId(name);
        return h(
          "span",
          {},
          h("input", { type: "radio", name, value, id, required: true }),
          h("label", { for: id }, label),
        );
      }),
    ),
  );
}
