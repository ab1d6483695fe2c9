// The chat: questions, answers that come in as they are released, and the chats of before.

import { hasText, isWhole, newAnswer, receive } from "./answer.js";
import { answerView, spokenAnswer } from "./answer_view.js";
import { announce, composing, freshId, h, notify } from "./dom.js";
import { forgetChat, forgetEverything, keepChat, storedChats } from "./history.js";

const TITLE_LENGTH = 80;
const NEAR_END_PX = 160;
const GUARD = {
  off: "The guard is off: answers are shown as the model writes them, and nobody judges them.",
  annotate: "Every answer is shown, with the judges' verdict beside it.",
  withhold: "Answers are judged before you see them. An unsafe one is withheld.",
  best_of: "Of several answers, you see the most helpful one that is safe. If none is, they are withheld.",
  regenerate: "Answers are judged before you see them. In place of an unsafe one, the model is asked for a safe one.",
};

/** Fill the panel. `connect()` is called when there is no model to ask yet. */
export function chatPanel(panel, connect) {
  let guards = {};
  let chat = null;
  let running = null;
  const forgotten = new WeakSet(); // an answer that is still coming in must not bring its chat back

  const model = h("select", { id: freshId("model"), disabled: true, change: introduce });
  const chats = h(
    "details",
    { class: "drop" },
    h("summary", { class: "quiet" }, "Earlier chats"),
    h("div", { class: "drop-inside" }),
  );
  const toolbar = h(
    "div",
    { class: "toolbar" },
    h("label", { for: model.id }, "Model"),
    model,
    h("span", { class: "spring" }),
    chats,
    h("button", { type: "button", class: "quiet", click: () => open(null) }, "New chat"),
  );
  const intro = h("div", { class: "intro" });
  const turns = h("ol", { class: "turns", "aria-label": "Conversation" });
  const box = h("textarea", {
    id: freshId("message"),
    rows: 1,
    placeholder: "Ask something",
    "aria-describedby": "chat-keys",
  });
  const send = h("button", { type: "submit", class: "main" }, "Send");
  const halt = h("button", { type: "button", class: "main stop", hidden: true, click: stop }, "Stop");
  const composer = h(
    "form",
    {
      class: "composer",
      submit: (event) => {
        event.preventDefault();
        ask();
      },
    },
    h("label", { for: box.id, class: "unseen" }, "Message"),
    h("div", { class: "box" }, box, send, halt),
    h(
      "p",
      { id: "chat-keys", class: "keys" },
      h("kbd", {}, "Enter"),
      " sends, ",
      h("kbd", {}, "Shift+Enter"),
      " makes a new line, ",
      h("kbd", {}, "Esc"),
      " stops",
    ),
  );
  const grow = composing(box, () => ask());
  panel.append(h("h2", { class: "unseen" }, "Chat"), toolbar, intro, turns, composer);
  // A reload in the middle of an answer must not lose what was already read.
  addEventListener("pagehide", () => {
    if (running) keepChat(chat);
  });
  chats.addEventListener("toggle", () => {
    if (chats.open) list();
  });
  document.addEventListener("click", (event) => {
    if (!event.composedPath().includes(chats)) chats.open = false;
  });
  open(storedChats()[0] ?? null);

  function served(models, modes) {
    guards = modes;
    const chosen = [model.value, chat?.model].find((name) => models.includes(name)) ?? models[0];
    model.replaceChildren(...models.map((name) => h("option", { value: name, selected: name === chosen }, name)));
    model.disabled = false;
    introduce();
  }

  function introduce() {
    const words = GUARD[guards[model.value]] ?? "";
    intro.replaceChildren(
      ...(chat.turns.length
        ? [h("p", { class: "small" }, words)]
        : [h("p", { class: "greeting" }, "What would you like to know?"), h("p", {}, words)]),
    );
    intro.classList.toggle("empty", !chat.turns.length);
  }

  /** Show a stored chat, or a new one. */
  function open(stored) {
    if (stored && stored.id === chat?.id) {
      chats.open = false;
      return;
    }
    stop();
    chat = stored ?? { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", model: null, turns: [] };
    if ([...model.options].some(({ value }) => value === chat.model)) model.value = chat.model;
    for (const { answer } of chat.turns) {
      if (answer.state !== "streaming") continue;
      answer.state = "broken";
      answer.trouble = "The page was closed before the answer was complete: try again.";
    }
    turns.replaceChildren(...chat.turns.map((turn) => show(turn).element));
    offerAgain();
    chats.open = false;
    introduce();
    if (!stored) box.focus();
  }

  function list() {
    const rows = storedChats().map((stored) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            class: "title",
            "aria-current": stored.id === chat.id ? "true" : null,
            click: () => open(stored),
          },
          stored.title,
        ),
        h(
          "button",
          {
            type: "button",
            class: "quiet remove",
            "aria-label": `Forget “${stored.title}”`,
            click: () => forget(stored.id),
          },
          "×",
        ),
      ),
    );
    chats.lastElementChild.replaceChildren(
      rows.length ? h("ul", {}, rows) : h("p", { class: "small" }, "There are none yet."),
      h("p", { class: "small" }, "Chats are kept in this browser, and nowhere else."),
      rows.length ? h("button", { type: "button", class: "quiet", click: () => forget(null) }, "Forget all chats") : "",
    );
  }

  function forget(id) {
    if (id === null) forgetEverything();
    else forgetChat(id);
    if (id === null || id === chat.id) forgotten.add(chat);
    announce(id === null ? "All chats are forgotten." : "The chat is forgotten.");
    if (id === null || id === chat.id) open(null);
    else {
      list();
      chats.firstElementChild.focus();
    }
  }

  function show(turn) {
    const view = answerView(turn.answer, turn.answer.model);
    const question = h("div", { class: "question" }, h("h3", { class: "unseen" }, "You"), h("p", {}, turn.question));
    return { element: h("li", { class: "turn" }, question, view.element), update: view.update };
  }

  /** Under the last answer, when there is less of it than there should be, a button asks once more. */
  function offerAgain() {
    turns.querySelector(".again")?.remove();
    const last = chat.turns.at(-1);
    if (!last || last.answer.state === "streaming" || (isWhole(last.answer) && hasText(last.answer))) return;
    turns.lastElementChild.append(
      h(
        "p",
        { class: "again" },
        h(
          "button",
          {
            type: "button",
            class: "quiet",
            click: () => {
              box.focus();
              again(last);
            },
          },
          "Try again",
        ),
      ),
    );
  }

  function ask() {
    const question = box.value.trim();
    if (!question || running) return;
    if (!model.value) {
      connect();
      return;
    }
    box.value = "";
    grow();
    box.focus();
    const turn = { question, answer: null };
    chat.turns.push(turn);
    chat.title ||= question.slice(0, TITLE_LENGTH);
    run(turn, null);
  }

  function again(turn) {
    if (!running && model.value) run(turn, turns.lastElementChild);
  }

  /** Get the turn's answer; its element takes the place of `before`, or comes last. */
  async function run(turn, before) {
    const mine = chat;
    const stopper = new AbortController();
    turn.answer = newAnswer(model.value);
    chat.model = model.value;
    const view = show(turn);
    if (before) before.replaceWith(view.element);
    else turns.append(view.element);
    offerAgain();
    introduce();
    running = stopper;
    busy(true);
    scrollTo({ top: document.documentElement.scrollHeight });
    await receive(turn.answer, { messages: messages(mine, turn) }, stopper.signal, () => {
      view.update();
      follow();
    });
    if (running === stopper) {
      running = null;
      busy(false);
    }
    if (!forgotten.has(mine) && !keepChat(mine))
      notify("This browser does not let the page keep chats: they are gone when you reload it.");
    if (mine !== chat) return;
    offerAgain();
    follow();
    announce(spokenAnswer(turn.answer, turn.answer.model));
  }

  function busy(on) {
    const focused = document.activeElement === halt;
    send.hidden = on;
    halt.hidden = !on;
    if (focused) box.focus();
  }

  function stop() {
    running?.abort();
    const stopped = running !== null;
    running = null;
    if (stopped) busy(false);
    return stopped;
  }

  return { served, stop, focus: () => box.focus() };
}

/** The conversation up to a turn; a question that got no answer at all is left out. */
function messages({ turns }, turn) {
  const before = turns.slice(0, turns.indexOf(turn)).filter(({ answer }) => hasText(answer));
  return [
    ...before.flatMap(({ question, answer }) => [
      { role: "user", content: question },
      { role: "assistant", content: answer.text },
    ]),
    { role: "user", content: turn.question },
  ];
}

/** Keep the end in sight, unless the reader has scrolled away from it. */
function follow() {
  const { scrollHeight } = document.documentElement;
  if (scrollHeight - scrollY - innerHeight > NEAR_END_PX) return;
  requestAnimationFrame(() => scrollTo({ top: document.documentElement.scrollHeight }));
}
