// The gateway's HTTP API. The key lives in this module's memory, and nowhere else.

import { events } from "./sse.js";
import { Trouble, brokenOff, misunderstood, ofEvent, ofResponse, unreachable } from "./trouble.js";

let key = null;
let askForKey = async () => false;
let asking = null;

/** Whether a key is held. */
export function hasKey() {
  return key !== null;
}

/** Hold this key until the page goes. */
export function setKey(text) {
  key = text;
}

/** `ask(refused)` is called when a key is needed; it resolves to whether one was given, with `setKey`. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Ask for a key, once for all requests that wait for one. */
export function obtainKey(refused) {
  asking ??= askForKey(refused).finally(() => {
    asking = null;
  });
  return asking;
}

async function send(path, method, body, signal) {
  const headers = {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method,
      headers,
      signal,
      body: body === null ? null : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    throw signal?.aborted ? error : unreachable();
  }
}

async function request(path, { method = "GET", body = null, signal = null } = {}) {
  for (;;) {
    const sent = key;
    const response = await send(path, method, body, signal);
    if (response.ok) return response;
    if (response.status !== 401) throw await ofResponse(response);
    if (sent !== key) continue; // another request has got a key meanwhile
    if (!(await obtainKey(sent !== null)))
      throw new Trouble("The server wants an API key: enter one, then try again.", { status: 401 });
  }
}

async function json(response) {
  try {
    return await response.json();
  } catch {
    throw misunderstood();
  }
}

/** What is served: {models: [name], guard, keys, judges: [name], votes}. */
export async function about() {
  return json(await request("/v1/castor"));
}

/** The guard's mode of each model, as {name: mode}. */
export async function guards() {
  const { data } = await json(await request("/v1/models"));
  return Object.fromEntries(data.map((model) => [model.id, model.castor?.guard ?? null]));
}

/** Store one vote. */
export async function vote(body) {
  await request("/v1/votes", { method: "POST", body });
}

/**
 * The pieces of one streamed answer: {policy} first, then {text, window, finish, verdict} a chunk, each null where the
 * chunk has none. Returns after [DONE]. Throws a Trouble when the answer cannot be had, or ends before [DONE]; the
 * signal's AbortError when stopped.
 */
export async function* complete(body, signal) {
  const response = await request("/v1/chat/completions", { method: "POST", body: { ...body, stream: true }, signal });
  yield { policy: response.headers.get("X-Castor-Policy") };
  const stream = events(response.body);
  try {
    for (;;) {
      const data = await nextOf(stream, signal);
      if (data === "[DONE]") return;
      const piece = read(data);
      if (piece) yield piece;
    }
  } finally {
    await stream.return();
  }
}

async function nextOf(stream, signal) {
  let next;
  try {
    next = await stream.next();
  } catch (error) {
    throw signal?.aborted ? error : brokenOff();
  }
  if (next.done) throw brokenOff();
  return next.value;
}

function read(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw misunderstood();
  }
  if (chunk.error) throw ofEvent(chunk.error);
  const choice = chunk.choices?.[0];
  if (!choice) return null; // the usage, where it is reported
  const finish = choice.finish_reason ?? null;
  const extra = choice.castor ?? null;
  return {
    text: choice.delta?.content ?? null,
    window: extra?.window ?? null,
    finish,
    verdict: finish === null ? null : extra,
  };
}
