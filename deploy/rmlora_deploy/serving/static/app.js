/** The page: polls the server every two seconds and passes the figures to the parts. */

import { call, hasKey, keepKey, Refused } from "./api.js";
import { find, say } from "./dom.js";
import { plural } from "./format.js";
import { showLive } from "./live.js";
import { explainLoading, setUpLoading, unload } from "./loading.js";
import { Models } from "./models.js";
import { Playground } from "./playground.js";

const POLL_INTERVAL = 2000;
const RETRY_INTERVAL = 4000; // after a failure
const TIMEOUT = 10_000;

let timer = null;
let models = 0;
let listed = ""; // identifies the list of models that the table shows
let polling = false;

const playground = new Playground({ onUntick: (id) => table.untick(id) });
const table = new Models({
  onChoice: (chosen) => playground.choose(chosen),
  onUnload: (model) => unload(model.id, refresh),
});

/** Asks the server for its figures, and for its models if they have changed. */
async function poll() {
  clearTimeout(timer);
  if (document.hidden || polling) return;
  polling = true;
  let wait = POLL_INTERVAL;
  try {
    const stats = await call("stats", { timeout: TIMEOUT });
    show("main");
    const current = `${stats.models} ${stats.newest_model} ${stats.unavailable}`;
    if (current !== listed) await refresh();
    listed = current;
    explainLoading(stats.no_loading);
    table.allowUnloading(stats.no_loading === null);
    table.takeTraffic(stats.rows);
    showLive(stats);
    state("ready", `Serving ${plural(models, "model")}`);
    say(find("notice"), "");
  } catch (error) {
    wait = RETRY_INTERVAL;
    failed(error);
  }
  polling = false;
  if (find("gate").hidden) timer = setTimeout(poll, wait);
}

/** Loads the list of models. */
async function refresh() {
  const { data } = await call("v1/models", { timeout: TIMEOUT });
  models = data.length;
  table.take(data);
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) return; // the gate is open already
  const stopping = error instanceof Refused && error.status === 503;
  if (error instanceof Refused) state(stopping ? "stopping" : "failed", stopping ? "Stopping" : "Error");
  else state("failed", "Unreachable");
  say(find("notice"), error instanceof Refused ? error.message : `${error.message} This page tries again every few seconds.`);
}

function state(name, text) {
  const status = find("state");
  status.dataset.state = name;
  if (status.textContent !== text) status.textContent = text;
}

/** Shows the page's content, or the form that asks for the key. */
function show(part) {
  if (!find(part).hidden) return;
  find("main").hidden = part !== "main";
  find("gate").hidden = part !== "gate";
  find("forget").hidden = part === "gate" || !hasKey();
  if (part === "gate") find("key").focus();
}

document.addEventListener("keyneeded", () => {
  say(find("gate-error"), hasKey() ? "The server does not accept this key." : "");
  say(find("notice"), "");
  keepKey(null);
  state("wait", "Locked");
  show("gate");
});

find("gate").addEventListener("submit", async (event) => {
  event.preventDefault();
  keepKey(find("key").value);
  find("key").value = "";
  await poll();
});

find("forget").addEventListener("click", () => {
  keepKey(null);
  location.reload();
});

document.addEventListener("visibilitychange", poll);
new ResizeObserver(() => showLive()).observe(find("live"));
setUpLoading(refresh);
await poll();
