// The dialog that asks for the API key. The key goes from the field to memory, and the field is emptied at once.

import { setKey } from "./api.js";

/** What to call when a key is needed: it shows the dialog, and resolves to whether a key was given. */
export function keyDialog() {
  const dialog = document.getElementById("key-dialog");
  const input = document.getElementById("key-input");
  const reason = document.getElementById("key-reason");
  let given = false;

  document.getElementById("key-cancel").addEventListener("click", () => dialog.close());
  document.getElementById("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = input.value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      reason.textContent = "A key has letters, digits and dashes only: copy it once more.";
      input.focus();
      return;
    }
    setKey(key);
    given = true;
    dialog.close();
  });

  return (refused) => {
    given = false;
    reason.textContent = refused
      ? "The server does not accept this key: check it, or enter another one."
      : "This server asks for a key: enter yours.";
    reason.classList.toggle("wrong", refused);
    input.value = "";
    dialog.showModal();
    input.focus();
    return new Promise((resolve) => {
      dialog.addEventListener(
        "close",
        () => {
          input.value = "";
          resolve(given);
        },
        { once: true },
      );
    });
  };
}
