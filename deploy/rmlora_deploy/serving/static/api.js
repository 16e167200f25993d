/** Asking the server: its key, its errors, and whether it can be reached at all. */

const STORED = "rmlora-key";
const PATIENCE = 60_000;

/** The server answered with an error; the message is its own sentence. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** No answer came. */
export class Unreachable extends Error {}

/** Returns whether a key is kept in this tab. */
export const hasKey = () => sessionStorage.getItem(STORED) !== null;

/** Keeps a key for this tab; null forgets it. */
export function keepKey(key) {
  if (key === null) sessionStorage.removeItem(STORED);
  else sessionStorage.setItem(STORED, key.trim());
}

/**
 * Returns what the server answers to a GET, or to a POST of `body` as JSON.
 *
 * Throws Refused for an error of the server, Unreachable for none at all, and AbortError once `signal` says so. A 401
 * also sends the event "keyneeded" to the document.
 */
export async function call(path, { body, signal, patience = PATIENCE } = {}) {
  const limit = AbortSignal.timeout(patience);
  const headers = {};
  const key = sessionStorage.getItem(STORED);
  // A header takes bytes: the key's in UTF-8, as the server compares them.
  if (key !== null) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    const response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    const text = await response.text();
    if (!response.ok) throw new Refused(sentence(text, response), response.status);
    return response.headers.get("content-type")?.startsWith("application/json") ? JSON.parse(text) : text;
  } catch (error) {
    if (error instanceof Refused) {
      if (error.status === 401) document.dispatchEvent(new CustomEvent("keyneeded"));
      throw error;
    }
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer.");
  }
}

/** Returns the reason in an error's body: OpenAI's form, the Open Inference Protocol's, or neither. */
function sentence(text, response) {
  try {
    const { error, detail } = JSON.parse(text);
    const said = error?.message ?? error ?? detail;
    if (typeof said === "string" && said) return said;
  } catch {
    // Not JSON: something between the page and the server answered.
  }
  return `The server answered with ${response.status} ${response.statusText}`.trimEnd() + ".";
}
