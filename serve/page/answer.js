// One answer as data, which is also how it is stored, and how it comes in.

import { complete } from "./api.js";
import { told } from "./trouble.js";

/** An answer that has not begun. `state` goes from streaming to done, stopped or broken. */
export function newAnswer(model) {
  return {
    model,
    policy: null, // name@version, as the server says
    text: "",
    refusalAt: null, // where in `text` the guard's refusal begins; null: the model wrote all of it
    state: "streaming",
    finish: null,
    windows: [], // {tokens, cost, unsafe} of each judged window
    verdict: null, // the gateway's `castor` object; null where the guard is off, or nothing was said yet
    trouble: null, // one sentence, for broken
  };
}

function take(answer, piece) {
  if (piece.policy !== undefined) {
    answer.policy = piece.policy;
    return;
  }
  // A refusal comes as the last piece, in place of what is withheld; text before it was judged safe, and shown.
  if (piece.verdict?.withheld && piece.text) answer.refusalAt = answer.text.length;
  answer.text += piece.text ?? "";
  if (piece.window) answer.windows.push(piece.window);
  if (piece.finish) answer.finish = piece.finish;
  if (piece.verdict) {
    answer.verdict = piece.verdict;
    answer.windows = piece.verdict.windows ?? answer.windows;
  }
}

/** Fill the answer from the server; `changed()` after each piece. What goes wrong is told in the answer, not thrown. */
export async function receive(answer, request, signal, changed) {
  try {
    for await (const piece of complete({ model: answer.model, ...request }, signal)) {
      take(answer, piece);
      changed();
    }
    answer.state = "done";
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "broken";
    if (!signal.aborted) answer.trouble = told(error);
  }
  changed();
}

/** Whether the answer came in to its end; it may still be empty, as a model can stop at once. */
export function isWhole(answer) {
  return answer.state === "done";
}

/** Whether there is any text in it. */
export function hasText(answer) {
  return answer.text.trim() !== "";
}
