// The part of Markdown that answers use, as elements whose text is set as text. There are no links, no images and no
// HTML in it: a link is shown as its words and its address, anything else as it was written. Every marker is looked
// for once to the end and then given up, so that the time is linear in the text whatever a model writes.

import { h } from "./dom.js";

const DEEPEST = 4; // of marks within marks, and of lists within lists
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}#{1,6}\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const BLANK = /^\s*$/;
const MARK = /\*+|_+|`+|\[/g;

/** The elements of a text, which may still be growing: what has been opened and not closed is closed at its end. */
export function markdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const out = [];
  let at = 0;
  while (at < lines.length) {
    const fence = FENCE.exec(lines[at]);
    const heading = HEADING.exec(lines[at]);
    if (BLANK.test(lines[at])) {
      at += 1;
    } else if (fence) {
      const [element, next] = codeBlock(lines, at, fence);
      out.push(element);
      at = next;
    } else if (heading) {
      // Bold words, not a heading: what a model writes is no part of the page's outline.
      out.push(h("p", { class: "heading" }, h("strong", {}, inline(heading[1], 1))));
      at += 1;
    } else if (RULE.test(lines[at])) {
      out.push(h("hr"));
      at += 1;
    } else if (isItem(lines[at]) && depth < DEEPEST) {
      const [element, next] = list(lines, at, depth);
      out.push(element);
      at = next;
    } else {
      const begin = at;
      do at += 1;
      while (at < lines.length && !ends(lines[at]) && !(isItem(lines[at]) && depth < DEEPEST));
      out.push(paragraph(lines.slice(begin, at)));
    }
  }
  return out;
}

/** Whether a paragraph ends before this line. */
function ends(line) {
  return [BLANK, FENCE, HEADING, RULE].some((pattern) => pattern.test(line));
}

function isItem(line) {
  return ITEM.test(line) && !RULE.test(line);
}

function paragraph(lines) {
  // A line break stays one, as in what a model that was never taught Markdown writes.
  return h("p", {}, inline(lines.map((line) => line.trim()).join("\n"), 0));
}

function codeBlock(lines, begin, [, marker, about]) {
  const [language] = about.trim().split(/\s/);
  let end = begin + 1;
  while (
    end < lines.length &&
    !(lines[end].trim().startsWith(marker) && lines[end].trim().replaceAll(marker[0], "") === "")
  )
    end += 1;
  const label = language ? `Code, ${language}` : "Code";
  const code = h("code", {}, lines.slice(begin + 1, end).join("\n"));
  return [h("pre", { tabindex: "0", role: "region", "aria-label": label }, code), end + 1];
}

function list(lines, begin, depth) {
  const [, indent, marker] = ITEM.exec(lines[begin]);
  const ordered = /\d/.test(marker);
  const items = [];
  let at = begin;
  while (at < lines.length) {
    const item = isItem(lines[at]) ? ITEM.exec(lines[at]) : null;
    const own = item && item[1].length <= indent.length && /\d/.test(item[2]) === ordered;
    if (own) items.push([item[3]]);
    // What belongs to an item is indented more than its marker, a blank line or the next line of a paragraph.
    else if (BLANK.test(lines[at]) && at + 1 < lines.length && (deeper(lines[at + 1], indent) || isItem(lines[at + 1])))
      items.at(-1).push("");
    else if (deeper(lines[at], indent)) items.at(-1).push(lines[at].slice(indent.length + 2));
    else if (item || ends(lines[at]) || BLANK.test(lines[at - 1])) break;
    else items.at(-1).push(lines[at]);
    at += 1;
  }
  const start = ordered ? Number.parseInt(marker, 10) : 1;
  const element = h(ordered ? "ol" : "ul", { start: start === 1 ? null : start });
  for (const item of items) {
    const inside = blocks(item, depth + 1);
    // An item that is one paragraph is shown without the distances of one.
    const single = inside[0]?.tagName === "P" ? [...inside[0].childNodes] : [];
    element.append(h("li", {}, single.length ? [...single, ...inside.slice(1)] : inside));
  }
  return [element, at];
}

function deeper(line, indent) {
  return !BLANK.test(line) && line.length - line.trimStart().length > indent.length;
}

const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);
const isSpace = (character) => character === undefined || /\s/.test(character);

/** Where the mark that opens at `from` closes, or -1. */
function closing(text, marker, from) {
  for (let at = text.indexOf(marker, from + 1); at !== -1; at = text.indexOf(marker, at + 1)) {
    const after = text[at + marker.length];
    // A single * or _ does not close at one of a pair; a word with_underscores is no emphasis.
    const pair = marker.length === 1 && (after === marker || text[at - 1] === marker);
    if (isSpace(text[at - 1]) || pair || (marker[0] === "_" && isWord(after))) continue;
    return marker.length === 2 && after === marker[0] ? at + 1 : at; // of three, the first belongs to what is inside
  }
  return -1;
}

/** Text and elements of a paragraph's text. `depth` counts the marks around it. */
function inline(text, depth) {
  const out = [];
  const hopeless = new Set(); // markers that nothing closes from here to the end
  let plain = "";
  const flush = () => {
    const [first, ...rest] = plain.split("\n");
    out.push(first, ...rest.flatMap((line) => [h("br"), line]));
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    MARK.lastIndex = at;
    const run = MARK.exec(text);
    plain += text.slice(at, run ? run.index : text.length);
    if (!run) break;
    at = run.index;
    // Three marks are two and one, more than three are noise; a code's marks are as many as they like.
    const code = run[0][0] === "`";
    const marker = code ? run[0] : run[0].length > 3 ? null : run[0].slice(0, 2);
    const found = marker && !hopeless.has(marker) ? mark(text, at, marker, depth) : null;
    if (found?.element) {
      flush();
      out.push(found.element);
      at = found.end;
    } else {
      if (found?.hopeless) hopeless.add(marker);
      plain += run[0];
      at += run[0].length;
    }
  }
  flush();
  return out.filter((part) => part !== "");
}

function mark(text, at, marker, depth) {
  const from = at + marker.length;
  if (marker[0] === "`") {
    let end = text.indexOf(marker, from);
    while (end !== -1 && text[end + marker.length] === "`") {
      while (text[end] === "`") end += 1; // a longer run is part of the code
      end = text.indexOf(marker, end);
    }
    return end === -1
      ? { hopeless: true }
      : { element: h("code", {}, text.slice(from, end)), end: end + marker.length };
  }
  if (marker === "[") return link(text, at);
  if (depth >= DEEPEST || isSpace(text[from]) || (marker[0] === "_" && isWord(text[at - 1]))) return null;
  const end = closing(text, marker, from);
  if (end === -1) return { hopeless: true };
  return {
    element: h(marker.length === 2 ? "strong" : "em", {}, inline(text.slice(from, end), depth + 1)),
    end: end + marker.length,
  };
}

/** [words](address) as "words (address)": an address of a model's making is to be read, not followed. */
function link(text, at) {
  const found = /^\[([^\]\n]{1,400})\]\(([^()\s]{1,2000})\)/.exec(text.slice(at, at + 2410));
  if (!found || text[at - 1] === "!") return null; // an image stays as it was written
  return {
    element: h("span", { class: "link" }, found[1] === found[2] ? found[1] : `${found[1]} (${found[2]})`),
    end: at + found[0].length,
  };
}
