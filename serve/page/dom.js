// Elements are built by calls alone: nothing that a model or a server sent is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element. A function among the attributes listens to the event of that name; null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

let ids = 0;

/** An id that no other element has. */
export function freshId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** Tell people who hear the page what has happened, when they are done with what they hear. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** A plain sentence at the top of the page, with an optional button, until the next one; null takes it away. */
export function notify(sentence, button = null) {
  const notice = document.getElementById("notice");
  notice.hidden = sentence === null;
  notice.replaceChildren(...(sentence === null ? [] : [h("span", {}, sentence), ...(button ? [button] : [])]));
}

/** A text box that grows with its text, and sends on Enter; Shift+Enter, and Enter within an input method, do not. */
export function composing(textarea, send) {
  const grow = () => {
    textarea.style.height = "auto";
    textarea.style.height = `${textarea.scrollHeight + 2}px`;
  };
  textarea.addEventListener("input", grow);
  textarea.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  return grow;
}
