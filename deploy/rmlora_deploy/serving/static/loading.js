/** Loads and unloads adapters. */

import { call } from "./api.js";
import { find, say } from "./dom.js";

/** Sets up the form; `onChange` is awaited after every change. */
export function setUpLoading(onChange) {
  find("load").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = find("load-name").value.trim();
    const done = await change("v1/load_lora_adapter", { lora_name: name, lora_path: find("load-path").value.trim() }, onChange);
    if (!done) return;
    event.target.reset();
    say(find("load-status"), `Loaded ${name}.`);
  });
}

/** Shows the form, or, if `reason` is not null, why there is none. */
export function explainLoading(reason) {
  find("load").hidden = reason !== null;
  say(find("no-loading"), reason ?? "");
}

/** Unloads an adapter. */
export async function unload(name, onChange) {
  if (await change("v1/unload_lora_adapter", { lora_name: name }, onChange)) say(find("load-status"), `Unloaded ${name}.`);
}

async function change(path, body, onChange) {
  say(find("load-status"), "");
  try {
    await call(path, { body });
    await onChange();
    return true;
  } catch (error) {
    say(find("load-status"), error.message);
    return false;
  }
}
