// What went wrong, in one plain sentence that ends with what to do.

/** A failure to be told as it is: `message` is the sentence. */
export class Trouble extends Error {
  constructor(sentence, { status = null, code = null } = {}) {
    super(sentence);
    this.status = status;
    this.code = code;
  }
}

const BY_CODE = {
  model_not_found: "The server no longer has this model: choose another one.",
  judge_unusable: "The judge gave no usable verdict, and nothing is shown without one: try again in a minute.",
  judge_unreachable: "The judge cannot be reached, and nothing is shown without its verdict: try again in a minute.",
  judge_timeout: "The judge took too long, and nothing is shown without its verdict: try again in a minute.",
  policy_unreachable: "The model cannot be reached at the moment: try again in a minute, or choose another one.",
  policy_failed: "The model failed on this question: try again, or choose another one.",
  policy_timeout: "The model took too long: try again, or ask for something shorter.",
  request_timeout: "The request took longer than the server allows: try again, or ask for something shorter.",
  context_length_exceeded: "This is too long for the model, or for its judges: shorten it, or start a new chat.",
};

const BY_STATUS = {
  401: "The server does not accept this API key: enter another one.",
  404: "The server does not offer this: reload the page, and tell whoever runs the server if it goes on.",
  413: "This is too long for the server: shorten it, or start a new chat.",
};

/** The sentence for an error in OpenAI's shape; `retryAfter` is in seconds, as text. */
function sentence(status, error, retryAfter) {
  const { code = null, message = null } = error ?? {};
  const seconds = /^\d+$/.test(retryAfter ?? "") ? Number(retryAfter) : null;
  const when = seconds === null ? "in a minute" : `in ${seconds} ${seconds === 1 ? "second" : "seconds"}`;
  if (code === "overloaded") return `The server has more requests than it can answer: try again ${when}.`;
  if (status === 429 || code === "rate_limit_exceeded")
    return `There were too many requests with this key: try again ${when}.`;
  const known = BY_CODE[code] ?? BY_STATUS[status];
  if (known) return known;
  const said = message ? ` (“${message}”)` : "";
  if (status === 403 || code === "insufficient_scope")
    return `This API key may not do that${said}: enter one that may.`;
  if (status === 400 || code === "invalid_request_error")
    return `The server refused the request${said}: change it, or start a new chat.`;
  return `The server had a problem${said}: try again, and tell whoever runs the server if it goes on.`;
}

/** The trouble that a response which is not OK stands for. */
export async function ofResponse(response) {
  let error = null;
  try {
    error = (await response.json()).error ?? null;
  } catch {
    // A proxy's page, or nothing at all: the status alone says what it is.
  }
  const retryAfter = response.headers.get("Retry-After");
  return new Trouble(sentence(response.status, error, retryAfter), {
    status: response.status,
    code: error?.code ?? null,
  });
}

/** The trouble of an error event within a stream. */
export function ofEvent(error) {
  const reason = sentence(null, error, null);
  return new Trouble(`The answer broke off because ${reason[0].toLowerCase()}${reason.slice(1)}`, {
    code: error?.code ?? null,
  });
}

/** The server could not be reached at all. */
export function unreachable() {
  return new Trouble("The server cannot be reached: check that it is running, then try again.");
}

/** The connection ended, or was lost, before the answer was complete. */
export function brokenOff() {
  return new Trouble("The connection ended before the answer was complete: try again.");
}

/** The server said something that no version of its API says. */
export function misunderstood() {
  return new Trouble("The server sent something this page does not understand: reload the page, then try again.");
}

/** The sentence for anything thrown; what is not a Trouble is a mistake of this page, and also goes to the console. */
export function told(error) {
  if (error instanceof Trouble) return error.message;
  console.error(error);
  return "This page made a mistake: reload it, and report what the browser's console says.";
}
