// The arena: one question, two answers by models whose names are hidden until the vote is stored.

import { vote } from "./api.js";
import { isWhole, newAnswer, receive } from "./answer.js";
import { answerView } from "./answer_view.js";
import { ballot } from "./ballot.js";
import { announce, composing, freshId, h } from "./dom.js";
import { told } from "./trouble.js";

const NAMES = ["Answer A", "Answer B"];

/** Two of the models, in random order; of a single one both answers. */
export function draw(models) {
  const left = [...models];
  const take = () => left.splice(crypto.getRandomValues(new Uint32Array(1))[0] % left.length, 1)[0];
  const first = take();
  return [first, left.length ? take() : first];
}

/** Fill the panel. `connect()` is called when there is no model to ask yet. */
export function arenaPanel(panel, connect) {
  let models = [];
  let votes = true;
  let round = null;
  let running = null;

  const box = h("textarea", {
    id: freshId("prompt"),
    rows: 2,
    placeholder: "Ask both models the same",
    "aria-describedby": "arena-keys",
  });
  const start = h(
    "form",
    {
      class: "composer",
      submit: (event) => {
        event.preventDefault();
        ask();
      },
    },
    h("label", { for: box.id, class: "unseen" }, "Question for both models"),
    h("div", { class: "box" }, box, h("button", { type: "submit", class: "main" }, "Compare")),
    h(
      "p",
      { id: "arena-keys", class: "keys" },
      h("kbd", {}, "Enter"),
      " asks both, ",
      h("kbd", {}, "Esc"),
      " stops, arrow keys choose in the vote",
    ),
  );
  const intro = h("div", { class: "intro empty" }, h("p", { class: "greeting" }, "Two answers, one vote"), h("p"));
  const halt = h("button", { type: "button", class: "main stop", click: stop }, "Stop");
  const stage = h("div", { class: "stage" });
  const below = h("div", { class: "below" });
  const grow = composing(box, () => ask());
  panel.append(h("h2", { class: "unseen" }, "Arena"), intro, start, stage, below);

  function served(names, stored) {
    models = names;
    votes = stored;
    intro.lastElementChild.textContent =
      names.length > 1
        ? "Two models answer the same question. You judge without knowing which is which, then their names are shown."
        : `${names[0]} is the only model here: it answers the same question twice, and you judge the two answers.`;
  }

  function ask() {
    const question = box.value.trim();
    if (!question) return;
    if (models.length) run(question, draw(models));
    else connect();
  }

  async function run(question, drawn) {
    const answers = drawn.map(newAnswer);
    const views = answers.map((answer, index) => answerView(answer, NAMES[index], { blind: true }));
    const stopper = new AbortController();
    round = { question, drawn, answers, views };
    intro.hidden = start.hidden = true;
    stage.replaceChildren(
      h("div", { class: "question" }, h("h3", { class: "unseen" }, "Question"), h("p", {}, question)),
      h(
        "div",
        { class: "pair" },
        views.map(({ element }) => element),
      ),
    );
    below.replaceChildren(h("div", { class: "row center" }, halt));
    halt.focus();
    running = stopper;
    const request = { messages: [{ role: "user", content: question }] };
    // Two answers of one model at the temperature of a sure answer would often be the same.
    if (drawn[0] === drawn[1]) request.temperature = 1;
    await Promise.all(answers.map((answer, index) => receive(answer, request, stopper.signal, views[index].update)));
    running = null;
    const focused = document.activeElement === halt;
    const next = answers.every(isWhole) ? finished() : failed();
    if (focused) next.focus();
  }

  /** Ask for the vote, or for nothing where votes are not kept; returns what gets the focus. */
  function finished() {
    if (!votes) {
      const show = h("button", { type: "button", class: "main", click: () => reveal("") }, "Show the names");
      below.replaceChildren(
        h("p", { class: "note plain" }, "This server does not keep votes."),
        h("div", { class: "row" }, show),
      );
      announce("Both answers are finished. This server does not keep votes.");
      return show;
    }
    const form = ballot(cast);
    below.replaceChildren(form.element);
    announce("Both answers are finished. The vote is below them.");

    async function cast(given) {
      form.busy(true);
      const { question, drawn, answers } = round;
      try {
        await vote({
          prompt: question,
          response_0: answers[0].text,
          response_1: answers[1].text,
          model_0: drawn[0],
          model_1: drawn[1],
          ...given,
        });
      } catch (error) {
        form.refuse(`The vote is not stored. ${told(error)}`);
        form.busy(false);
        return;
      }
      reveal("Your vote is stored. ");
    }

    return form.element.querySelector("h3");
  }

  function failed() {
    const { question, drawn } = round;
    const again = h("button", { type: "button", class: "main", click: () => run(question, drawn) }, "Try again");
    below.replaceChildren(
      h("p", { class: "note plain" }, "A vote needs two whole answers."),
      h(
        "div",
        { class: "row" },
        again,
        h("button", { type: "button", class: "quiet", click: anew }, "Another question"),
      ),
    );
    announce("Not both answers are whole, so there is no vote.");
    return again;
  }

  function reveal(stored) {
    const names = round.answers.map(({ policy, model }) => policy ?? model);
    round.views.forEach((view, index) => view.reveal(`${NAMES[index]}: ${names[index]}`));
    const next = h("button", { type: "button", class: "main", click: anew }, "Next question");
    const words = `${stored}A was ${names[0]}, B was ${names[1]}.`;
    below.replaceChildren(h("p", { class: "note good" }, words), h("div", { class: "row" }, next));
    announce(words);
    next.focus();
  }

  function anew() {
    round = null;
    stage.replaceChildren();
    below.replaceChildren();
    intro.hidden = start.hidden = false;
    box.value = "";
    grow();
    box.focus();
  }

  function stop() {
    running?.abort();
    return running !== null;
  }

  return { served, stop, focus: () => (start.hidden ? halt : box).focus() };
}
