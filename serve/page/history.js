// Chats that this browser keeps, the newest first. No key, and nothing from other pages, is among them.

const PLACE = "castor.chats";
const MOST = 50;

const isTurn = ({ question, answer }) =>
  typeof question === "string" && typeof answer.text === "string" && Array.isArray(answer.windows);
const isChat = ({ id, turns }) => typeof id === "string" && turns.length > 0 && turns.every(isTurn);

/** The stored chats: {id, title, model, turns: [{question, answer}]}. */
export function storedChats() {
  let text;
  try {
    text = localStorage.getItem(PLACE);
  } catch {
    return []; // storage is switched off: nothing is kept, and saving says so
  }
  try {
    const chats = JSON.parse(text ?? "[]");
    return chats.filter(isChat);
  } catch {
    return []; // not ours, or of another version: it is replaced with the next chat
  }
}

function store(chats) {
  const kept = chats.slice(0, MOST);
  for (;;) {
    try {
      localStorage.setItem(PLACE, JSON.stringify(kept));
      return true;
    } catch {
      if (kept.length <= 1) return false;
      kept.pop(); // the oldest makes room
    }
  }
}

/** Keep this chat as the newest; false when the browser does not let us. */
export function keepChat(chat) {
  return store([chat, ...storedChats().filter(({ id }) => id !== chat.id)]);
}

/** Forget one chat. */
export function forgetChat(id) {
  store(storedChats().filter((chat) => chat.id !== id));
}

/** Forget all of them. */
export function forgetEverything() {
  try {
    localStorage.removeItem(PLACE);
  } catch {
    // Storage is switched off: there is nothing to forget.
  }
}
