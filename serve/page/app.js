// The entry: what is served, the key, the two panels, and the keys that work everywhere.

import { about, guards, hasKey, obtainKey, onKeyNeeded } from "./api.js";
import { arenaPanel } from "./arena.js";
import { chatPanel } from "./chat.js";
import { h, notify } from "./dom.js";
import { keyDialog } from "./key.js";
import { Trouble, told } from "./trouble.js";

const keyButton = document.getElementById("key-button");
const tabs = [...document.querySelectorAll("[role=tab]")];
const panels = [
  chatPanel(document.getElementById("panel-chat"), connect),
  arenaPanel(document.getElementById("panel-arena"), connect),
];
const [chat, arena] = panels;
let chosen = 0;

onKeyNeeded(async (refused) => {
  keyButton.hidden = false;
  const given = await askForKey(refused);
  keyButton.textContent = hasKey() ? "Change API key" : "API key";
  return given;
});
const askForKey = keyDialog();

async function connect() {
  notify(null);
  try {
    const served = await about();
    keyButton.hidden = !served.keys;
    if (served.keys && !hasKey() && !(await obtainKey(false)))
      throw new Trouble("The server wants an API key: enter one, then try again.");
    const modes = await guards();
    if (!served.models.length) throw new Trouble("The server has no model at the moment: try again in a minute.");
    chat.served(served.models, modes);
    arena.served(served.models, served.votes);
  } catch (error) {
    notify(told(error), h("button", { type: "button", class: "quiet", click: connect }, "Try again"));
  }
}

function choose(index) {
  chosen = index;
  tabs.forEach((tab, at) => {
    tab.setAttribute("aria-selected", String(at === index));
    tab.tabIndex = at === index ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = at !== index;
  });
}

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => choose(index));
  tab.addEventListener("keydown", ({ key }) => {
    const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: tabs.length - 1 }[key];
    if (to === undefined) return;
    choose((to + tabs.length) % tabs.length);
    tabs[chosen].focus();
  });
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (panels[chosen].stop()) return;
  const drop = document.querySelector("details.drop[open]");
  if (!drop) return;
  drop.open = false;
  drop.querySelector("summary").focus();
});

keyButton.addEventListener("click", async () => {
  if (await obtainKey(false)) connect();
});

connect();
chat.focus();
