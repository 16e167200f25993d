/** Calls the server: handles its key, its errors, and that it may be unreachable. */

const STORED = "rmlora-key";
const TIMEOUT = 60_000;

/** The server answered with an error; the message is its own sentence. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** No answer came. */
export class Unreachable extends Error {}

/** Returns true if a key is stored in this tab. */
export const hasKey = () => sessionStorage.getItem(STORED) !== null;

/** Stores a key for this tab; null deletes it. */
export function keepKey(key) {
  if (key === null) sessionStorage.removeItem(STORED);
  else sessionStorage.setItem(STORED, key.trim());
}

/**
 * Returns the server's answer to a GET, or to a POST of `body` as JSON.
 *
 * Throws Refused if the server answers with an error, Unreachable if it does not answer, and AbortError once `signal`
 * aborts. A 401 also dispatches the event "keyneeded" on the document.
 */
export async function call(path, { body, signal, timeout = TIMEOUT } = {}) {
  const limit = AbortSignal.timeout(timeout);
  const headers = {};
  const key = sessionStorage.getItem(STORED);
  // Header values are bytes; the server compares the key in UTF-8.
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

/** Returns the message of an error: in OpenAI's format, the Open Inference Protocol's, or neither. */
function sentence(text, response) {
  try {
    const { error, detail } = JSON.parse(text);
    const message = error?.message ?? error ?? detail;
    if (typeof message === "string" && message) return message;
  } catch {
    // Not JSON: something between the page and the server answered.
  }
  return `The server answered with ${response.status} ${response.statusText}`.trimEnd() + ".";
}
